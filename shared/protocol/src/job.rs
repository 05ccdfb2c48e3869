//! What a job is: plain data, from the client to the worker.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterVersion;
use crate::fault::{ErrorCode, Fault};
use crate::ids::{GroupIndex, JobId, RunId};
use crate::limits::{
    ENV_OPTIONS_BYTES_MAX, ENV_OPTIONS_MAX, GROUP_SIZE_MAX, JOB_ROLLOUTS_MAX, NAME_BYTES_MAX,
    PRIORITY_MAX, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX,
};
use crate::seed;

pub use crate::retry::RetryPolicy;

/// How a job lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// A fixed set of rollouts, all dispatchable at once.
    Map,
    /// An open queue: `put` adds to it.
    Queue,
    /// Rollouts for a learner, dispatchable up to what the learner admits.
    Train,
    /// Dead letters of another job, tried anew. The coordinator makes it
    /// ([`crate::client::RequestBody::JobRetry`]); nothing is added later.
    Retry,
}

/// Which instances an environment draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Split {
    /// For training.
    Train,
    /// Held out for evaluation.
    Eval,
}

/// Which environment, and how it is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvSpec {
    /// Name in the catalogue.
    pub name: String,
    /// Training or held-out instances.
    pub split: Split,
    /// Options of the environment itself.
    pub config: BTreeMap<String, String>,
}

/// Which policy plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyRef {
    /// The base model, no adapter.
    Base,
    /// One version, for every rollout.
    Version(AdapterVersion),
    /// Whatever is newest when a group is first leased; the group keeps it.
    Latest(RunId),
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingSpec {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 switches it off.
    pub top_k: u32,
    /// 1 switches it off.
    pub top_p: f32,
    /// 0 switches it off.
    pub min_p: f32,
    /// Base of the rollouts' seeds ([`seed::rollout_seed`]).
    pub seed: u64,
    /// Strings that end a turn as soon as its text contains one of them; at most
    /// [`STOP_STRINGS_MAX`]. The environment gets the text before it; the tokens that were drawn
    /// for it stay part of the trajectory.
    #[serde(default)]
    pub stop: Vec<String>,
}

impl Default for SamplingSpec {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            stop: Vec::new(),
        }
    }
}

/// Who accepts the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkRef {
    /// The coordinator's relay keeps them for clients.
    Relay,
    /// The learner of that run.
    Learner(RunId),
}

/// When a job has enough results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// The job is done when this many results are accepted; what is open then is cancelled. A few
    /// more may be accepted: those that were delivered in the same moment.
    pub results: u64,
    /// The results may go to a learner, although the first to finish are the short ones.
    pub bias_ok: bool,
}

/// A job as submitted. Equal specifications under one id are one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Chosen by the client.
    pub job: JobId,
    /// For people.
    pub name: String,
    /// How it lives.
    pub kind: JobKind,
    /// Environment and split.
    pub env: EnvSpec,
    /// First instance number; group `g` plays instance `first_instance + g`.
    pub first_instance: u64,
    /// Number of rollouts. For a queue: of its first extent, may be 0.
    pub rollouts: u64,
    /// Rollouts per scenario, compared with each other; 1 when nothing is compared.
    pub group_size: u32,
    /// Which policy plays.
    pub policy: PolicyRef,
    /// How tokens are drawn.
    pub sampling: SamplingSpec,
    /// Retries.
    pub retry: RetryPolicy,
    /// Who accepts the results.
    pub sink: SinkRef,
    /// How long results are kept after the job's end.
    pub keep_ms: u64,
    /// All results are wanted, or the first few.
    #[serde(default)]
    pub take: Option<Take>,
    /// Whatever may be leased of a job with a higher priority is leased first; jobs of the same
    /// priority take turns. Between -[`PRIORITY_MAX`] and [`PRIORITY_MAX`]; 0 is usual.
    #[serde(default)]
    pub priority: i8,
}

impl JobSpec {
    /// The group of a rollout.
    #[must_use]
    pub fn group_of(&self, index: u64) -> GroupIndex {
        GroupIndex(index / u64::from(self.group_size.max(1)))
    }

    /// Sampling seed of a rollout.
    #[must_use]
    pub fn seed_of(&self, index: u64) -> u64 {
        seed::rollout_seed(self.sampling.seed, index)
    }

