//! The coordinator decides here; `coordinator/src` does.
//!
//! [`Coordinator::apply`] takes one [`Input`] and appends [`Effect`]s. Nothing in this crate does
//! IO, reads a clock, draws a random number or depends on the order of a hash.

mod config;
mod effect;
mod input;
mod record;

pub use config::*;
pub use effect::Effect;
pub use input::{Input, Millis, SessionId};
pub use record::Record;
use volley_protocol::Epoch;
use volley_protocol::snapshot::ClusterSnapshot;

/// A broken invariant: a defect of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant `{invariant}` is broken: {detail}")]
pub struct Violation {
    /// Name of the function that found it.
    pub invariant: &'static str,
    /// What was found.
    pub detail: String,
}

/// Decides everything that happens in a cluster.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    epoch: Epoch,
}

impl Coordinator {
    /// A coordinator that remembers nothing.
    #[must_use]
    pub const fn new(config: CoordinatorConfig, epoch: Epoch) -> Self {
        Self { config, epoch }
    }

    /// A coordinator that remembers what was recorded. `epoch` is larger than every recorded one.
    #[must_use]
    pub fn restore(
        config: CoordinatorConfig,
        epoch: Epoch,
        records: impl IntoIterator<Item = Record>,
    ) -> Self {
        for _ in records {}
        Self::new(config, epoch)
    }

    /// Handles one event.
    pub fn apply(&mut self, _now: Millis, _input: Input, _effects: &mut Vec<Effect>) {
        debug_assert!(self.config.scaling.min_workers <= self.config.scaling.max_workers);
    }

    /// When the shell must say [`Input::Tick`] at the latest.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<Millis> {
        None
    }

    /// The shortest list of records that rebuilds this state.
    #[must_use]
    pub fn compacted(&self) -> Vec<Record> {
        vec![Record::Epoch(self.epoch)]
    }

    /// The cluster, for people.
    #[must_use]
    pub fn snapshot(&self, now: Millis) -> ClusterSnapshot {
        ClusterSnapshot {
            cluster: self.config.cluster.clone(),
            version: self.config.version.clone(),
            epoch: self.epoch,
            pid: self.config.pid,
            uptime_ms: now.0,
            jobs: Vec::new(),
            workers: Vec::new(),
            runs: Vec::new(),
            learner_pids: Vec::new(),
            dispatchable: 0,
            leased: 0,
            rollouts_per_s: 0.0,
            tokens_per_s: 0.0,
            queue_history: Vec::new(),
            scaling: volley_protocol::snapshot::ScalingSummary::default(),
            problems: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Checks every invariant by looking at everything: for tests and simulation.
    ///
    /// # Errors
    /// The first [`Violation`] found.
    pub const fn check_invariants(&self) -> Result<(), Violation> {
        Ok(())
    }
}
