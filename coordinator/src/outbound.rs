//! Who is connected, and how to say something to them.

use std::sync::Arc;

use dashmap::DashMap;
use volley_coordinator_core::SessionId;
use volley_link::{ControlSender, Session, close_code};
use volley_protocol::Fault;
use volley_protocol::client::ClientReply;
use volley_protocol::codec::{self, Message};
use volley_protocol::learner::ToLearner;
use volley_protocol::worker::ToWorker;
use volley_runtime::greeting::{close_with, link_fault};

/// A frame and who gets it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    session: SessionId,
    kind: u8,
    payload: Vec<u8>,
}

impl Outgoing {
    pub(crate) fn worker(session: SessionId, message: &ToWorker) -> Self {
        Self::new(session, message)
    }

    pub(crate) fn learner(session: SessionId, message: &ToLearner) -> Self {
        Self::new(session, message)
    }

    pub(crate) fn client(session: SessionId, message: &ClientReply) -> Self {
        Self::new(session, message)
    }

    fn new<M: Message>(session: SessionId, message: &M) -> Self {
        Self {
            session,
            kind: M::KIND as u8,
            payload: codec::encode(message),
        }
    }
}

#[derive(Debug)]
struct Peer {
    control: ControlSender,
    session: Session,
}

/// The table of open sessions; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbound {
    peers: Arc<DashMap<SessionId, Peer>>,
}

impl Outbound {
    pub(crate) fn add(&self, id: SessionId, control: ControlSender, session: Session) {
        self.peers.insert(id, Peer { control, session });
    }

    pub(crate) fn remove(&self, id: SessionId) {
        self.peers.remove(&id);
    }

    /// Is that session still there?
    pub(crate) fn is_open(&self, id: SessionId) -> bool {
        self.peers.contains_key(&id)
    }

    /// Queues a frame. A peer that does not read loses its session, not everybody's time: what it
    /// missed is said again when it comes back.
    pub(crate) fn send(&self, outgoing: &Outgoing) {
        let Some(peer) = self.peers.get(&outgoing.session) else {
            return;
        };
        if let Err(error) = peer.control.try_send(outgoing.kind, &outgoing.payload) {
            tracing::warn!(peer = peer.session.peer_name(), %error, "a message cannot be sent");
            close_with(&peer.session, &link_fault(&error));
        }
    }

    /// Ends a session, saying why.
    pub(crate) fn close(&self, id: SessionId, fault: &Fault) {
        if let Some(peer) = self.peers.get(&id) {
            tracing::warn!(peer = peer.session.peer_name(), %fault, "session closed");
            close_with(&peer.session, fault);
        }
    }

    /// Ends every session.
    pub(crate) fn close_all(&self, reason: &str) {
        for peer in self.peers.iter() {
            peer.session.close(close_code::NORMAL, reason);
        }
    }
}
