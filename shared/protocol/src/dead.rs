//! Dead letters: rollouts that are not tried any more, and what was the matter with them.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::ids::JobId;

/// A rollout that was given up: its budget is used up, its failure final, or its time over.
/// What was cancelled, or not wanted any more, is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Which one of its job.
    pub index: u64,
    /// What it played.
    pub instance: u64,
    /// Why; texts of at most [`crate::limits::DEAD_LETTER_TEXT_BYTES_MAX`] each.
    pub fault: Fault,
    /// Attempts that failed.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub losses: u32,
    /// Attempts that were given back without blame.
    pub returns: u32,
    /// When it was given up: Unix time, by the coordinator's clock.
    pub at_ms: u64,
    /// The job in which it was tried anew, if somebody asked for that.
    pub retried_as: Option<JobId>,
}
