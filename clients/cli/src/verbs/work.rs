//! What `map` and `put` have in common: an environment, seeds, a policy, how it is tried.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use volley_client::Client;
use volley_protocol::job::{EnvSpec, JobKind, JobSpec, PolicyRef, SamplingSpec, SinkRef, Split};
use volley_protocol::run::RunSummary;
use volley_protocol::{AdapterVersion, ErrorCode, Fault, JobId};

use super::retry::RetryArgs;
use crate::text;

/// How long results are kept after a job's end, for clients that come back.
const KEEP: Duration = Duration::from_secs(24 * 3_600);

/// What is played.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkArgs {
    /// Environment: arithmetic, guess, routing, …
    pub(crate) env: String,
    /// Instances for training, or those held out.
    #[arg(long, value_enum, default_value_t = SplitArg::Eval)]
    split: SplitArg,
    /// base, RUN (its newest version), or RUN@STEP.
    #[arg(long, value_name = "POLICY", default_value = "base")]
    policy: String,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Keeps the K most likely tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keeps the fewest most likely tokens whose probabilities reach P.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// A string that ends a turn; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Setting of the environment; may be repeated.
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = key_value)]
    options: Vec<(String, String)>,
    /// Seed of the sampling: the same seeds give the same tokens.
    #[arg(long, value_name = "S", default_value_t = 0)]
    sampling_seed: u64,
    /// Work of a higher priority is always served first: -100 to 100.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i8).range(-100..=100))]
    priority: i8,
    #[command(flatten)]
    retry: RetryArgs,
}

/// One episode of what is to be played, to try the environment with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample<'a> {
    pub(crate) instance: u64,
    pub(crate) payload: &'a [u8],
}

/// Training or held-out instances.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SplitArg {
    Eval,
    Train,
}

/// A half-open range of seeds. A billion of them are two numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seeds(pub(crate) Range<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let digits = part.trim().replace('_', "");
            digits
                .parse::<u64>()
                .map_err(|_| format!("`{part}` is no whole number"))
        };
        let Some((start, end)) = text.split_once("..") else {
            return match number(text) {
                Ok(n) => Err(format!("a range is due; did you mean 0..{n}?")),
                Err(_) => Err("a range is due, such as 0..1024".to_owned()),
            };
        };
        let range = number(start)?..number(end)?;
        if range.is_empty() {
            return Err(format!("there is nothing in {text}: the end is not played"));
        }
        Ok(Self(range))
    }
}

impl Seeds {
    /// The first of them.
    pub(crate) fn sample(&self) -> Sample<'static> {
        Sample {
            instance: self.0.start,
            payload: &[],
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.end - self.0.start
    }
}

impl WorkArgs {
    /// The job's specification, without rollouts. The environment is tried here first: a slip of
    /// the finger should not travel.
    pub(crate) async fn spec(
        &self,
        client: &Client,
        job: JobId,
        kind: JobKind,
        name: String,
        sample: Sample<'_>,
    ) -> Result<JobSpec, Fault> {
        let env = self.environment(sample)?;
        Ok(JobSpec {
            job,
            name,
            kind,
            env,
            first_instance: 0,
            rollouts: 0,
            group_size: 1,
            policy: policy(client, &self.policy).await?,
            sampling: SamplingSpec {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                seed: self.sampling_seed,
                stop: self.stop.clone(),
            },
            retry: self.retry.policy()?,
            sink: SinkRef::Relay,
            keep_ms: KEEP.as_millis() as u64,
            take: None,
            priority: self.priority,
        })
    }

    /// What can be said without a cluster.
    pub(crate) fn check(&self, sample: Sample<'_>) -> Result<(), Fault> {
        self.retry.policy()?;
        self.environment(sample).map(|_| ())
    }

