//! Held-out evaluation: two `map` jobs like any other, one greedy, one sampled, played by the
//! warm workers.

use std::collections::BTreeMap;

use volley_client::Client;
use volley_protocol::client::ResultRecord;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::{
    EnvSpec, JobKind, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef, Split,
};
use volley_protocol::{Digest, JobId};
use volley_runtime::run_dir::Evaluation;

/// Results of an evaluation are read at once; an hour is for people who want to look again.
const KEEP_MS: u64 = 3_600_000;

/// What is evaluated on.
#[derive(Clone, Debug)]
pub(crate) struct HeldOut {
    pub(crate) run: volley_protocol::RunId,
    pub(crate) environment: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) first_instance: u64,
    pub(crate) instances: u64,
}

/// Plays every held-out instance twice.
pub(crate) async fn run(
    client: &Client,
    held_out: &HeldOut,
    policy: PolicyRef,
    step: u64,
) -> Result<Evaluation, Fault> {
    let jobs = [("greedy", 0.0), ("sampled", 1.0)]
        .map(|(name, temperature)| held_out.job(name, temperature, policy, step));
    // Both are queued before either is read, so that workers never run dry.
    for job in &jobs {
        client.submit(job.clone()).await?;
    }
    let [greedy_job, sampled_job] = jobs;
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

impl HeldOut {
    fn job(&self, name: &str, temperature: f32, policy: PolicyRef, step: u64) -> JobSpec {
        JobSpec {
            job: self.job_id(name, policy, step),
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
                ..SamplingSpec::default()
            },
            retry: RetryPolicy::default(),
            sink: SinkRef::Relay,
            keep_ms: KEEP_MS,
        }
    }

    /// The same evaluation is the same job: asked for again after an interruption, its results
    /// are there already.
    fn job_id(&self, name: &str, policy: PolicyRef, step: u64) -> JobId {
        let what = format!("{} {name} {policy:?} {step} {self:?}", self.run);
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
