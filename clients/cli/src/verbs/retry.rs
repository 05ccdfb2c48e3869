//! Flags about failures: how often, how fast and for how long a rollout is tried.

use std::collections::BTreeSet;

use clap::Args;
use volley_protocol::{ErrorCode, Fault, RetryPolicy};
use volley_runtime::config::DurationMs;
use volley_runtime::recipe::retry_codes;

/// How failures are answered. Durations are written 500ms, 30s, 10m; 0ms switches a time-out off.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Failures and time-outs")]
pub(crate) struct RetryArgs {
    /// Further attempts of a rollout whose environment fails.
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,
    /// Lost workers that are answered with a further attempt; one more makes a rollout poison.
    #[arg(long, value_name = "N", default_value_t = 3)]
    losses: u32,
    /// Failures that alone are tried again: error codes, or environment, timeout, policy; with
    /// commas between, or repeated. Default: whatever may go better another time.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    retry_on: Vec<String>,
    /// Failures that are final, named in the same way.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    retry_never: Vec<String>,
    /// Give a rollout up that waits longer than this for a worker.
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    schedule_to_start: DurationMs,
    /// End an attempt that runs longer than this; it may be tried again.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    start_to_close: DurationMs,
    /// Give a rollout up that is not done this long after it was submitted, whatever was tried.
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    schedule_to_close: DurationMs,
    /// Count an attempt as lost that its worker does not renew for this long; at least 3s.
    /// Default: the coordinator's own bound.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0ms",
        hide_default_value = true
    )]
    heartbeat: DurationMs,
}

impl RetryArgs {
    /// As the coordinator knows it; a slip of the finger should not travel.
    pub(crate) fn policy(&self) -> Result<RetryPolicy, Fault> {
        let policy = RetryPolicy {
            retries: self.retries,
            losses: self.losses,
            schedule_to_start_ms: self.schedule_to_start.0,
            start_to_close_ms: self.start_to_close.0,
            schedule_to_close_ms: self.schedule_to_close.0,
            heartbeat_ms: self.heartbeat.0,
            on: codes("--retry-on", &self.retry_on)?,
            never: codes("--retry-never", &self.retry_never)?,
            ..RetryPolicy::default()
        };
        policy.validate()?;
        Ok(policy)
    }
}

fn codes(flag: &str, names: &[String]) -> Result<BTreeSet<ErrorCode>, Fault> {
    retry_codes(names)
        .map_err(|what| Fault::new(ErrorCode::InvalidRequest, format!("{flag} {what}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        retry: RetryArgs,
    }

    fn policy(args: &[&str]) -> Result<RetryPolicy, Fault> {
        let args = ["x"].iter().chain(args);
        Line::try_parse_from(args).expect("flags").retry.policy()
    }

    #[test]
    fn nothing_said_is_the_protocols_default() {
        assert_eq!(policy(&[]), Ok(RetryPolicy::default()));
    }

    #[test]
    fn flags_become_a_policy_and_slips_are_told() {
        let told = policy(&["--retry-on", "env_failed,timeout", "--heartbeat", "5s"]);
        let told = told.expect("valid");
        let on = [ErrorCode::EnvFailed, ErrorCode::AttemptTimeout];
        assert_eq!((told.on, told.heartbeat_ms), (on.into(), 5_000));
        let slip = policy(&["--retry-never", "ENV_FAILD"]).expect_err("a slip");
        assert_eq!(slip.code.exit_status(), 2);
        assert!(
            slip.message.contains("--retry-never names `ENV_FAILD`"),
            "{slip}"
        );
        assert!(
            slip.message.contains("did you mean `ENV_FAILED`?"),
            "{slip}"
        );
        assert!(policy(&["--heartbeat", "1s"]).is_err());
    }
}
