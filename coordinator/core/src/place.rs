//! Where a rollout is, and why it may not move.

use volley_protocol::{AttemptId, Fault, WorkerId};

use crate::input::Millis;

/// Where an open rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At a worker.
    Leased {
        worker: WorkerId,
        attempt: AttemptId,
    },
    /// Waiting before it is tried again.
    Backoff { until: Millis },
    /// May be leased again.
    Ready,
    /// Given up; the learner was told and has not settled it yet.
    Failing(Box<Fault>),
}

/// A rollout that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) place: Place,
    /// Attempts given in this epoch.
    pub(crate) attempts: u32,
    /// Workers lost with it.
    pub(crate) losses: u32,
    /// Failures of the environment or the episode.
    pub(crate) failures: u32,
    /// Attempts that ended without anybody's fault.
    pub(crate) returns: u32,
    /// Attempts of this epoch up to this number ended for good and are never taken back.
    pub(crate) dead_upto: u32,
    /// Since when it may be leased again, when it is [`Place::Ready`].
    pub(crate) ready_at: Millis,
}

impl Open {
    /// One that nothing has happened to yet.
    pub(crate) const fn new(place: Place) -> Self {
        Self {
            place,
            attempts: 0,
            losses: 0,
            failures: 0,
            returns: 0,
            dead_upto: 0,
            ready_at: Millis(0),
        }
    }
}

/// What settling a rollout changed.
#[derive(Debug)]
pub(crate) enum Settled {
    /// Nothing: it was settled that way, or accepted, before.
    Known,
    /// It had been recorded as failed; the sink says accepted.
    Corrected,
    /// It is closed now; what was open of it.
    First(Option<Open>),
}

/// Why nothing of a job can be leased, although something is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// It is finished.
    Closed,
    /// The process has just started: workers may come back with what they hold.
    Restoring,
    /// The learner that is its sink is not connected, or has not told what it settled.
    SinkAway,
    /// The learner that has its adapter is not connected.
    PolicyAway,
    /// Its run has no version yet.
    NoVersion,
}
