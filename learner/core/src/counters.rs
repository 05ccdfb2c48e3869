//! Figures for people.

/// What became of results, since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accepted.
    pub accepted: u64,
    /// Settled as failed, whoever found it.
    pub failed: u64,
    /// Results of rollouts that were settled before.
    pub duplicates: u64,
    /// Results that settle nothing: undecodable, of another job, or never admitted.
    pub unusable: u64,
    /// Settled as failed because another version than the pinned one played.
    pub mismatched: u64,
    /// Accepted although their arithmetic is of another class than the learner's.
    pub foreign_numerics: u64,
    /// Groups.
    pub groups: GroupCounters,
}

/// What became of groups that were not trained, and of those that lost members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounters {
    /// Trained with fewer members than they should have.
    pub degraded: u64,
    /// Dropped: fewer members left than the configured least.
    pub short: u64,
    /// Dropped: played by a version older than the staleness bound.
    pub stale: u64,
}
