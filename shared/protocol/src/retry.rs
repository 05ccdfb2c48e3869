//! How often, how fast and for how long a rollout is tried.
//!
//! ```text
//!  scheduled        leased           ended            leased again             closed
//!     │── schedule ──▶│                │── schedule ──▶│                          │
//!     │   to start    │─ start to ────▶│   to start    │─ start to ──────────────▶│
//!     │               │  close         │               │  close                   │
//!     │               │··heartbeat··▶  │               │··heartbeat··▶            │
//!     │──────────────────────── schedule to close ───────────────────────────────▶│
//! ```
//!
//! The names are Temporal's, and 0 switches each of the four off. A rollout is *scheduled* when its
//! job was accepted, its extent was put, or its learner admitted it; before a further attempt,
//! `schedule_to_start` counts anew from the end of the wait.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fault::{ErrorCode, Fault};
use crate::limits::HEARTBEAT_TIMEOUT_MS_MIN;

/// Budgets, waits and time-outs of a job's rollouts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Failures of the environment or the episode that are answered with a further attempt.
    pub retries: u32,
    /// Lost workers that are answered with a further attempt; one more makes it poison.
    pub losses: u32,
    /// Wait before the first retry; doubles each time.
    pub backoff_ms: u64,
    /// The wait never exceeds this.
    pub backoff_max_ms: u64,
    /// An attempt that runs longer has failed.
    pub start_to_close_ms: u64,
    /// A rollout that waits longer than this for a worker has failed for good.
    #[serde(default)]
    pub schedule_to_start_ms: u64,
    /// A rollout that is not closed this long after it was scheduled has failed for good, whatever
    /// was tried until then.
    #[serde(default)]
    pub schedule_to_close_ms: u64,
    /// An attempt that its worker did not name for this long is lost; instead of the coordinator's
    /// own bound. Workers name what they hold every second and in every new session, so this tells
    /// a worker that is gone, not an environment that stands still: that is what
    /// `start_to_close_ms` is for.
    #[serde(default)]
    pub heartbeat_ms: u64,
    /// Only failures with these codes are tried again, and they also when the worker held them to
    /// be final. Empty: whatever the worker does not hold to be final.
    #[serde(default)]
    pub on: BTreeSet<ErrorCode>,
    /// Failures with these codes are final.
    #[serde(default)]
    pub never: BTreeSet<ErrorCode>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries: 3,
            losses: 3,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            start_to_close_ms: 600_000,
            schedule_to_start_ms: 0,
            schedule_to_close_ms: 0,
            heartbeat_ms: 0,
            on: BTreeSet::new(),
            never: BTreeSet::new(),
        }
    }
}

impl RetryPolicy {
    /// Is an attempt that failed with this code tried again, if the budget allows it?
    #[must_use]
    pub fn tries_again(&self, code: ErrorCode, worker_says: bool) -> bool {
        if self.never.contains(&code) {
            return false;
        }
        if self.on.is_empty() {
            worker_says
        } else {
            self.on.contains(&code)
        }
    }

    /// Checks what a peer could have set to nonsense.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn validate(&self) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::new(ErrorCode::InvalidRequest, what));
        if self.heartbeat_ms != 0 && self.heartbeat_ms < HEARTBEAT_TIMEOUT_MS_MIN {
            return bad(format!(
                "heartbeat_ms = {}: workers renew once a second, so that less than \
                 {HEARTBEAT_TIMEOUT_MS_MIN} would lose healthy ones; 0 switches it off",
                self.heartbeat_ms
            ));
        }
        for (field, codes) in [("retry.on", &self.on), ("retry.never", &self.never)] {
            if let Some(code) = codes.iter().find(|code| !ends_attempts(**code)) {
                return bad(format!("{field}: {code} is no failure of an attempt"));
            }
        }
        if let Some(code) = self.on.intersection(&self.never).next() {
            return bad(format!("{code} is in retry.on and in retry.never"));
        }
        Ok(())
    }
}

/// Failures that are told apart by what one does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The environment's own.
    Environment,
    /// The attempt took too long.
    Timeout,
    /// The model, its tokenizer or its context.
    Policy,
}

impl FailureClass {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Environment, Self::Timeout, Self::Policy];

    /// Its name in recipes and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Timeout => "timeout",
            Self::Policy => "policy",
        }
    }

    /// What belongs to it.
    #[must_use]
    pub const fn codes(self) -> &'static [ErrorCode] {
        match self {
            Self::Environment => &[
                ErrorCode::EnvUnknown,
                ErrorCode::EnvPanic,
                ErrorCode::EnvFailed,
                ErrorCode::RewardInvalid,
            ],
            Self::Timeout => &[ErrorCode::AttemptTimeout],
            Self::Policy => &[
                ErrorCode::ModelUnsupported,
                ErrorCode::TokenizerInvalid,
                ErrorCode::AdapterMismatch,
                ErrorCode::ContextExceeded,
            ],
        }
    }
}

/// Can an attempt fail with it, so that a retry policy may speak of it? Lost workers and attempts
/// that were given back have budgets of their own, and what ends a rollout ends it.
#[must_use]
pub const fn ends_attempts(code: ErrorCode) -> bool {
    !matches!(
        code,
        ErrorCode::WorkerLost
            | ErrorCode::HeartbeatTimeout
            | ErrorCode::PeerLost
            | ErrorCode::Interrupted
            | ErrorCode::AdapterUnavailable
            | ErrorCode::JobCancelled
            | ErrorCode::AttemptsExhausted
            | ErrorCode::PoisonRollout
            | ErrorCode::ScheduleToStartTimeout
            | ErrorCode::ScheduleToCloseTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_believes_the_worker_and_lists_overrule_it() {
        let code = ErrorCode::EnvPanic;
        let mut policy = RetryPolicy::default();
        assert!(policy.tries_again(code, true) && !policy.tries_again(code, false));
        policy.on.insert(code);
        assert!(policy.tries_again(code, false), "it was asked for by name");
        assert!(!policy.tries_again(ErrorCode::EnvFailed, true));
        policy.on.clear();
        policy.never.insert(code);
        assert!(!policy.tries_again(code, true));
        assert!(policy.tries_again(ErrorCode::EnvFailed, true));
    }

    #[test]
    fn a_policy_speaks_of_attempts_and_not_against_itself() {
        let valid = RetryPolicy {
            heartbeat_ms: HEARTBEAT_TIMEOUT_MS_MIN,
            on: FailureClass::ALL
                .iter()
                .flat_map(|c| c.codes())
                .copied()
                .collect(),
            ..RetryPolicy::default()
        };
        assert_eq!(valid.validate(), Ok(()));
        let refused = |policy: RetryPolicy| policy.validate().expect_err("nonsense").message;
        let short = HEARTBEAT_TIMEOUT_MS_MIN - 1;
        let hasty = RetryPolicy {
            heartbeat_ms: short,
            ..RetryPolicy::default()
        };
        assert!(refused(hasty).contains("heartbeat_ms"));
        let never = BTreeSet::from([ErrorCode::PoisonRollout]);
        let late = RetryPolicy {
            never,
            ..RetryPolicy::default()
        };
        assert!(refused(late).contains("retry.never: POISON_ROLLOUT"));
        let never = BTreeSet::from([ErrorCode::EnvPanic]);
        assert!(refused(RetryPolicy { never, ..valid }).contains("ENV_PANIC is in"));
    }
}
