//! Everything that a learner's shell is asked to do, in the order in which it is to be done.

use volley_protocol::learner::FromLearner;
use volley_protocol::run::RunState;
use volley_protocol::{AdapterVersion, Digest, GroupIndex, RolloutId};

use crate::input::SessionId;

/// One record of the batch that just arrived, to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Place in [`crate::Input::Arrived`]'s `records`.
    pub record: usize,
    /// Which rollout it settles; the shell holds its bytes under this name.
    pub rollout: RolloutId,
}

/// A group as it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which one.
    pub index: GroupIndex,
    /// Members with a result, ascending. Never empty.
    pub members: Vec<RolloutId>,
    /// It lost members.
    pub degraded: bool,
}

/// The batch of one step, and everything that its step record must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Step of the version that will come out: `parent.step + 1`.
    pub step: u64,
    /// Version that is trained.
    pub parent: AdapterVersion,
    /// Ascending by group, then by member: a fixed order, so that the arithmetic is the same
    /// whatever order results came in. May be empty when every group was lost: the shell then
    /// makes a step whose gradient is zero, so that the run goes on.
    pub groups: Vec<Group>,
    /// Groups closed since the last step without being trained (too few members, too old).
    pub dropped: Vec<GroupIndex>,
    /// Failed members of `groups` and `dropped`. With these three lists in the step record,
    /// intake writes of closed groups are not needed after a restart.
    pub failed: Vec<RolloutId>,
    /// Time since the learner had nothing to do.
    pub wait_ms: u64,
}

/// Everything that a learner's shell is asked to do.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "effects are few and short-lived; a box would only be in the way of matching"
)]
pub enum Effect {
    /// Say it to the coordinator. Dropped when there is no session; repeated in the next one.
    Send(FromLearner),
    /// Append to the intake, then answer [`crate::Input::Synced`]. Emitted at once in answer to
    /// `Arrived`: records of that batch that are not named in `keep` are dropped by the shell.
    Intake {
        /// Number of the write; rises by one.
        number: u64,
        /// Records whose bytes are appended and stay held.
        keep: Vec<Keep>,
        /// Rollouts appended as failed.
        failed: Vec<RolloutId>,
    },
    /// Bytes held for these rollouts are not needed any more.
    Discard(Vec<RolloutId>),
    /// Intake writes below this number are not needed after a restart: their groups stand in
    /// step records.
    TrimIntake {
        /// First number that is needed.
        below: u64,
    },
    /// Tell a worker that its records are settled and synced.
    Delivered {
        /// The worker's session.
        session: SessionId,
        /// Last sequence number, inclusive.
        upto: u64,
    },
    /// Make this step; answer `StepDone` or `StepFailed`. One at a time.
    Step(Batch),
    /// Write a checkpoint manifest of the head.
    Checkpoint {
        /// Step of the head.
        step: u64,
    },
    /// Delete the bytes of these versions.
    DeleteAdapters(Vec<Digest>),
    /// Flush the sessions and end the process.
    Exit(RunState),
}
