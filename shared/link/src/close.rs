//! How a session ends, and the numbers its two sides exchange about it.

use std::fmt;

use quinn::ConnectionError;

use crate::limits::CLOSE_REASON_CHARS_MAX;

/// Numbers carried by a close. Below [`close_code::APPLICATION_MIN`] they belong to the link.
pub mod close_code {
    /// Nothing more to say.
    pub const NORMAL: u32 = 0;
    /// A frame announced more bytes than the cap allows.
    pub const FRAME_TOO_LARGE: u32 = 1;
    /// The control stream ended inside a frame.
    pub const FRAME_TRUNCATED: u32 = 2;
    /// A peer was silent after its handshake.
    pub const FIRST_FRAME_TIMEOUT: u32 = 3;
    /// The control stream did not begin as ours do.
    pub const BAD_PREFACE: u32 = 4;
    /// The verified certificate names no role of this cluster.
    pub const NO_ROLE: u32 = 5;
    /// A bulk object was given up by its sender or reader.
    pub const ABANDONED: u32 = 6;
    /// First number free for the protocol above.
    pub const APPLICATION_MIN: u32 = 16;
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This side closed it.
    Local,
    /// The peer closed it, saying why.
    Peer {
        /// See [`close_code`].
        code: u32,
        /// The peer's own words, cut and without control characters.
        reason: String,
    },
    /// Nothing was heard for the idle timeout: killed, hung or unplugged.
    IdleTimeout,
    /// The peer's process restarted and knows nothing of this session.
    Reset,
    /// QUIC itself gave up.
    Transport {
        /// What the transport reported.
        detail: String,
    },
}

impl CloseReason {
    /// True where nobody decided to close: the peer died or the network did.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::IdleTimeout | Self::Reset | Self::Transport { .. }
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("closed by this side"),
            Self::Peer { code, reason } if reason.is_empty() => {
                write!(f, "closed by the peer (code {code})")
            }
            Self::Peer { code, reason } => {
                write!(f, "closed by the peer (code {code}): {reason}")
            }
            Self::IdleTimeout => f.write_str("no sign of life within the idle timeout"),
            Self::Reset => f.write_str("the peer restarted and lost the session"),
            Self::Transport { detail } => write!(f, "transport error: {detail}"),
        }
    }
}

impl From<ConnectionError> for CloseReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::Local,
            ConnectionError::ApplicationClosed(close) => Self::Peer {
                code: u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX),
                reason: peer_text(&close.reason),
            },
            ConnectionError::TimedOut => Self::IdleTimeout,
            ConnectionError::Reset => Self::Reset,
            other => Self::Transport {
                detail: peer_text(other.to_string().as_bytes()),
            },
        }
    }
}

/// Text from outside, fit for a log line: cut, and control characters replaced.
pub(crate) fn peer_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .take(CLOSE_REASON_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
