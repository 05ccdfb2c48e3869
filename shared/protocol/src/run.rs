//! What is known of a training run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::fault::{ErrorCode, Fault};
use crate::ids::RunId;
use crate::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, REPORT_METRICS_MAX};

/// What a run is, constant over its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Identity.
    pub run: RunId,
    /// For people; also addresses it on the command line (`NAME@STEP`).
    pub name: String,
    /// Environment it trains on.
    pub environment: String,
    /// Digest of the base model.
    pub base: Digest,
    /// Steps it is asked to make.
    pub steps_total: u64,
    /// LoRA rank.
    pub rank: u32,
    /// Versions to keep beside pinned ones.
    pub retain_versions: u32,
}

impl RunInfo {
    /// Checks the texts that a peer could have made long.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub fn validate(&self) -> Result<(), Fault> {
        if self.name.len() <= NAME_BYTES_MAX && self.environment.len() <= NAME_BYTES_MAX {
            return Ok(());
        }
        let message = format!("names of a run have at most {NAME_BYTES_MAX} bytes");
        Err(Fault::new(ErrorCode::InvalidRequest, message))
    }
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Training, or waiting for rollouts.
    Training,
    /// All steps are made.
    Finished,
    /// Stopped by a person; can be resumed.
    Stopped,
    /// Stopped by an error; the last good version stays live.
    Failed(Fault),
}

impl RunState {
    /// The same state with texts of at most `max` bytes.
    #[must_use]
    pub fn cut_to(self, max: usize) -> Self {
        match self {
            Self::Failed(fault) => Self::Failed(fault.cut_to(max)),
            other => other,
        }
    }

    /// The same state with texts that fit wherever it is passed on.
    #[must_use]
    pub fn cut(self) -> Self {
        self.cut_to(MESSAGE_BYTES_MAX)
    }
}

/// One optimiser step, for people and `metrics.jsonl`. Times are wall-clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps made, this one included.
    pub step: u64,
    /// Digest of the version that came out.
    pub digest: Digest,
    /// Rollouts in the batch.
    pub rollouts: u64,
    /// Groups in the batch.
    pub groups: u64,
    /// Groups without any difference in reward: no gradient comes from them.
    pub groups_zero_variance: u64,
    /// Groups that lost members.
    pub groups_degraded: u64,
    /// Mean, spread and ends of the rewards.
    pub reward_mean: f64,
    /// Standard deviation over the batch.
    pub reward_std: f64,
    /// Smallest.
    pub reward_min: f64,
    /// Largest.
    pub reward_max: f64,
    /// Mean of each metric of the environment.
    pub metrics: BTreeMap<String, f64>,
    /// Loss per trained token.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Mean −log-probability of sampled tokens: an estimate of the entropy, in nats.
    pub entropy: f64,
    /// Share of tokens whose importance ratio was clipped.
    pub clip_fraction: f64,
    /// KL estimate (k3) of the learner's policy against the sampler's; 0 when on policy.
    pub drift_kl: f64,
    /// Largest |learner − sampler| log-probability over tokens of the trained version.
    pub mismatch_max: f64,
    /// Tokens compared for it.
    pub mismatch_tokens: u64,
    /// Steps between the version that played and the one trained, mean and largest.
    pub staleness_mean: f64,
    /// Largest.
    pub staleness_max: u64,
    /// Sampled tokens in the batch.
    pub tokens_sampled: u64,
    /// Tokens that went through the learner.
    pub tokens_trained: u64,
    /// Share of episodes with an answer cut off at its token limit.
    pub truncated: f64,
    /// Waiting for rollouts.
    pub wait_ms: u64,
    /// Forward and backward.
    pub forward_backward_ms: u64,
    /// Optimiser, record, publish, checkpoint.
    pub publish_ms: u64,
    /// Since the run began, time without training excluded.
    pub train_ms_total: u64,
}

impl StepReport {
    /// The same report with no more metrics than [`REPORT_METRICS_MAX`], the first by name, and
    /// none with an overlong name. Each episode has at most as many, but the episodes of a batch
    /// may have different ones.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.metrics.retain(|name, _| name.len() <= NAME_BYTES_MAX);
        while self.metrics.len() > REPORT_METRICS_MAX {
            self.metrics.pop_last();
        }
        self
    }
}

/// A run as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// What it is.
    pub info: RunInfo,
    /// Where it stands.
    pub state: RunState,
    /// Is its learner connected?
    pub connected: bool,
    /// Step of the newest version.
    pub step: u64,
    /// The last report, if any.
    pub last: Option<StepReport>,
    /// Mean reward of the last steps, oldest first; at most 120.
    pub reward_history: Vec<f32>,
}
