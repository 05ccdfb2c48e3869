//! Whether and when a rollout is tried again: arithmetic only.
//!
//! Three budgets, kept apart. *Losses*: a worker vanished with it; too many and the rollout is
//! poison. *Failures*: the environment or the episode failed. *Returns*: nobody's fault (an adapter
//! not to be had, a worker that stops); bounded only so that nothing is tried for ever.

use volley_protocol::seed::mix64;
use volley_protocol::{AttemptId, ErrorCode, Fault, RetryPolicy};

use crate::config::RETURNS_MAX;

/// How an attempt ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its worker was lost, or stopped renewing it.
    Lost { fault: Fault },
    /// It failed.
    Failed { fault: Fault, retryable: bool },
    /// It was given back.
    Returned { fault: Fault },
}

impl Ending {
    /// A failure, or a return when its cause lies outside the episode.
    pub(crate) fn of_fault(fault: Fault, retryable: bool) -> Self {
        match fault.code {
            ErrorCode::AdapterUnavailable
            | ErrorCode::PeerLost
            | ErrorCode::WorkerLost
            | ErrorCode::Interrupted => Self::Returned { fault },
            _ => Self::Failed { fault, retryable },
        }
    }
}

/// Endings so far, the latest included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) losses: u32,
    pub(crate) failures: u32,
    pub(crate) returns: u32,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A further attempt, after this long.
    Again { wait_ms: u64 },
    /// No further attempt.
    GiveUp(Fault),
}

/// Decides after an attempt ended.
pub(crate) fn next(
    policy: &RetryPolicy,
    attempt: AttemptId,
    tally: Tally,
    ending: &Ending,
) -> Next {
    debug_assert!(tally.losses + tally.failures + tally.returns > 0);
    match ending {
        Ending::Lost { fault } if tally.losses > policy.losses => {
            Next::GiveUp(poison(tally.losses, fault))
        }
        // A healthy rollout whose worker was killed should not wait: only repetition is suspicious.
        Ending::Lost { .. } => again(policy, attempt, tally.losses - 1),
        Ending::Failed { fault, retryable } if !policy.tries_again(fault.code, *retryable) => {
            Next::GiveUp(fault.clone())
        }
        Ending::Failed { fault, .. } if tally.failures > policy.retries => {
            Next::GiveUp(exhausted(tally.failures, fault))
        }
        Ending::Failed { .. } => again(policy, attempt, tally.failures),
        Ending::Returned { fault } if tally.returns > RETURNS_MAX => {
            Next::GiveUp(exhausted(tally.returns, fault))
        }
        Ending::Returned { .. } => again(policy, attempt, tally.returns - 1),
    }
}

/// The wait before repetition `nth`: none before 0, then doubling, within ±25 %, never over the
/// policy's bound. The spread comes from the attempt's own name, so equal histories wait equally.
pub(crate) fn backoff_ms(policy: &RetryPolicy, attempt: AttemptId, nth: u32) -> u64 {
    if nth == 0 {
        return 0;
    }
    let doubled = policy.backoff_ms.saturating_mul(1u64 << (nth - 1).min(32));
    let base = doubled.min(policy.backoff_max_ms);
    let rollout = attempt.rollout;
    let name = (rollout.job.0 >> 64) as u64 ^ rollout.job.0 as u64 ^ mix64(rollout.index);
    let noise = mix64(name ^ (u64::from(attempt.number) << 32) ^ attempt.epoch.0);
    let spread = base / 2;
    let jitter = if spread == 0 { 0 } else { noise % (spread + 1) };
    (base - base / 4 + jitter).min(policy.backoff_max_ms)
}

fn again(policy: &RetryPolicy, attempt: AttemptId, nth: u32) -> Next {
    Next::Again {
        wait_ms: backoff_ms(policy, attempt, nth),
    }
}

fn poison(losses: u32, last: &Fault) -> Fault {
    Fault::new(
        ErrorCode::PoisonRollout,
        format!(
            "{losses} workers were lost while they ran it, the last with {}: {}",
            last.code, last.message
        ),
    )
    .with_hint("look for a crash or memory use of its environment on this instance")
}

