//! Dialling, and what dialler and listener have in common.
//!
//! The conversation before the first frame: TLS 1.3 with both certificates and ALPN `volley/1`;
//! the dialler opens the control stream and writes the preface; the acceptor, which by then has
//! verified the dialler's certificate, answers with the same preface. A dial therefore returns
//! either a session that both sides hold, or the reason why not.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Connection, EndpointConfig, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::time::timeout;

use crate::{
    close::{CloseReason, close_code},
    error::LinkError,
    identity::Identity,
    limits::{CONTROL_STREAMS_MAX, LinkConfig},
    listener::Listener,
    local::{Door, Passage},
    reset_key::{RandomCids, ResetKey},
    role::{Peer, Role},
    runtime::LinkRuntime,
    session::{Connected, assemble, verified_peer},
    socket, tls,
};

/// First bytes of the control stream in both directions: name and version of the framing.
pub(crate) const PREFACE: [u8; 4] = *b"VLY\x01";

/// The dialling side of a process; cheap to clone. Every dial shares one socket.
#[derive(Clone, Debug)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    cluster_id: Arc<str>,
    config: Arc<LinkConfig>,
    door: Option<Door>,
    runtime: LinkRuntime,
}

impl Endpoint {
    /// An endpoint that dials as `identity`.
    pub fn client(
        runtime: &LinkRuntime,
        identity: &Identity,
        config: LinkConfig,
    ) -> Result<Self, LinkError> {
        let mut client = quinn::ClientConfig::new(Arc::new(tls::client(identity)?));
        client.transport_config(transport(&config, 0));
        let socket = socket::bind_for_dialling(config.socket_buffer_bytes)?;
        let door = door(runtime, &socket, &config);
        Ok(Self {
            door,
            endpoint: start(runtime, socket, None, &config)?,
            client,
            cluster_id: identity.cluster_id().into(),
            config: Arc::new(config),
            runtime: runtime.clone(),
        })
    }

    /// A listener on `addr` (port 0 picks one) that serves as `identity`.
    pub fn listen(
        runtime: &LinkRuntime,
        addr: SocketAddr,
        identity: &Identity,
        config: LinkConfig,
    ) -> Result<Listener, LinkError> {
        Listener::start(runtime, addr, identity, config)
    }

    /// Connects to `addr`, which must prove to be an `expected` of our cluster.
    pub async fn dial(&self, addr: SocketAddr, expected: Role) -> Result<Connected, LinkError> {
        let this = self.clone();
        self.runtime
            .run(async move { this.dial_here(addr, expected).await })
            .await
    }

