//! How often, how fast and for how long a training rollout is tried.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use volley_protocol::retry::{FailureClass, RetryPolicy, ends_attempts};
use volley_protocol::{ErrorCode, Fault};

use crate::config::{DurationMs, nearest};

/// Failures, and what follows from them. A duration of `"0ms"` switches its time-out off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Further attempts of a rollout whose environment fails. Default 3.
    pub retries: u32,
    /// Lost workers that are answered with a further attempt; one more makes it poison. Default 3.
    pub losses: u32,
    /// Wait before the first retry; doubles each time, within 25 %. Default `"100ms"`.
    pub backoff: DurationMs,
    /// The wait never exceeds this. Default `"10s"`.
    pub backoff_max: DurationMs,
    /// Failures that alone are tried again: error codes, or `environment`, `timeout`, `policy`.
    /// Default: whatever may go better another time.
    pub on: Vec<String>,
    /// Failures that are final, named in the same way. Default: none.
    pub never: Vec<String>,
    /// An attempt that runs longer has failed. Default `"10m"`.
    pub start_to_close: DurationMs,
    /// A rollout that waits longer for a worker has failed. Default `"0ms"`.
    pub schedule_to_start: DurationMs,
    /// A rollout that is not done this long after it was admitted has failed. Default `"0ms"`.
    pub schedule_to_close: DurationMs,
    /// An attempt that its worker does not renew for this long is lost; at least `"3s"`. Default
    /// `"0ms"`: the coordinator's own bound.
    pub heartbeat: DurationMs,
}

impl Default for Retry {
    fn default() -> Self {
        let policy = RetryPolicy::default();
        Self {
            retries: policy.retries,
            losses: policy.losses,
            backoff: DurationMs(policy.backoff_ms),
            backoff_max: DurationMs(policy.backoff_max_ms),
            on: Vec::new(),
            never: Vec::new(),
            start_to_close: DurationMs(policy.start_to_close_ms),
            schedule_to_start: DurationMs(policy.schedule_to_start_ms),
            schedule_to_close: DurationMs(policy.schedule_to_close_ms),
            heartbeat: DurationMs(policy.heartbeat_ms),
        }
    }
}

impl Retry {
    /// As the coordinator knows it.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming what is unknown or contradicts itself.
    pub fn policy(&self) -> Result<RetryPolicy, Fault> {
        let bad = |what: String| Fault::new(ErrorCode::InvalidRequest, what);
        let policy = RetryPolicy {
            retries: self.retries,
            losses: self.losses,
            backoff_ms: self.backoff.0,
            backoff_max_ms: self.backoff_max.0,
            start_to_close_ms: self.start_to_close.0,
            schedule_to_start_ms: self.schedule_to_start.0,
            schedule_to_close_ms: self.schedule_to_close.0,
            heartbeat_ms: self.heartbeat.0,
            on: retry_codes(&self.on).map_err(|what| bad(format!("retry.on {what}")))?,
            never: retry_codes(&self.never).map_err(|what| bad(format!("retry.never {what}")))?,
        };
        policy.validate()?;
        Ok(policy)
    }
}

/// The codes that these names stand for: error codes in any case, or classes of them.
///
/// # Errors
/// What is wrong with one of them, with the nearest name that is right.
pub fn retry_codes<S: AsRef<str>>(names: &[S]) -> Result<BTreeSet<ErrorCode>, String> {
    let mut codes = BTreeSet::new();
    for name in names {
        let name = name.as_ref().trim();
        if let Some(class) = FailureClass::ALL.iter().find(|class| class.name() == name) {
            codes.extend(class.codes());
            continue;
        }
        let upper = name.to_ascii_uppercase();
        let code = ErrorCode::from_name(&upper).ok_or_else(|| unknown(name, &upper))?;
        if !ends_attempts(code) {
            return Err(format!(
                "names {code}, which is no failure of an attempt; lost workers have a budget of \
                 their own, `losses`"
            ));
        }
        codes.insert(code);
    }
    Ok(codes)
}

fn unknown(name: &str, upper: &str) -> String {
    let classes = FailureClass::ALL.iter().map(|class| class.name());
    let attempts = ErrorCode::ALL.iter().filter(|code| ends_attempts(**code));
    let near = nearest(name, classes).or_else(|| nearest(upper, attempts.map(|code| code.name())));
    let due = near.map_or_else(
        || "due is an error code, or `environment`, `timeout` or `policy`".to_owned(),
        |near| format!("did you mean `{near}`?"),
    );
    format!("names `{name}`, which is no failure; {due}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_classes_are_known_and_slips_are_set_right() {
        let codes = retry_codes(&["env_panic", "timeout"]).expect("known");
        let due = [ErrorCode::EnvPanic, ErrorCode::AttemptTimeout];
        assert_eq!(codes, BTreeSet::from(due));
        let told = |name: &str| retry_codes(&[name]).expect_err("unknown");
        assert!(told("enviroment").contains("did you mean `environment`?"));
        assert!(told("ENV_PANIK").contains("did you mean `ENV_PANIC`?"));
        assert!(told("weather").contains("due is an error code"));
        assert!(told("WORKER_LOST").contains("`losses`"));
    }

    #[test]
    fn the_default_is_the_protocols() {
        assert_eq!(Retry::default().policy(), Ok(RetryPolicy::default()));
    }
}
