//! Worker ↔ learner, on a session that the worker dials to the learner's address.
//!
//! ```text
//! worker                                learner (sink)
//!    | == bulk: trajectory batch ========> |   sequence numbers rise within the session
//!    | <------------- Delivered{upto} ---- |   synced in the intake: the worker frees the bytes
//!    | -- Fetch{digest} -----------------> |
//!    | <======= bulk: adapter bytes ====== |   or AdapterMissing
//! ```
//!
//! The coordinator's relay is the other sink; it takes the same bulk streams on the worker's
//! coordinator session and answers [`crate::worker::ToWorker::Delivered`].

use serde::{Deserialize, Serialize};

use crate::codec::{FrameKind, Message};
use crate::digest::Digest;

/// First byte of every bulk stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BulkKind {
    /// [`crate::trajectory::encode_batch`]
    Trajectories = 1,
    /// 32 bytes of digest, then the adapter's bytes to the end of the stream.
    Adapter = 2,
}

/// What a worker or a client says to a learner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSink {
    /// Send me that adapter.
    Fetch {
        /// Its name.
        digest: Digest,
    },
}

/// What a learner says to a worker or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSink {
    /// Everything of this session up to this sequence number is settled and synced.
    Delivered {
        /// Last sequence number, inclusive.
        upto: u64,
    },
    /// There is no such adapter here (any more).
    AdapterMissing {
        /// Its name.
        digest: Digest,
    },
}

impl Message for ToSink {
    const KIND: FrameKind = FrameKind::ToSink;
}

impl Message for FromSink {
    const KIND: FrameKind = FrameKind::FromSink;
}