    /// Closes every session this endpoint dialled and waits until the peers could learn of it.
    pub async fn close(&self, code: u32, reason: &str) {
        self.endpoint.close(code.into(), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }

    /// On the network thread: whatever QUIC spawns stays there.
    async fn dial_here(self, addr: SocketAddr, expected: Role) -> Result<Connected, LinkError> {
        let limit = self.config.handshake_timeout;
        let unreachable = |detail: String| LinkError::PeerUnreachable { addr, detail };
        let name = Peer::dns_name(expected, &self.cluster_id);
        let mut connecting = self
            .endpoint
            .connect_with(self.client.clone(), addr, &name)
            .map_err(|error| unreachable(error.to_string()))?;
        let handshake = async {
            tokio::select! {
                // An error here comes again, with its reason, from the line below.
                _ = connecting.handshake_data() => {}
                () = socket::nobody_listens(addr) => {
                    return Err(unreachable("nothing listens there".into()));
                }
                () = tokio::time::sleep(limit) => {
                    return Err(unreachable(format!("no answer within {limit:?}")));
                }
            }
            let connection = connecting
                .await
                .map_err(|error| tls::dial_error(addr, expected, error))?;
            let peer = verified_peer(&connection)?;
            if peer.role() != expected || peer.cluster_id() != &*self.cluster_id {
                connection.close(close_code::NO_ROLE.into(), b"PEER_WRONG_ROLE");
                let detail = format!("it is {peer} of cluster {}", peer.cluster_id());
                return Err(LinkError::PeerWrongRole {
                    addr,
                    expected,
                    detail,
                });
            }
            let passage = Passage::of(&connection, self.door.as_ref(), true);
            let streams = self.open_control(&connection, expected).await?;
            Ok(assemble(
                (connection, passage),
                peer,
                streams,
                None,
                &self.config,
                &self.runtime,
            ))
        };
        // The answer's deadline is inside; this one covers a peer that stops half way.
        match timeout(2 * limit, handshake).await {
            Ok(done) => done,
            Err(_) => Err(LinkError::HandshakeTimeout {
                addr,
                limit: 2 * limit,
            }),
        }
    }

    async fn open_control(
        &self,
        connection: &Connection,
        expected: Role,
    ) -> Result<(SendStream, RecvStream), LinkError> {
        let addr = connection.remote_address();
        // Any failure here is the connection's: its reason says more than the stream's.
        let ended = |error| tls::dial_error(addr, expected, error);
        let (mut send, mut recv) = connection.open_bi().await.map_err(ended)?;
        if send.write_all(&PREFACE).await.is_err() {
            return Err(ended(connection.closed().await));
        }
        let mut got = [0u8; PREFACE.len()];
        if recv.read_exact(&mut got).await.is_err() {
            return match timeout(Duration::from_millis(100), connection.closed()).await {
                Ok(error) => Err(ended(error)),
                Err(_) => Err(LinkError::BadPreface { addr, got }),
            };
        }
        if got != PREFACE {
            connection.close(close_code::BAD_PREFACE.into(), b"BAD_PREFACE");
            return Err(LinkError::BadPreface { addr, got });
        }
        Ok((send, recv))
    }
}

/// The acceptor's half of the preface.
pub(crate) async fn accept_control(
    connection: &Connection,
) -> Result<(SendStream, RecvStream), LinkError> {
    let addr = connection.remote_address();
    let ended = |error| LinkError::ended(addr, CloseReason::from(error));
    let (mut send, mut recv) = connection.accept_bi().await.map_err(ended)?;
    let mut got = [0u8; PREFACE.len()];
    let whole = recv.read_exact(&mut got).await.is_ok();
    if !whole || got != PREFACE {
        connection.close(close_code::BAD_PREFACE.into(), b"BAD_PREFACE");
        return Err(LinkError::BadPreface { addr, got });
    }
    if send.write_all(&PREFACE).await.is_err() {
        return Err(ended(connection.closed().await));
    }
    Ok((send, recv))
}

/// The door beside a socket, if bulk may take it.
pub(crate) fn door(
    runtime: &LinkRuntime,
    socket: &std::net::UdpSocket,
    config: &LinkConfig,
) -> Option<Door> {
    let addr = socket.local_addr().ok().filter(|_| config.local_bulk)?;
    Door::open(runtime, addr.port())
}

/// Hands a socket to QUIC; its driver runs on the network thread.
pub(crate) fn start(
    runtime: &LinkRuntime,
    socket: std::net::UdpSocket,
    server: Option<quinn::ServerConfig>,
    config: &LinkConfig,
) -> Result<quinn::Endpoint, LinkError> {
    let addr = socket
        .local_addr()
        .unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let reset_key = config.reset_key.clone().unwrap_or_else(ResetKey::generate);
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint.cid_generator(|| Box::new(RandomCids));
    let _on_the_network_thread = runtime.handle().enter();
    quinn::Endpoint::new(endpoint, server, socket, Arc::new(quinn::TokioRuntime))
        .map_err(|source| LinkError::Socket { addr, source })
}

/// Transport settings; only the acceptor lets its peer open the control stream.
pub(crate) fn transport(config: &LinkConfig, control_streams: u32) -> Arc<TransportConfig> {
    debug_assert!(control_streams <= CONTROL_STREAMS_MAX);
    let mut transport = TransportConfig::default();
    let idle = config
        .idle_timeout
        .try_into()
        .unwrap_or_else(|_| VarInt::MAX.into());
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(config.keep_alive))
        .max_concurrent_bidi_streams(control_streams.into())
        .max_concurrent_uni_streams(config.bulk_streams_max.into())
        .receive_window(config.receive_window_bytes.into())
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}
