//! Everything that can happen to a learner.

use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::learner::ToLearner;
use volley_protocol::run::StepReport;
use volley_protocol::{AttemptId, Fault, RolloutId};

/// A moment, in milliseconds since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// One session of this process, never used again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a decision needs to know of a trajectory; the shell holds the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Which attempt produced it.
    pub attempt: AttemptId,
    /// Which adapter played; `None` is the base model.
    pub version: Option<AdapterVersion>,
    /// Arithmetic of its log-probabilities.
    pub numerics: String,
    /// Total reward.
    pub reward: f64,
}

impl Arrival {
    /// The rollout it is a result of.
    #[must_use]
    pub const fn rollout(&self) -> RolloutId {
        self.attempt.rollout
    }
}

/// Everything that can happen to a learner.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session with the coordinator is open.
    CoordinatorUp {
        /// Which one.
        session: SessionId,
    },
    /// It is lost. Older sessions are not listened to any more.
    CoordinatorDown {
        /// Which one.
        session: SessionId,
    },
    /// The coordinator said something.
    Coordinator {
        /// In which session.
        session: SessionId,
        /// What.
        message: ToLearner,
    },
    /// A batch of trajectories came. Batches of a session may overtake each other.
    Arrived {
        /// The worker's session.
        session: SessionId,
        /// Sequence number of the first record; a session counts from 1.
        first_seq: u64,
        /// Each record, or why the shell cannot use it. An unusable record is acknowledged and
        /// settles nothing: its lease ends and the coordinator tries again.
        records: Vec<Result<Arrival, String>>,
    },
    /// The intake is on the disk up to this write ([`crate::Effect::Intake`]).
    Synced {
        /// Number of the write, inclusive.
        upto: u64,
    },
    /// A worker's session ended.
    WorkerGone {
        /// Which one.
        session: SessionId,
    },
    /// The update is made; its step record and the adapter's bytes are synced.
    StepDone {
        /// Figures.
        report: Box<StepReport>,
        /// The version that came out.
        entry: AdapterEntry,
    },
    /// The update could not be made. Nothing was published.
    StepFailed {
        /// Why, such as `LOSS_NONFINITE`.
        fault: Fault,
    },
    /// The process was asked to end.
    Stop,
    /// Time passed. Due at least every 100 ms.
    Tick,
}
