//! What a learner is told when it starts, and what it found on its disk.

use std::net::SocketAddr;

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::job::JobKind;
use volley_protocol::run::RunInfo;
use volley_protocol::{ErrorCode, Fault, JobSpec, PolicyRef, RangeSet, SinkRef};

use crate::input::Arrival;

/// Rollouts that may be open at once. Every other one settled makes the largest list of ranges
/// in a `Reconcile`: 16 bytes each, half of a control frame.
pub const WINDOW_ROLLOUTS_MAX: u64 = 1 << 15;

/// When a step may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Step after step: version `k` plays exactly the groups of step `k`, nothing else runs.
    Sync,
    /// Rollouts run ahead of the learner; older than the bound is never trained.
    Async {
        /// Steps that may lie between the version that played and the one that is trained.
        max_staleness: u64,
    },
}

/// What a learner is told when it starts; constant over its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// The run; its `steps_total` says when it is finished.
    pub run: RunInfo,
    /// The training job: kind `Train`, policy `Latest(run)`, sink `Learner(run)`.
    pub job: JobSpec,
    /// Step of the version at which the job begins: 0, or more when a finished run is prolonged
    /// with a further job. Groups of this job count from there.
    pub first_step: u64,
    /// Groups in the batch of one step.
    pub groups_per_step: u64,
    /// When a step may begin.
    pub schedule: Schedule,
    /// A group with fewer members left is not trained.
    pub min_group_size: u32,
    /// A checkpoint is written after this many steps, and at the end.
    pub checkpoint_every: u64,
    /// Class of the learner's own arithmetic. Results of another class are trained, and counted.
    pub numerics: String,
    /// Where workers deliver and fetch.
    pub sink_addr: SocketAddr,
}

impl Config {
    /// Rollouts of one step.
    #[must_use]
    pub fn rollouts_per_step(&self) -> u64 {
        self.groups_per_step * u64::from(self.job.group_size)
    }

    /// Groups that may be open at once.
    #[must_use]
    pub fn window_groups(&self) -> u64 {
        match self.schedule {
            Schedule::Sync => self.groups_per_step,
            Schedule::Async { max_staleness } => self
                .groups_per_step
                .saturating_mul(max_staleness.saturating_add(1)),
        }
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// `CONFIG_INVALID` with the field; `INVALID_REQUEST` from the job's own check.
    pub fn validate(&self) -> Result<(), Fault> {
        self.job.validate()?;
        let run = self.run.run;
        let steps = self.run.steps_total.saturating_sub(self.first_step);
        let wanted = u128::from(steps) * u128::from(self.groups_per_step);
        let wanted = wanted * u128::from(self.job.group_size);
        let have = u128::from(self.job.rollouts);
        let window = self
            .window_groups()
            .saturating_mul(u64::from(self.job.group_size));
        let enough = match self.schedule {
            Schedule::Sync => have == wanted,
            Schedule::Async { .. } => have >= wanted,
        };
        let checks = [
            (self.job.kind == JobKind::Train, "job.kind is not Train"),
            (
                self.job.policy == PolicyRef::Latest(run),
                "job.policy is not the run's newest version",
            ),
            (
                self.job.sink == SinkRef::Learner(run),
                "job.sink is not this run's learner",
            ),
            (steps > 0, "steps_total leaves no step to make"),
            (self.groups_per_step > 0, "groups_per_step is 0"),
            (self.checkpoint_every > 0, "checkpoint_every is 0"),
            (
                (1..=self.job.group_size).contains(&self.min_group_size),
                "min_group_size is outside 1..=group_size",
            ),
            (enough, "job.rollouts do not fill the steps"),
            (
                window <= WINDOW_ROLLOUTS_MAX,
                "groups_per_step, group_size and max_staleness open too many rollouts at once",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(Fault::new(ErrorCode::ConfigInvalid, *what)),
        }
    }
}

/// What the shell found on its disk. A new run has version 0 and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Every version whose bytes are there, oldest first; the last one is the head. Where the
    /// arithmetic did not reproduce a digest the shell has raised the lineage already.
    pub versions: Vec<AdapterEntry>,
    /// Groups that a step record names as trained or dropped.
    pub closed: RangeSet,
    /// Rollouts that failed: from the step records and from the intake.
    pub failed: RangeSet,
    /// Records of the intake whose groups are not in `closed`. The shell holds their bytes.
    pub pending: Vec<Arrival>,
    /// Number of the oldest intake write that is still there; equal to `intake_next` without one.
    pub intake_first: u64,
    /// Number of the next intake write; from 1.
    pub intake_next: u64,
}
