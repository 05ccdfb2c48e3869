//! Everything that can happen to a worker.

use std::net::SocketAddr;

use volley_protocol::delivery::FromSink;
use volley_protocol::worker::ToWorker;
use volley_protocol::{AdapterVersion, AttemptId, Digest, Epoch, Fault};

/// A moment, in milliseconds since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment that much later.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// One session of this process, never used again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Everything that can happen to a worker.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session with the coordinator is open.
    CoordinatorUp {
        /// Which one.
        session: SessionId,
        /// The coordinator's epoch, from its `Welcome`.
        epoch: Epoch,
    },
    /// It is lost.
    CoordinatorDown {
        /// Which one.
        session: SessionId,
    },
    /// The coordinator said something.
    Coordinator {
        /// In which session.
        session: SessionId,
        /// What.
        message: Box<ToWorker>,
    },
    /// A session with a learner is open.
    SinkUp {
        /// The address that was dialled.
        addr: SocketAddr,
        /// Which session.
        session: SessionId,
    },
    /// It is lost. (A dial that fails needs no word: the core asks again.)
    SinkDown {
        /// The address.
        addr: SocketAddr,
        /// Which session.
        session: SessionId,
    },
    /// A learner said something.
    Sink {
        /// The address.
        addr: SocketAddr,
        /// In which session.
        session: SessionId,
        /// What.
        message: FromSink,
    },
    /// An episode ended with a trajectory. The shell holds its encoded record by attempt.
    EpisodeDone {
        /// Which one.
        attempt: AttemptId,
        /// Size of the record.
        record_bytes: u64,
        /// Tokens sampled.
        tokens: u64,
        /// Tokens prefilled.
        prefill_tokens: u64,
    },
    /// An episode ended without one.
    EpisodeFailed {
        /// Which one.
        attempt: AttemptId,
        /// Why.
        fault: Fault,
        /// False when a further attempt cannot go better.
        retryable: bool,
    },
    /// An adapter is in memory and its digest was checked.
    AdapterReady {
        /// Which one.
        version: AdapterVersion,
    },
    /// An adapter is not to be had, or does not fit. (A lost session is no failure: the core
    /// asks again in the next one.)
    AdapterFailed {
        /// Which one.
        digest: Digest,
        /// Why.
        fault: Fault,
    },
    /// The process was asked to end: finish, deliver, leave.
    DrainSignal,
    /// Time passed. Due at least every 50 ms.
    Tick,
}
