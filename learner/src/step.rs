//! One training step: rewards → advantages → data → forward and backward → the
//! zero-mismatch check → update → the adapter that is published.
//!
//! It is a function of the trainer's state and the batch alone, so replaying a step from its
//! record gives the same adapter, bit for bit.

use std::sync::Arc;
use std::time::Instant;

use volley_engine::adapter::Adapter;
use volley_engine::score::score_all;
use volley_engine::train::{
    AdamParams, Datum, Estimator, Loss, MEMORY_UNLIMITED, MemoryPlan, StepOutput, Trainer,
    group_advantages,
};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::run::StepReport;
use volley_protocol::{AdapterVersion, Digest, Trajectory};

/// A group with its trajectories, as the core ordered them.
#[derive(Clone, Debug)]
pub(crate) struct PlayedGroup {
    pub(crate) degraded: bool,
    pub(crate) members: Vec<Arc<Trajectory>>,
}

/// Everything that shapes a step, besides the batch.
#[derive(Clone, Debug)]
pub(crate) struct StepSettings {
    pub(crate) loss: Loss,
    /// Pull towards the reference, per nat of a token's log-ratio to it.
    pub(crate) kl_penalty: f32,
    pub(crate) estimator: Estimator,
    pub(crate) adam: AdamParams,
    /// Class of this process's arithmetic.
    pub(crate) numerics: String,
}

/// Towards what a step pulls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull<'a> {
    /// `None`: towards the base model.
    pub(crate) adapter: Option<&'a Adapter>,
    /// The adapter's, for the step's record.
    pub(crate) digest: Option<Digest>,
    /// Under which name the distance is reported.
    pub(crate) metric: &'static str,
}

/// What a step made.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) report: StepReport,
}

/// Makes one step from `parent`.
pub(crate) fn make(
    trainer: &mut Trainer,
    settings: &StepSettings,
    pull: Pull<'_>,
    parent: AdapterVersion,
    groups: &[PlayedGroup],
) -> Result<Stepped, Fault> {
    let began = Instant::now();
    let mut report = describe(parent, groups);
    let chosen = choose(settings, groups, &mut report);
    let played: Vec<&Trajectory> = chosen.iter().map(|(trajectory, _)| *trajectory).collect();
    let reference = reference(trainer, settings, pull, &played, &mut report)?;
    let forward = if chosen.is_empty() {
        None
    } else {
        let (data, loss) = data(settings, &chosen, &reference);
        let before = trainer.memory_plan();
        let output = trainer.forward_backward(&data, &loss);
        let output = output.map_err(|error| Fault::from(&error))?;
        if let Some(plan) = trainer.memory_plan() {
            tell(&plan, before);
        }
        Some(output)
    };
    if let Some(output) = &forward {
        check_mismatch(settings, parent, &played, output, &mut report)?;
        summarise(output, &mut report);
    }
    report.forward_backward_ms = began.elapsed().as_millis() as u64;
    if forward.is_some() {
        let update = trainer
            .optim_step(&settings.adam)
            .map_err(|error| Fault::from(&error))?;
        report.grad_norm = update.grad_norm;
    }
    report.learning_rate = settings.adam.lr;
    let adapter = trainer.published();
    adapter
        .check_finite()
        .map_err(|error| Fault::from(&error))?;
    let bytes = adapter.to_bytes();
    let digest = Digest::of(&bytes);
    report.digest = digest;
    Ok(Stepped {
        adapter,
        bytes,
        digest,
        report,
    })
}

/// Says how the first batch of a process was computed, and, once, that one did not fit into what
/// the machine had left.
fn tell(plan: &MemoryPlan, before: Option<MemoryPlan>) {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let budget_mib = match plan.budget_bytes {
        MEMORY_UNLIMITED => "none".to_owned(),
        bytes => mib(bytes).to_string(),
    };
    if plan.budget_raised && !before.is_some_and(|before| before.budget_raised) {
        tracing::warn!(
            needed_mib = mib(plan.budget_bytes),
            "training needs more than half of the memory that was left at the start: the tightest \
             plan is used; train.memory_mb sets a bound"
        );
    }
    if before.is_some() {
        return;
    }
    tracing::info!(
        predicted_mib = mib(plan.bytes),
        budget_mib,
        micro_batches = plan.micro_batches,
        side_by_side = plan.side_by_side,
        rows = plan.rows,
        layers_kept = plan.layers_kept,
        layers_computed_twice = plan.layers - plan.layers_kept,
        "memory of a training step"
    );
}

