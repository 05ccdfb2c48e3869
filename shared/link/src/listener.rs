//! Accepting: every peer is verified, every wait has a deadline, every bad peer is told, logged
//! and counted, and the listener goes on.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use quinn::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    close::close_code,
    endpoint::{accept_control, door, start, transport},
    error::LinkError,
    identity::Identity,
    limits::{
        ACCEPT_BACKLOG_MAX, CONTROL_STREAMS_MAX, INCOMING_BEFORE_RETRY, LinkConfig,
        REFUSALS_LOGGED_PER_SECOND,
    },
    local::{Door, Passage},
    runtime::LinkRuntime,
    session::{Connected, assemble, verified_peer},
    socket, tls,
};

/// Accepts peers of the cluster. Dropping it stops accepting; sessions live on.
#[derive(Debug)]
pub struct Listener {
    endpoint: quinn::Endpoint,
    addr: SocketAddr,
    accepted: mpsc::Receiver<Connected>,
    refusals: Arc<Refusals>,
    accepting: AbortHandle,
    _runtime: LinkRuntime,
}

impl Listener {
    pub(crate) fn start(
        runtime: &LinkRuntime,
        addr: SocketAddr,
        identity: &Identity,
        config: LinkConfig,
    ) -> Result<Self, LinkError> {
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
        server
            .max_incoming(config.incoming_max)
            .transport_config(transport(&config, CONTROL_STREAMS_MAX));
        let socket = socket::bind(addr, config.socket_buffer_bytes)?;
        let addr = socket
            .local_addr()
            .map_err(|source| LinkError::Socket { addr, source })?;
        let door = door(runtime, &socket, &config);
        let endpoint = start(runtime, socket, Some(server), &config)?;
        let (sessions, accepted) = mpsc::channel(ACCEPT_BACKLOG_MAX);
        let refusals = Arc::new(Refusals::new());
        let acceptor = Acceptor {
            endpoint: endpoint.clone(),
            door,
            pending: Arc::new(Semaphore::new(config.incoming_max)),
            sessions,
            refusals: refusals.clone(),
            config: Arc::new(config),
            runtime: runtime.clone(),
        };
        let accepting = runtime.spawn(acceptor.run()).abort_handle();
        Ok(Self {
            endpoint,
            addr,
            accepted,
            refusals,
            accepting,
            _runtime: runtime.clone(),
        })
    }

    /// The next verified peer; `None` after [`close`](Self::close). Cancel-safe.
    pub async fn accept(&mut self) -> Option<Connected> {
        self.accepted.recv().await
    }

    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Peers turned away so far.
    pub fn refused_total(&self) -> u64 {
        self.refusals.total.load(Ordering::Relaxed)
    }

    /// Stops accepting, closes every session and waits until the peers could learn of it.
    pub async fn close(&self, code: u32, reason: &str) {
        self.accepting.abort();
        self.endpoint.close(code.into(), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
        self.endpoint.set_server_config(None);
    }
}

/// The accepting task.
#[derive(Clone)]
struct Acceptor {
    endpoint: quinn::Endpoint,
    door: Option<Door>,
    /// One permit per handshake and per session that nobody has accepted yet.
    pending: Arc<Semaphore>,
    sessions: mpsc::Sender<Connected>,
    refusals: Arc<Refusals>,
    config: Arc<LinkConfig>,
    runtime: LinkRuntime,
}

impl Acceptor {
    async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            let addr = incoming.remote_address();
            let busy = self.config.incoming_max - self.pending.available_permits();
            let full = self.endpoint.open_connections() >= self.config.connections_max;
            let Ok(permit) = self.pending.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            if full {
                let detail = format!("{} connections are open", self.config.connections_max);
                self.refusals
                    .note(addr, &LinkError::PeerRefused { addr, detail });
                incoming.refuse();
            } else if busy >= INCOMING_BEFORE_RETRY
                && !incoming.remote_address_validated()
                && incoming.may_retry()
            {
                // It fails only for peers that cannot retry, which were asked above.
                let _ = incoming.retry();
            } else {
                self.runtime.spawn(self.clone().admit(incoming, permit));
            }
        }
    }

    /// One peer, from its first packet to the hand-over.
    async fn admit(self, incoming: Incoming, _permit: OwnedSemaphorePermit) {
        let mut addr = incoming.remote_address();
        addr.set_ip(addr.ip().to_canonical());
        match self.handshake(incoming, addr).await {
            // It fails when the listener is gone, and with it the wish for sessions.
            Ok(connected) => drop(self.sessions.send(connected).await),
            Err(error) => self.refusals.note(addr, &error),
        }
    }

    async fn handshake(
        &self,
        incoming: Incoming,
        addr: SocketAddr,
    ) -> Result<Connected, LinkError> {
        let refused = |error| tls::accept_error(addr, error);
        let limit = self.config.handshake_timeout;
        let connecting = incoming.accept().map_err(refused)?;
        let connection = timeout(limit, connecting)
            .await
            .map_err(|_| LinkError::HandshakeTimeout { addr, limit })?
            .map_err(refused)?;
        let peer = verified_peer(&connection).inspect_err(|error| {
            connection.close(close_code::NO_ROLE.into(), error.code().as_bytes());
        })?;
        let passage = Passage::of(&connection, self.door.as_ref(), false);
        let limit = self.config.first_frame_timeout;
        let Ok(streams) = timeout(limit, accept_control(&connection)).await else {
            let code = close_code::FIRST_FRAME_TIMEOUT;
            connection.close(code.into(), b"FIRST_FRAME_TIMEOUT");
            return Err(LinkError::FirstFrameTimeout { peer: addr, limit });
        };
        Ok(assemble(
            (connection, passage),
            peer,
            streams?,
            Some(limit),
            &self.config,
            &self.runtime,
        ))
    }
}

/// Counts refused peers, and logs them at a bounded rate.
#[derive(Debug)]
struct Refusals {
    total: AtomicU64,
    since: Instant,
    /// The second of the last log line, and how many lines it has had: `second << 8 | lines`.
    logged: AtomicU64,
}

impl Refusals {
    fn new() -> Self {
        Self {
            total: AtomicU64::new(0),
            since: Instant::now(),
            logged: AtomicU64::new(0),
        }
    }

    /// Called on the network thread only, so the two loads and stores cannot interleave.
    fn note(&self, addr: SocketAddr, error: &LinkError) {
        let total = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        let second = self.since.elapsed().as_secs();
        let logged = self.logged.load(Ordering::Relaxed);
        let lines = if logged >> 8 == second {
            logged & 0xff
        } else {
            0
        };
        if lines < REFUSALS_LOGGED_PER_SECOND {
            self.logged
                .store(second << 8 | (lines + 1), Ordering::Relaxed);
            tracing::warn!(peer = %addr, code = error.code(), total, "peer refused: {error}");
        }
    }
}
