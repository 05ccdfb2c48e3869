//! The first words of every session.
//!
//! ```text
//! dialler                         listener
//!    | -- Hello ------------------> |   version, who I am (the role stands in the certificate)
//!    | <------------- Welcome ----- |   or Refused, then the session ends
//! ```

use serde::{Deserialize, Serialize};

use crate::codec::{FrameKind, Message};
use crate::fault::Fault;
use crate::ids::{Epoch, PeerId};

/// The ladder of wire versions. One sentence each; the last is what this build speaks.
///
/// 1. First protocol: everything in this crate.
/// 2. Sampling has stop strings.
/// 3. Retry policies choose by error code and have four time-outs; jobs can be done with their first
///    results and have priorities; dead letters; queues take payloads and say when to come back;
///    results can be read where they are.
pub const PROTOCOL_VERSION: u16 = 3;

/// Who dials. The role is *not* here: it is taken from the verified certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the dialler. First field for ever, so that any version reads it.
    pub protocol: u16,
    /// Constant over reconnects of one process.
    pub peer: PeerId,
    /// For people: `worker-3`, `learner`, `volley map`.
    pub name: String,
    /// Process id on its host; 0 when unknown.
    pub pid: u32,
}

impl Hello {
    /// The version in a payload that says hello, whatever follows it: a peer of another version
    /// is told so, though its hello may be longer than ours.
    #[must_use]
    pub fn version_in(payload: &[u8]) -> Option<u16> {
        payload
            .first_chunk()
            .map(|bytes| u16::from_le_bytes(*bytes))
    }
}

/// The listener's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// The conversation may begin.
    Accepted {
        /// Protocol the listener speaks.
        protocol: u16,
        /// Name of the cluster.
        cluster: String,
        /// Epoch of the coordinator; 0 from a learner's sink.
        epoch: Epoch,
        /// Identity of the listening process.
        peer: PeerId,
    },
    /// No conversation; the session is closed after this.
    Refused(Fault),
}

impl Message for Hello {
    const KIND: FrameKind = FrameKind::Hello;
}

impl Message for Welcome {
    const KIND: FrameKind = FrameKind::Welcome;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn hello_bytes_are_frozen() {
        let hello = Hello {
            protocol: 1,
            peer: PeerId(0x0102),
            name: "w".into(),
            pid: 7,
        };
        let golden = [
            1, 0, // protocol
            2, 1, 0, 0, 0, 0, 0, 0, // peer
            1, 0, 0, 0, 0, 0, 0, 0, b'w', // name
            7, 0, 0, 0, // pid
        ];
        assert_eq!(codec::encode(&hello), golden);
        assert_eq!(codec::decode::<Hello>(&golden).expect("golden"), hello);
        let of_tomorrow = [&[2, 1], &golden[2..], &[9]].concat();
        assert_eq!(Hello::version_in(&golden), Some(1));
        assert_eq!(Hello::version_in(&of_tomorrow), Some(0x0102));
        assert_eq!(Hello::version_in(&[1]), None);
    }
}