/// Figures of the batch that need no model.
fn describe(parent: AdapterVersion, groups: &[PlayedGroup]) -> StepReport {
    let all: Vec<&Trajectory> = groups
        .iter()
        .flat_map(|g| &g.members)
        .map(Arc::as_ref)
        .collect();
    let n = all.len().max(1) as f64;
    let rewards = || all.iter().map(|t| t.header.reward);
    let mean = rewards().sum::<f64>() / n;
    let staleness = |t: &&Trajectory| {
        t.header.version.map_or(parent.step, |version| {
            parent.step.saturating_sub(version.step)
        })
    };
    let mut report = StepReport {
        step: parent.step + 1,
        rollouts: all.len() as u64,
        groups: groups.len() as u64,
        groups_degraded: groups.iter().filter(|group| group.degraded).count() as u64,
        reward_mean: mean,
        reward_std: (rewards().map(|r| (r - mean).powi(2)).sum::<f64>() / n).sqrt(),
        reward_min: rewards().fold(f64::INFINITY, f64::min),
        reward_max: rewards().fold(f64::NEG_INFINITY, f64::max),
        staleness_mean: all.iter().map(staleness).sum::<u64>() as f64 / n,
        staleness_max: all.iter().map(staleness).max().unwrap_or(0),
        tokens_sampled: all.iter().map(|t| sampled_tokens(t)).sum(),
        truncated: all.iter().filter(|t| t.header.truncated).count() as f64 / n,
        ..StepReport::default()
    };
    if all.is_empty() {
        (report.reward_min, report.reward_max) = (0.0, 0.0);
    }
    for trajectory in &all {
        for (name, value) in &trajectory.header.metrics {
            *report.metrics.entry(name.clone()).or_default() += value / n;
        }
    }
    report
}

/// Trajectories with a gradient, each with its advantage.
fn choose<'a>(
    settings: &StepSettings,
    groups: &'a [PlayedGroup],
    report: &mut StepReport,
) -> Vec<(&'a Trajectory, f32)> {
    let mut chosen = Vec::new();
    for group in groups {
        let members = group.members.iter().map(Arc::as_ref);
        let rewards: Vec<f32> = members.clone().map(|t| t.header.reward as f32).collect();
        let advantages = group_advantages(&rewards, settings.estimator);
        if advantages.zero_variance {
            report.groups_zero_variance += 1;
        } else {
            chosen.extend(members.zip(advantages.advantages));
        }
    }
    report.tokens_trained = chosen.iter().map(|(t, _)| t.tokens.len() as u64).sum();
    chosen
}

/// The reference's log-probabilities of the trajectories' tokens but the first; none without a
/// penalty. Reports the mean log-ratio of the sampled tokens, an estimate of the KL divergence from
/// the reference (Schulman 2020, "Approximating KL divergence", k1).
fn reference(
    trainer: &Trainer,
    settings: &StepSettings,
    pull: Pull<'_>,
    played: &[&Trajectory],
    report: &mut StepReport,
) -> Result<Vec<Vec<f32>>, Fault> {
    if settings.kl_penalty == 0.0 || played.is_empty() {
        return Ok(Vec::new());
    }
    let sequences: Vec<&[u32]> = played.iter().map(|t| t.tokens.as_slice()).collect();
    let scores = score_all(trainer.model(), pull.adapter, &sequences, trainer.threads());
    let scores = scores.map_err(|error| Fault::from(&error))?;
    let (mut sum, mut tokens) = (0.0, 0u64);
    for (trajectory, scores) in played.iter().zip(&scores) {
        for (at, score) in scores.iter().enumerate() {
            if trajectory.sampled[at + 1] != 0 {
                sum += f64::from(trajectory.logprobs[at + 1]) - f64::from(*score);
                tokens += 1;
            }
        }
    }
    let mean = sum / tokens.max(1) as f64;
    report.metrics.insert(pull.metric.to_owned(), mean);
    Ok(scores)
}

/// Trajectories as the trainer takes them, and the loss. It is a mean over the sampled tokens of
/// the batch, so the learning rate means the same whatever the batch's size.
fn data(
    settings: &StepSettings,
    chosen: &[(&Trajectory, f32)],
    reference: &[Vec<f32>],
) -> (Vec<Datum>, Loss) {
    let tokens: u64 = chosen.iter().map(|(t, _)| sampled_tokens(t)).sum();
    let scale = 1.0 / tokens.max(1) as f32;
    let data = chosen
        .iter()
        .enumerate()
        .map(|(i, (trajectory, advantage))| {
            let mut datum = datum(trajectory, *advantage);
            if let Some(reference) = reference.get(i) {
                let gaps = datum.sampled_logprobs.iter().zip(reference);
                for ((advantage, weight), (q, due)) in
                    datum.advantages.iter_mut().zip(&datum.weights).zip(gaps)
                {
                    *advantage -= weight * settings.kl_penalty * (q - due);
                }
            }
            datum.advantages.iter_mut().for_each(|a| *a *= scale);
            datum
        });
    let loss = match settings.loss {
        // Its penalty does not contain the advantage, which carries the scale of the others.
        Loss::Dro { beta } => Loss::Dro { beta: beta * scale },
        other => other,
    };
    (data.collect(), loss)
}