    /// Checks every field that a peer could have set to nonsense.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn validate(&self) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::new(ErrorCode::InvalidRequest, what));
        if self.group_size == 0 || self.group_size > GROUP_SIZE_MAX {
            return bad(format!(
                "group_size {} is outside 1..={GROUP_SIZE_MAX}",
                self.group_size
            ));
        }
        if self.rollouts > JOB_ROLLOUTS_MAX {
            return bad(format!(
                "{} rollouts, at most {JOB_ROLLOUTS_MAX} fit a job",
                self.rollouts
            ));
        }
        if !self.rollouts.is_multiple_of(u64::from(self.group_size)) {
            return bad(format!(
                "{} rollouts are no whole number of groups of {}",
                self.rollouts, self.group_size
            ));
        }
        if self.first_instance.checked_add(self.rollouts).is_none() {
            return bad(format!("instances from {} overflow", self.first_instance));
        }
        if self.name.len() > NAME_BYTES_MAX || self.env.name.len() > NAME_BYTES_MAX {
            return bad(format!("names have at most {NAME_BYTES_MAX} bytes"));
        }
        if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&self.priority) {
            return bad(format!(
                "priority {} is outside -{PRIORITY_MAX}..={PRIORITY_MAX}",
                self.priority
            ));
        }
        self.env.validate()?;
        self.retry.validate()?;
        self.validate_take()?;
        self.sampling.validate()
    }

    fn validate_take(&self) -> Result<(), Fault> {
        let Some(take) = self.take else {
            return Ok(());
        };
        if take.results == 0 {
            let why = "take = 0 would be done before it begins; leave it out to take everything";
            return Err(Fault::new(ErrorCode::InvalidRequest, why));
        }
        if matches!(self.sink, SinkRef::Learner(_)) && !take.bias_ok {
            let why = format!(
                "take = {} for a learner: the first results are those of short episodes, so that \
                 the policy would learn from a biased sample and grow terse (length bias)",
                take.results
            );
            let hint = "leave take out, or set bias_ok if that is meant";
            return Err(Fault::new(ErrorCode::InvalidRequest, why).with_hint(hint));
        }
        Ok(())
    }
}

impl EnvSpec {
    /// Checks that the options are few and short enough to be kept and sent to every worker.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, with the bound.
    pub fn validate(&self) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::new(ErrorCode::InvalidRequest, what));
        let options = self.config.len();
        if options > ENV_OPTIONS_MAX {
            return bad(format!(
                "{options} options of the environment, at most {ENV_OPTIONS_MAX} are allowed"
            ));
        }
        let bytes: usize = self.config.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > ENV_OPTIONS_BYTES_MAX {
            return bad(format!(
                "the environment's options have {bytes} bytes, at most {ENV_OPTIONS_BYTES_MAX} \
                 are allowed"
            ));
        }
        Ok(())
    }
}

impl SamplingSpec {
    /// Checks that the numbers describe a distribution.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn validate(&self) -> Result<(), Fault> {
        let in_range = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
        ];
        for (field, value, low, high) in in_range {
            if !(low..=high).contains(&value) {
                let message = format!("{field} = {value} is outside {low}..={high}");
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
        }
        let strings = self.stop.len();
        if strings > STOP_STRINGS_MAX {
            let message = format!("{strings} stop strings, at most {STOP_STRINGS_MAX} are allowed");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let fits = |string: &String| (1..=STOP_STRING_BYTES_MAX).contains(&string.len());
        if let Some(string) = self.stop.iter().find(|string| !fits(string)) {
            let message = format!(
                "a stop string has {} bytes; allowed are 1 to {STOP_STRING_BYTES_MAX}",
                string.len()
            );
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        Ok(())
    }
}

/// Further rollouts for an open queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Chosen by the client: a repeated `put` of the same id adds nothing.
    pub put: u128,
    /// First instance.
    pub first_instance: u64,
    /// Number of rollouts.
    pub rollouts: u64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Rollouts are queued or leased, or may still be put or admitted.
    Open,
    /// Every rollout is closed.
    Done,
    /// Cancelled by a client; what was open is closed as failed.
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(config: impl IntoIterator<Item = (String, String)>) -> EnvSpec {
        EnvSpec {
            name: "e".into(),
            split: Split::Train,
            config: config.into_iter().collect(),
        }
    }

    #[test]
    fn stop_strings_are_few_short_and_not_empty() {
        let of = |stop: Vec<String>| SamplingSpec {
            stop,
            ..SamplingSpec::default()
        };
        let longest = "x".repeat(STOP_STRING_BYTES_MAX);
        assert_eq!(
            of(vec![longest.clone(); STOP_STRINGS_MAX]).validate(),
            Ok(())
        );
        for (stop, why) in [
            (
                vec!["a".to_owned(); STOP_STRINGS_MAX + 1],
                "17 stop strings",
            ),
            (vec![longest + "x"], "257 bytes"),
            (vec![String::new()], "0 bytes"),
        ] {
            let fault = of(stop).validate().expect_err("over a bound");
            assert!(fault.message.contains(why), "{}", fault.message);
        }
    }

    #[test]
    fn options_of_an_environment_are_bounded_in_number_and_bytes() {
        let many = |n: usize| env((0..n).map(|i| (i.to_string(), String::new())));
        let long = |bytes: usize| env([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert_eq!(many(ENV_OPTIONS_MAX).validate(), Ok(()));
        assert_eq!(long(ENV_OPTIONS_BYTES_MAX).validate(), Ok(()));
        for over in [many(ENV_OPTIONS_MAX + 1), long(ENV_OPTIONS_BYTES_MAX + 1)] {
            let fault = over.validate().expect_err("over a bound");
            assert_eq!(fault.code, ErrorCode::InvalidRequest);
        }
    }
}
