//! What can go wrong between processes. Each message says what happened, where, why and what to
//! do; [`LinkError::code`] is the stable name that tests and pages refer to.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use crate::{close::CloseReason, role::Role};

/// An error of the link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A certificate, key or reset key cannot be used.
    #[error("{what} cannot be used: {detail}; issue a new one from the cluster's authority")]
    IdentityInvalid {
        /// Which object.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A cluster id or peer name is outside the allowed alphabet.
    #[error("{what} {value:?} is not allowed: use {allowed}")]
    InvalidName {
        /// Which name.
        what: &'static str,
        /// The name, cut to a line.
        value: String,
        /// The rule.
        allowed: &'static str,
    },
    /// A secret file can be read by others.
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`, and issue \
             new keys if anyone else uses this machine", path = .path.display())]
    KeyFileExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of the identity could not be read or written.
    #[error("cannot {doing} {path}: {source}", path = .path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The inherited pipe did not deliver an identity.
    #[error("cannot pass the identity through the inherited descriptor: {source}")]
    HandOver {
        /// The system's answer.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("{addr} is in use: stop the other process or choose another port (`--listen`)")]
    AddressInUse {
        /// The wanted address.
        addr: SocketAddr,
    },
    /// The address belongs to no interface of this machine.
    #[error("{addr} is no address of this machine: listen on one of its own, or on 0.0.0.0")]
    AddressNotLocal {
        /// The wanted address.
        addr: SocketAddr,
    },
    /// Binding needs a right this process has not.
    #[error("not allowed to bind {addr}: choose a port above 1023 or grant CAP_NET_BIND_SERVICE")]
    AddressDenied {
        /// The wanted address.
        addr: SocketAddr,
    },
    /// The socket could not be set up for another reason.
    #[error("cannot open a UDP socket on {addr}: {source}")]
    Socket {
        /// The wanted address.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The network thread is not there.
    #[error("the network thread {detail}: restart this process")]
    Runtime {
        /// What happened to it.
        detail: String,
    },
    /// Nobody answered.
    #[error("{addr} cannot be reached: {detail}; check that the process runs and that UDP passes")]
    PeerUnreachable {
        /// The dialled address.
        addr: SocketAddr,
        /// Why we think so.
        detail: String,
    },
    /// Somebody answered, then the handshake stood still.
    #[error(
        "handshake with {addr} did not finish within {limit:?}: the peer is overloaded or \
             packets are lost; try again"
    )]
    HandshakeTimeout {
        /// The peer.
        addr: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// The peer turned us away before looking at our certificate.
    #[error("{addr} refused the connection: {detail}; try again later")]
    PeerRefused {
        /// The peer.
        addr: SocketAddr,
        /// Its words.
        detail: String,
    },
    /// The peer did not accept our certificate.
    #[error(
        "{addr} refused this process's certificate: {detail}; use an identity issued by the \
             authority of that cluster, and check both clocks"
    )]
    IdentityRefused {
        /// The peer.
        addr: SocketAddr,
        /// The TLS alert.
        detail: String,
    },
    /// The peer showed no certificate.
    #[error("{addr} showed no certificate: start it with an identity of this cluster")]
    PeerNoCertificate {
        /// The peer.
        addr: SocketAddr,
    },
    /// The peer's certificate is of another authority, expired or damaged.
    #[error(
        "{addr} is not trusted: {detail}; it must carry a certificate of this cluster's \
             authority, and both clocks must agree"
    )]
    PeerUntrusted {
        /// The peer.
        addr: SocketAddr,
        /// What was wrong.
        detail: String,
    },
    /// The peer belongs to the cluster, but is not what we dialled.
    #[error("{addr} is no {expected}: {detail}; check the address")]
    PeerWrongRole {
        /// The peer.
        addr: SocketAddr,
        /// The role we wanted.
        expected: Role,
        /// What it is.
        detail: String,
    },
    /// The peer's control stream did not begin as ours do.
    #[error(
        "{addr} does not speak volley/1: its control stream begins with {got:02x?}; run the \
             same release on both sides"
    )]
    BadPreface {
        /// The peer.
        addr: SocketAddr,
        /// The first bytes.
        got: [u8; 4],
    },
    /// The peer died or the network failed.
    #[error("lost {peer}: {reason}; dial again")]
    PeerLost {
        /// Who.
        peer: SocketAddr,
        /// How.
        reason: CloseReason,
    },
    /// One of the two sides closed the session.
    #[error("session with {peer} is over: {reason}")]
    SessionClosed {
        /// Who.
        peer: SocketAddr,
        /// By whom and why.
        reason: CloseReason,
    },
    /// A frame announces or carries more than the cap.
    #[error("control frame too large: len={len} max={max}; send large data on a bulk stream")]
    FrameTooLarge {
        /// Announced or given length of the payload.
        len: u64,
        /// The cap.
        max: u64,
    },
    /// The control stream ended in the middle of a frame.
    #[error("control stream ended inside a frame: {have} bytes of it had arrived")]
    FrameTruncated {
        /// Bytes of the unfinished frame, header included.
        have: usize,
    },
    /// A verified peer never spoke.
    #[error("{peer} sent no frame within {limit:?} of its handshake; it was disconnected")]
    FirstFrameTimeout {
        /// The peer.
        peer: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// `try_send` found the queue at its bound.
    #[error("send queue is full ({queued} bytes): the peer reads too slowly; wait with `send`")]
    SendQueueFull {
        /// Bytes waiting.
        queued: usize,
    },
    /// This side declared its control stream finished.
    #[error("the control stream was finished by this side; nothing can follow")]
    SenderFinished,
    /// A bulk object exceeds what its reader allows.
    #[error("bulk object is larger than the {limit} bytes its reader allows")]
    BulkTooLarge {
        /// The reader's cap.
        limit: usize,
    },
    /// The other side of a bulk stream gave it up.
    #[error("bulk object was given up by the other side (code {code}); ask for it again")]
    BulkAborted {
        /// See [`crate::close_code`].
        code: u32,
    },
    /// A bulk stream stood still.
    #[error("bulk object stood still for {limit:?}; ask for it again")]
    BulkStalled {
        /// The deadline.
        limit: Duration,
    },
}

impl LinkError {
    /// The stable name of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::IdentityInvalid { .. } => "IDENTITY_INVALID",
            Self::InvalidName { .. } => "INVALID_NAME",
            Self::KeyFileExposed { .. } => "KEY_FILE_EXPOSED",
            Self::File { .. } => "IDENTITY_FILE",
            Self::HandOver { .. } => "IDENTITY_HAND_OVER",
            Self::AddressInUse { .. } => "ADDRESS_IN_USE",
            Self::AddressNotLocal { .. } => "ADDRESS_NOT_LOCAL",
            Self::AddressDenied { .. } => "ADDRESS_DENIED",
            Self::Socket { .. } => "SOCKET_FAILED",
            Self::Runtime { .. } => "LINK_RUNTIME",
            Self::PeerUnreachable { .. } => "PEER_UNREACHABLE",
            Self::HandshakeTimeout { .. } => "HANDSHAKE_TIMEOUT",
            Self::PeerRefused { .. } => "PEER_REFUSED",
            Self::IdentityRefused { .. } => "IDENTITY_REFUSED",
            Self::PeerNoCertificate { .. } => "PEER_NO_CERTIFICATE",
            Self::PeerUntrusted { .. } => "PEER_UNTRUSTED",
            Self::PeerWrongRole { .. } => "PEER_WRONG_ROLE",
            Self::BadPreface { .. } => "BAD_PREFACE",
            Self::PeerLost { .. } => "PEER_LOST",
            Self::SessionClosed { .. } => "SESSION_CLOSED",
            Self::FrameTooLarge { .. } => "FRAME_TOO_LARGE",
            Self::FrameTruncated { .. } => "FRAME_TRUNCATED",
            Self::FirstFrameTimeout { .. } => "FIRST_FRAME_TIMEOUT",
            Self::SendQueueFull { .. } => "SEND_QUEUE_FULL",
            Self::SenderFinished => "SENDER_FINISHED",
            Self::BulkTooLarge { .. } => "BULK_TOO_LARGE",
            Self::BulkAborted { .. } => "BULK_ABORTED",
            Self::BulkStalled { .. } => "BULK_STALLED",
        }
    }

    /// The error of a session that ended for `reason`.
    pub(crate) fn ended(peer: SocketAddr, reason: CloseReason) -> Self {
        if reason.is_lost() {
            Self::PeerLost { peer, reason }
        } else {
            Self::SessionClosed { peer, reason }
        }
    }
}