/// Entry `t` of the arrays belongs to token `t + 1`: what the forward at `t` predicts.
fn datum(trajectory: &Trajectory, advantage: f32) -> Datum {
    let weights: Vec<f32> = trajectory.sampled[1..]
        .iter()
        .map(|s| f32::from(*s))
        .collect();
    Datum {
        tokens: trajectory.tokens.clone(),
        sampled_logprobs: trajectory.logprobs[1..].to_vec(),
        advantages: weights.iter().map(|weight| weight * advantage).collect(),
        weights,
    }
}

/// Invariant 11: for the version that is trained, and for our own arithmetic, sampler and learner
/// give the same log-probability to the bit. Everything else is off policy and only reported.
fn check_mismatch(
    settings: &StepSettings,
    parent: AdapterVersion,
    played: &[&Trajectory],
    output: &StepOutput,
    report: &mut StepReport,
) -> Result<(), Fault> {
    let mut worst: Option<(f32, &Trajectory, usize)> = None;
    let mut others = 0;
    for (trajectory, learned) in played.iter().zip(&output.logprobs) {
        let header = &trajectory.header;
        if header.numerics != settings.numerics {
            others += sampled_tokens(trajectory);
            continue;
        }
        if header.version != Some(parent) {
            continue;
        }
        for (at, learned) in learned.iter().enumerate() {
            if trajectory.sampled[at + 1] == 0 {
                continue;
            }
            report.mismatch_tokens += 1;
            let gap = (learned - trajectory.logprobs[at + 1]).abs();
            // A gap that is not a number is the worst of all.
            if gap != 0.0 && worst.is_none_or(|(most, ..)| gap > most || gap.is_nan()) {
                worst = Some((gap, trajectory, at + 1));
            }
        }
    }
    if others > 0 {
        // Not an error, but nobody should take such a step for a checked one.
        let name = "tokens_other_numerics".to_owned();
        report.metrics.insert(name, others as f64);
    }
    let Some((gap, trajectory, at)) = worst else {
        return Ok(());
    };
    report.mismatch_max = f64::from(gap);
    let message = format!(
        "sampler and learner differ by {gap:e} on token {at} of rollout {} ({:?}, {})",
        trajectory.header.attempt.rollout, trajectory.header.version, trajectory.header.numerics,
    );
    Err(Fault::new(ErrorCode::NumericsMismatch, message))
}

fn summarise(output: &StepOutput, report: &mut StepReport) {
    report.loss = output.loss_sum;
    report.entropy = output.metrics.entropy;
    report.clip_fraction = output.metrics.clip_fraction;
    report.drift_kl = output.metrics.drift_kl;
}

fn sampled_tokens(trajectory: &Trajectory) -> u64 {
    trajectory
        .sampled
        .iter()
        .map(|sampled| u64::from(*sampled))
        .sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use volley_protocol::trajectory::TrajectoryHeader;
    use volley_protocol::{AttemptId, Epoch, JobId, PeerId, RolloutId};

    /// What a trajectory says beside its tokens.
    pub(crate) fn header(
        version: Option<AdapterVersion>,
        numerics: &str,
        reward: f64,
    ) -> TrajectoryHeader {
        TrajectoryHeader {
            attempt: AttemptId {
                rollout: RolloutId {
                    job: JobId(1),
                    index: 0,
                },
                epoch: Epoch(1),
                number: 1,
            },
            worker: PeerId(1),
            instance: 0,
            version,
            numerics: numerics.to_owned(),
            reward,
            metrics: BTreeMap::new(),
            turns: 1,
            truncated: false,
            transcript: Vec::new(),
            episode_ms: 0,
        }
    }

    #[test]
    fn the_penalty_is_taken_off_each_sampled_token() {
        let trajectory = Trajectory {
            header: header(None, "", 0.0),
            tokens: vec![5, 6, 7, 8],
            logprobs: vec![0.0, -9.0, -1.0, -2.0],
            sampled: vec![0, 0, 1, 1],
        };
        let settings = StepSettings {
            loss: Loss::ImportanceSampling,
            kl_penalty: 0.5,
            estimator: Estimator::DrGrpo,
            adam: AdamParams::default(),
            numerics: String::new(),
        };
        let (data, _) = data(&settings, &[(&trajectory, 0.25)], &[vec![-3.0, -1.5, -1.0]]);
        // 0.25 - 0.5 (-1 + 1.5) = 0 and 0.25 - 0.5 (-2 + 1) = 0.75, both over two tokens.
        assert_eq!(data[0].advantages, [0.0, 0.0, 0.375]);
        assert_eq!(data[0].weights, [0.0, 1.0, 1.0]);
    }
}
