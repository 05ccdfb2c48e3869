//! What can happen to a coordinator. The shell turns every event into one of these.
//!
//! ```text
//! Start                                   once, before anything else
//! RelayRestored                           once per `RelayOpen` that `Start` caused
//! WorkerUp  → Worker*  → WorkerDown       per session; so do learners and clients
//! WorkerExited, ProvisionFailed           what became of a `StartWorker`
//! RelaySettled                            the relay has synced results
//! Tick                                    at `Coordinator::next_deadline`
//! ```
//!
//! The shell has checked the role in the peer's certificate: a worker's session only ever yields
//! `Worker…` inputs, and so on. Session ids are never used twice in one life of the process.

use volley_protocol::client::ClientRequest;
use volley_protocol::learner::FromLearner;
use volley_protocol::worker::FromWorker;
use volley_protocol::{JobId, PeerId, RangeSet, RolloutId, WorkerId};

/// Monotonic milliseconds, given by the shell. Where they start is the shell's choice; unix time
/// at start-up plus the time since then makes recorded moments meaningful to people.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `ms` later.
    #[must_use]
    pub const fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; 0 when that is in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One connection of one peer, named by the shell; never used again after it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The process starts. First input of every life, after `new` or `restore`.
    Start,
    /// A worker's session is open; its `Register` follows.
    WorkerUp {
        /// The new session.
        session: SessionId,
        /// Who, constant over reconnects of one process.
        worker: WorkerId,
        /// For people.
        name: String,
        /// On its host; 0 when unknown.
        pid: u32,
    },
    /// A worker said something.
    Worker {
        /// On which session.
        session: SessionId,
        /// What.
        message: FromWorker,
    },
    /// A worker's session is over.
    WorkerDown {
        /// Which one.
        session: SessionId,
        /// Its process is known to be gone: nothing is gained by waiting for it.
        process_dead: bool,
    },
    /// A process that `StartWorker` caused has ended (pidfd).
    WorkerExited {
        /// The request that it answered.
        provision: u64,
        /// Its process id.
        pid: u32,
    },
    /// `StartWorker` could not be carried out.
    ProvisionFailed {
        /// Which request.
        provision: u64,
        /// Why, as a sentence.
        reason: String,
    },
    /// A learner's session is open; its `Register` follows.
    LearnerUp {
        /// The new session.
        session: SessionId,
        /// Who.
        peer: PeerId,
        /// On its host; 0 when unknown.
        pid: u32,
    },
    /// A learner said something.
    Learner {
        /// On which session.
        session: SessionId,
        /// What.
        message: FromLearner,
    },
    /// A learner's session is over.
    LearnerDown {
        /// Which one.
        session: SessionId,
    },
    /// A client or monitor asks.
    Client {
        /// On which session.
        session: SessionId,
        /// What.
        request: ClientRequest,
        /// Its certificate is a monitor's: it may only read.
        monitor: bool,
    },
    /// A client's session is over.
    ClientDown {
        /// Which one.
        session: SessionId,
    },
    /// The relay has synced the first result of each of these rollouts: it accepted them. Never
    /// said of a rollout whose record is a failure ([`crate::Effect::RelayFailed`]).
    RelaySettled {
        /// Which ones; at most [`volley_protocol::limits::BATCH_ENTRIES_MAX`] at a time.
        entries: Vec<RolloutId>,
    },
    /// What the relay's segments of a restored job hold.
    RelayRestored {
        /// Which job.
        job: JobId,
        /// Rollouts with a result.
        accepted: RangeSet,
        /// Rollouts with a final failure record.
        failed: RangeSet,
    },
    /// Time has passed.
    Tick,
}
