//! Held-out evaluation: two `map` jobs like any other, one greedy, one sampled, played by the
//! warm workers.

use std::collections::BTreeMap;

use volley_client::Client;
use volley_protocol::client::ResultRecord;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::{
    EnvSpec, JobKind, JobSpec, JobState, PolicyRef, RetryPolicy, SamplingSpec, SinkRef, Split,
};
use volley_protocol::snapshot::JobSummary;
use volley_protocol::{Digest, JobId};
use volley_runtime::run_dir::Evaluation;

/// Results of an evaluation are read at once; an hour is for people who want to look again.
const KEEP_MS: u64 = 3_600_000;

/// Evaluations of one policy that failed within [`KEEP_MS`], after which a further one is not
/// worth its rollouts.
const TRIES_MAX: u32 = 100;

/// What is evaluated on.
#[derive(Clone, Debug)]
pub(crate) struct HeldOut {
    pub(crate) run: volley_protocol::RunId,
    pub(crate) environment: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) first_instance: u64,
    pub(crate) instances: u64,
    /// Strings that end a turn.
    pub(crate) stop: Vec<String>,
}

/// Plays every held-out instance twice.
pub(crate) async fn run(
    client: &Client,
    held_out: &HeldOut,
    policy: PolicyRef,
    step: u64,
) -> Result<Evaluation, Fault> {
    // Both are queued before either is read, so that workers never run dry.
    let make =
        |name, temperature| move |attempt| held_out.job(name, temperature, policy, step, attempt);
    let greedy_job = submit(client, make("greedy", 0.0)).await?;
    let sampled_job = submit(client, make("sampled", 1.0)).await?;
    let (greedy, greedy_metrics) = means(client, &greedy_job).await?;
    let (sampled, sampled_metrics) = means(client, &sampled_job).await?;
    let instances = held_out.instances;
    Ok(Evaluation {
        step,
        greedy,
        sampled,
        greedy_metrics,
        sampled_metrics,
        instances,
    })
}

/// Queues the evaluation, or finds it queued or played by a process that was interrupted. One that
/// has failed is not asked again: its results are settled, and the next attempt's are wanted.
async fn submit(client: &Client, make: impl Fn(u32) -> JobSpec) -> Result<JobSpec, Fault> {
    for attempt in 0..TRIES_MAX {
        let job = make(attempt);
        if !client.submit(job.clone()).await?.existed {
            return Ok(job);
        }
        let known = client.job(job.job).await?;
        if !has_failed(&known) {
            return Ok(job);
        }
        // What is left of it would be played for nobody.
        client.cancel(job.job).await?;
    }
    let message = format!("`{}` has failed {TRIES_MAX} times", make(0).name);
    Err(Fault::new(ErrorCode::AttemptsExhausted, message))
}

/// Can it not end with all of its results any more?
fn has_failed(job: &JobSummary) -> bool {
    job.failed > 0 || job.state == JobState::Cancelled
}

impl HeldOut {
    fn job(
        &self,
        name: &str,
        temperature: f32,
        policy: PolicyRef,
        step: u64,
        attempt: u32,
    ) -> JobSpec {
        JobSpec {
            job: self.job_id(name, policy, step, attempt),
            name: format!("evaluate {name} at step {step}"),
            kind: JobKind::Map,
            env: EnvSpec {
                name: self.environment.clone(),
                split: Split::Eval,
                config: self.options.clone(),
            },
            first_instance: self.first_instance,
            rollouts: self.instances,
            group_size: 1,
            policy,
            sampling: SamplingSpec {
                temperature,
                stop: self.stop.clone(),
                ..SamplingSpec::default()
            },
            retry: RetryPolicy::default(),
            sink: SinkRef::Relay,
            keep_ms: KEEP_MS,
            take: None,
            priority: 0,
        }
    }

    /// The same evaluation is the same job: asked for again after an interruption, its results
    /// are there already. After a failure the next attempt is another job.
    fn job_id(&self, name: &str, policy: PolicyRef, step: u64, attempt: u32) -> JobId {
        let what = format!("{} {name} {policy:?} {step} {self:?} {attempt}", self.run);
        let digest = Digest::of(what.as_bytes());
        let (head, _) = digest.0.split_at(16);
        JobId(
            head.iter()
                .fold(0, |id, byte| (id << 8) | u128::from(*byte)),
        )
    }
}

async fn means(client: &Client, job: &JobSpec) -> Result<(f64, BTreeMap<String, f64>), Fault> {
    let mut results = client.results(job.job);
    let (mut reward, mut metrics, mut n) = (0.0, BTreeMap::<String, f64>::new(), 0u64);
    while let Some(record) = results.next().await? {
        match record {
            ResultRecord::Finished(trajectory) => {
                n += 1;
                reward += trajectory.header.reward;
                for (name, value) in trajectory.header.metrics {
                    *metrics.entry(name).or_default() += value;
                }
            }
            ResultRecord::Failed { index, fault } => {
                let message = format!("`{}` failed on rollout {index}: {fault}", job.name);
                return Err(Fault::new(fault.code, message).with_hint(fault.hint));
            }
        }
    }
    if n != job.rollouts {
        let message = format!("`{}` ended with {n} of {} results", job.name, job.rollouts);
        return Err(Fault::new(ErrorCode::Internal, message));
    }
    let n = n as f64;
    metrics.values_mut().for_each(|sum| *sum /= n);
    Ok((reward / n, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_attempt_is_the_same_job_and_the_next_one_is_not() {
        let held_out = HeldOut {
            run: volley_protocol::RunId(1),
            environment: "e".into(),
            options: BTreeMap::new(),
            first_instance: 1,
            instances: 2,
            stop: Vec::new(),
        };
        let job = |name, attempt| held_out.job(name, 0.0, PolicyRef::Base, 0, attempt);
        assert_eq!(job("greedy", 0), job("greedy", 0));
        assert_ne!(job("greedy", 0).job, job("greedy", 1).job);
        assert_ne!(job("greedy", 0).job, job("sampled", 0).job);
    }

    #[test]
    fn a_job_that_goes_on_is_waited_for() {
        let mut job = JobSummary {
            job: JobId(1),
            name: "j".into(),
            environment: "e".into(),
            kind: JobKind::Map,
            state: JobState::Open,
            rollouts: 2,
            dispatchable: 0,
            queued: 1,
            leased: 0,
            accepted: 1,
            failed: 0,
            retries: 1,
            last_failure: None,
            cancelled: 0,
            take: 0,
            priority: 0,
        };
        assert!(!has_failed(&job));
        job.state = JobState::Cancelled;
        assert!(has_failed(&job));
        (job.state, job.failed) = (JobState::Done, 1);
        assert!(has_failed(&job));
    }
}