fn exhausted(attempts: u32, last: &Fault) -> Fault {
    Fault {
        code: ErrorCode::AttemptsExhausted,
        message: format!(
            "{attempts} attempts failed, the last with {}: {}",
            last.code, last.message
        ),
        hint: last.hint.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volley_protocol::{Epoch, JobId, RolloutId};

    use super::*;

    fn attempt(index: u64, number: u32) -> AttemptId {
        let job = JobId(5);
        AttemptId {
            rollout: RolloutId { job, index },
            epoch: Epoch(1),
            number,
        }
    }

    fn fault(code: ErrorCode) -> Fault {
        Fault::new(code, "x")
    }

    #[test]
    fn the_first_loss_costs_no_time_and_the_last_is_poison() {
        let policy = RetryPolicy::default();
        let tally = |losses| Tally {
            losses,
            ..Tally::default()
        };
        let lost = Ending::Lost {
            fault: fault(ErrorCode::HeartbeatTimeout),
        };
        let first = next(&policy, attempt(0, 1), tally(1), &lost);
        assert_eq!(first, Next::Again { wait_ms: 0 });
        let Next::GiveUp(last) = next(&policy, attempt(0, 4), tally(4), &lost) else {
            panic!("the fourth loss of three allowed ones");
        };
        assert_eq!(last.code, ErrorCode::PoisonRollout);
        assert!(last.message.contains("HEARTBEAT_TIMEOUT"));
    }

    #[test]
    fn failures_use_their_own_budget_and_keep_the_last_fault() {
        let policy = RetryPolicy::default();
        let tally = Tally {
            losses: 3,
            failures: 4,
            returns: 50,
        };
        let ending = Ending::of_fault(fault(ErrorCode::EnvPanic), true);
        let Next::GiveUp(last) = next(&policy, attempt(0, 9), tally, &ending) else {
            panic!("the budget is used up");
        };
        assert_eq!(last.code, ErrorCode::AttemptsExhausted);
        assert!(last.message.contains("ENV_PANIC"));
        let hopeless = Ending::of_fault(fault(ErrorCode::EnvUnknown), false);
        let Next::GiveUp(last) = next(&policy, attempt(0, 1), tally, &hopeless) else {
            panic!("not retryable");
        };
        assert_eq!(last.code, ErrorCode::EnvUnknown);
    }

    #[test]
    fn the_policy_chooses_by_code_and_losses_are_not_its_business() {
        let once = Tally {
            failures: 1,
            ..Tally::default()
        };
        let ends = |policy: &RetryPolicy, code, retryable| {
            let ending = Ending::of_fault(fault(code), retryable);
            matches!(next(policy, attempt(0, 1), once, &ending), Next::GiveUp(_))
        };
        let never = RetryPolicy {
            never: [ErrorCode::EnvFailed].into(),
            ..RetryPolicy::default()
        };
        assert!(ends(&never, ErrorCode::EnvFailed, true));
        assert!(!ends(&never, ErrorCode::EnvPanic, true));
        let only = RetryPolicy {
            on: [ErrorCode::ContextExceeded].into(),
            ..RetryPolicy::default()
        };
        assert!(ends(&only, ErrorCode::EnvFailed, true));
        assert!(!ends(&only, ErrorCode::ContextExceeded, false));
        let lost = Ending::Lost {
            fault: fault(ErrorCode::WorkerLost),
        };
        let tally = Tally {
            losses: 1,
            ..Tally::default()
        };
        let after = next(&only, attempt(0, 1), tally, &lost);
        assert_eq!(after, Next::Again { wait_ms: 0 });
    }

    #[test]
    fn attempts_that_fail_together_do_not_come_back_together() {
        let policy = RetryPolicy::default();
        let waits = (0..64).map(|index| backoff_ms(&policy, attempt(index, 1), 3));
        let different: std::collections::BTreeSet<u64> = waits.collect();
        assert!(different.len() > 32, "{different:?}");
    }

    #[test]
    fn a_missing_adapter_is_nobodys_fault() {
        let ending = Ending::of_fault(fault(ErrorCode::AdapterUnavailable), true);
        assert!(matches!(ending, Ending::Returned { .. }));
    }

    proptest! {
        #[test]
        fn waits_stay_in_their_bounds(index in 0u64..1000, number in 1u32..9, nth in 0u32..80, ms in 0u64..5000) {
            let policy = RetryPolicy { backoff_ms: ms, ..RetryPolicy::default() };
            let wait = backoff_ms(&policy, attempt(index, number), nth);
            prop_assert!(wait <= policy.backoff_max_ms);
            prop_assert_eq!(wait, backoff_ms(&policy, attempt(index, number), nth));
            if nth == 1 && ms > 0 {
                prop_assert!(wait >= ms - ms / 4 && wait <= ms + ms / 4 + 1);
            }
        }
    }
}
