//! A session: one verified peer, its control stream, its bulk streams, and its end.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;

use crate::{
    bulk::{BulkPriority, BulkReceiver, BulkSender, CONTROL_PRIORITY},
    close::CloseReason,
    control::{ControlReceiver, ControlSender, ReadTask, write_task},
    error::LinkError,
    limits::{CONTROL_RECEIVE_BATCHES_MAX, LinkConfig},
    local::Passage,
    memory::MemoryWire,
    queue::SendQueue,
    role::{Peer, Role},
    runtime::LinkRuntime,
};

/// What dialling and accepting yield. The connection ends when all three parts, and every clone
/// and open bulk stream, are dropped; or with [`Session::close`].
#[derive(Debug)]
pub struct Connected {
    /// Who the peer is, bulk streams, the end.
    pub session: Session,
    /// Control frames out.
    pub sender: ControlSender,
    /// Control frames in.
    pub receiver: ControlReceiver,
}

/// A handle to one peer; cheap to clone.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    peer: Peer,
    remote_addr: SocketAddr,
    bulk_stall: Duration,
    wire: Wire,
}

enum Wire {
    /// The runtime is held so that it outlives its connections.
    Quic {
        connection: Connection,
        /// When the peer is on this machine, too.
        passage: Option<Passage>,
        _runtime: LinkRuntime,
    },
    Memory(Arc<MemoryWire>),
}

impl Session {
    pub(crate) fn memory(peer: Peer, addr: SocketAddr, wire: Arc<MemoryWire>) -> Self {
        let bulk_stall = LinkConfig::default().bulk_stall_timeout;
        Self(Arc::new(Inner {
            peer,
            remote_addr: addr,
            bulk_stall,
            wire: Wire::Memory(wire),
        }))
    }

    /// The peer's role, from its verified certificate.
    pub fn peer_role(&self) -> Role {
        self.0.peer.role()
    }

    /// The peer's name, from its verified certificate.
    pub fn peer_name(&self) -> &str {
        self.0.peer.name()
    }

    /// Role, name and cluster of the peer.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Where the peer was when the session began.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.remote_addr
    }

    /// The transport's present estimate of a round trip.
    pub fn rtt(&self) -> Duration {
        match &self.0.wire {
            Wire::Quic { connection, .. } => connection.rtt(),
            Wire::Memory(_) => Duration::ZERO,
        }
    }

    /// Opens a bulk stream; waits while the peer has as many as it allows. The peer sees the
    /// stream with its first byte or its end.
    pub async fn open_bulk(&self, priority: BulkPriority) -> Result<BulkSender, LinkError> {
        let peer = self.0.remote_addr;
        match &self.0.wire {
            Wire::Quic {
                connection,
                passage,
                ..
            } => {
                if let Some(passage) = passage
                    && connection.close_reason().is_none()
                    && let Some(stream) = passage.leave().await
                {
                    return Ok(BulkSender::local(stream, peer));
                }
                let stream = connection
                    .open_uni()
                    .await
                    .map_err(|error| LinkError::ended(peer, error.into()))?;
                // It fails only for a stream that is over, and this one has just begun.
                let _ = stream.set_priority(priority.level());
                Ok(BulkSender::quic(stream, peer))
            }
            Wire::Memory(wire) => wire.open_bulk(peer, self.0.bulk_stall).await,
        }
    }

    /// The next bulk stream the peer opened. Cancel-safe.
    pub async fn accept_bulk(&self) -> Result<BulkReceiver, LinkError> {
        let peer = self.0.remote_addr;
        match &self.0.wire {
            Wire::Quic {
                connection,
                passage,
                ..
            } => {
                let stall = self.0.bulk_stall;
                let visitor = async {
                    match passage {
                        Some(passage) => passage.enter().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    stream = connection.accept_uni() => {
                        let stream = stream.map_err(|error| LinkError::ended(peer, error.into()))?;
                        Ok(BulkReceiver::quic(stream, peer, stall))
                    }
                    stream = visitor => Ok(BulkReceiver::local(stream, peer, stall)),
                }
            }
            Wire::Memory(wire) => wire.accept_bulk(peer).await,
        }
    }

    /// Resolves when the session is over, with the reason; at once if it already is.
    pub async fn closed(&self) -> CloseReason {
        match &self.0.wire {
            Wire::Quic { connection, .. } => connection.closed().await.into(),
            Wire::Memory(wire) => wire.closed().await,
        }
    }

    /// Ends the session now, telling the peer why; what is under way is discarded. See
    /// [`ControlSender::finish`] for a gentle end.
    pub fn close(&self, code: u32, reason: &str) {
        match &self.0.wire {
            Wire::Quic { connection, .. } => connection.close(code.into(), reason.as_bytes()),
            Wire::Memory(wire) => wire.close(code, reason),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.0.peer)
            .field("remote_addr", &self.0.remote_addr)
            .finish_non_exhaustive()
    }
}

/// Who is at the other end, as its verified certificate says.
pub(crate) fn verified_peer(connection: &Connection) -> Result<Peer, LinkError> {
    let addr = connection.remote_address();
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(LinkError::PeerNoCertificate { addr })?;
    let leaf = chain.first().ok_or(LinkError::PeerNoCertificate { addr })?;
    Peer::from_certificate(leaf).map_err(|error| LinkError::PeerUntrusted {
        addr,
        detail: error.to_string(),
    })
}

/// Makes a session of a verified connection and its control stream; called on the network thread.
pub(crate) fn assemble(
    (connection, passage): (Connection, Option<Passage>),
    peer: Peer,
    (send, recv): (SendStream, RecvStream),
    first_frame: Option<Duration>,
    config: &LinkConfig,
    runtime: &LinkRuntime,
) -> Connected {
    let mut remote_addr = connection.remote_address();
    remote_addr.set_ip(remote_addr.ip().to_canonical());
    // It fails only for a stream that is over; then the first write tells.
    let _ = send.set_priority(CONTROL_PRIORITY);
    let queue = Arc::new(SendQueue::new());
    let sender = ControlSender::new(queue.clone(), remote_addr);
    runtime.spawn(write_task(queue, send, runtime.clone()));
    let (batches, received) = mpsc::channel(CONTROL_RECEIVE_BATCHES_MAX);
    let read = ReadTask {
        connection: connection.clone(),
        stream: recv,
        batches,
        first_frame,
        runtime: runtime.clone(),
    };
    runtime.spawn(read.run());
    let session = Session(Arc::new(Inner {
        peer,
        remote_addr,
        bulk_stall: config.bulk_stall_timeout,
        wire: Wire::Quic {
            connection,
            passage,
            _runtime: runtime.clone(),
        },
    }));
    Connected {
        session,
        sender,
        receiver: ControlReceiver::new(received),
    }
}