    fn environment(&self, sample: Sample<'_>) -> Result<EnvSpec, Fault> {
        let config: BTreeMap<String, String> = self.options.iter().cloned().collect();
        let (split, env_split) = match self.split {
            SplitArg::Eval => (Split::Eval, volley_env::Split::Eval),
            SplitArg::Train => (Split::Train, volley_env::Split::Train),
        };
        let scenario = volley_env::Scenario {
            split: env_split,
            instance: sample.instance,
            config: config.clone(),
            payload: sample.payload.to_vec(),
        };
        match volley_env::create(&self.env, &scenario) {
            Ok(_) => Ok(EnvSpec {
                name: self.env.clone(),
                split,
                config,
            }),
            Err(error) => {
                let code = ErrorCode::from_name(error.code()).unwrap_or(ErrorCode::EnvFailed);
                Err(Fault::new(code, error.to_string()))
            }
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is due")?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `base`, `RUN` or `RUN@STEP`.
async fn policy(client: &Client, told: &str) -> Result<PolicyRef, Fault> {
    if told == "base" {
        return Ok(PolicyRef::Base);
    }
    match told.split_once('@') {
        None => Ok(PolicyRef::Latest(find_run(client, told).await?.info.run)),
        Some((run, step)) => {
            let (_, version) = find_version(client, run, step).await?;
            Ok(PolicyRef::Version(version))
        }
    }
}

/// The run of that name or id, or of an id that begins so.
pub(crate) async fn find_run(client: &Client, told: &str) -> Result<RunSummary, Fault> {
    pick_run(client.runs().await?, told)
}

fn pick_run(runs: Vec<RunSummary>, told: &str) -> Result<RunSummary, Fault> {
    let names: Vec<String> = runs.iter().map(|run| run.info.name.clone()).collect();
    let by_name = |run: &RunSummary| run.info.name == told;
    let by_id = |run: &RunSummary| told.len() >= 4 && run.info.run.to_string().starts_with(told);
    let mut found: Vec<RunSummary> = runs
        .into_iter()
        .filter(|run| by_name(run) || by_id(run))
        .collect();
    match (found.pop(), found.len()) {
        (Some(run), 0) => Ok(run),
        (Some(_), more) => {
            let message = format!("`{told}` names {} runs", more + 1);
            Err(Fault::new(ErrorCode::NotFound, message)
                .with_hint("name one by its id: volley run list"))
        }
        (None, _) => {
            let fault = Fault::new(ErrorCode::NotFound, format!("there is no run `{told}`"));
            let near = text::nearest(told, names.iter().map(String::as_str));
            Err(fault.with_hint(match near {
                Some(near) => format!("did you mean {near}?"),
                None => "`volley run list` shows them".to_owned(),
            }))
        }
    }
}

/// The version of `RUN@STEP`; a step may also be `latest`.
pub(crate) async fn find_version(
    client: &Client,
    run: &str,
    step: &str,
) -> Result<(RunSummary, AdapterVersion), Fault> {
    let run = find_run(client, run).await?;
    let entries = client.adapters(run.info.run).await?.entries;
    let found = if step == "latest" {
        entries.last()
    } else {
        let number: u64 = step.parse().map_err(|_| {
            let message = format!("`{step}` is no step: RUN@STEP is due, such as my-run@12");
            Fault::new(ErrorCode::InvalidRequest, message)
        })?;
        // A recovery may have begun a new branch: its version is the one that counts.
        entries.iter().rfind(|entry| entry.version.step == number)
    };
    match found {
        Some(entry) => Ok((run, entry.version)),
        None => {
            let message = format!("run `{}` has no version {step}", run.info.name);
            let hint = format!("volley adapter list {}", run.info.name);
            Err(Fault::new(ErrorCode::NotFound, message).with_hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use volley_protocol::run::{RunInfo, RunState};
    use volley_protocol::{Digest, RunId};

    use super::*;

    fn run(id: u128, name: &str) -> RunSummary {
        let info = RunInfo {
            run: RunId(id),
            name: name.into(),
            environment: "guess".into(),
            base: Digest::default(),
            steps_total: 1,
            rank: 1,
            retain_versions: 1,
        };
        RunSummary {
            info,
            state: RunState::Training,
            connected: true,
            step: 0,
            last: None,
            reward_history: Vec::new(),
        }
    }

    #[test]
    fn seeds_are_a_range() {
        assert_eq!("0..1_000".parse(), Ok(Seeds(0..1_000)));
        assert_eq!(
            "0..1000000000".parse::<Seeds>().map(|seeds| seeds.count()),
            Ok(1_000_000_000)
        );
        assert!(
            "16".parse::<Seeds>()
                .is_err_and(|error| error.contains("0..16"))
        );
        assert!(
            "4..4"
                .parse::<Seeds>()
                .is_err_and(|error| error.contains("nothing"))
        );
        for bad in ["", "a..b", "..", "0..-1", "0..99999999999999999999"] {
            assert!(bad.parse::<Seeds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_are_pairs() {
        assert_eq!(key_value("mode=nan"), Ok(("mode".into(), "nan".into())));
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(key_value("mode").is_err() && key_value("=x").is_err());
    }

    #[test]
    fn runs_are_found_by_name_and_by_the_beginning_of_their_id() {
        let runs = || vec![run(0xaaaa << 112, "first"), run(0xaabb << 112, "second")];
        assert_eq!(
            pick_run(runs(), "first").map(|r| r.info.name),
            Ok("first".into())
        );
        assert_eq!(
            pick_run(runs(), "aabb").map(|r| r.info.name),
            Ok("second".into())
        );
        assert_eq!(
            pick_run(runs(), "secnd").expect_err("a slip").hint,
            "did you mean second?"
        );
        let twice = vec![run(1, "same"), run(2, "same")];
        assert!(
            pick_run(twice, "same")
                .expect_err("two")
                .message
                .contains("2 runs")
        );
    }
}
