//! The training recipe: one TOML file that says everything about a run.

mod choices;
mod defaults;
mod ranges;
mod reference;
mod retry;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use volley_protocol::{ErrorCode, Fault};

use crate::config::Document;
use crate::files;

pub use choices::{Advantage, ComputeFormat, LearningRateSchedule, LoraTarget, LossName, Schedule};
pub use reference::KlReference;
pub use retry::{Retry, retry_codes};

/// A training recipe. Every key has a default but the first three.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run: lower-case letters, digits, `.`, `_`, `-`; at most 64.
    pub name: String,
    /// Folder of the base model (Hugging Face layout), relative to the recipe file.
    pub model: PathBuf,
    /// Number format of the matrix products. Default `f32`.
    #[serde(default)]
    pub compute: ComputeFormat,
    /// Name of the environment in the catalogue.
    pub environment: String,
    /// Options of the environment itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_options: BTreeMap<String, String>,
    /// Steps, batches, loss, optimiser.
    #[serde(default)]
    pub train: Train,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: Lora,
    /// How training rollouts are sampled.
    #[serde(default)]
    pub sampling: Sampling,
    /// Failures of training rollouts, and what follows from them.
    #[serde(default)]
    pub retry: Retry,
    /// Processes that play.
    #[serde(default)]
    pub workers: Workers,
    /// The process that learns.
    #[serde(default)]
    pub learner: LearnerProcess,
    /// Held-out instances, played before and after training.
    #[serde(default)]
    pub evaluation: Evaluation,
}

/// Steps, batches, loss, optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Optimiser steps. Default 60.
    pub steps: u64,
    /// Scenarios in a step. Default 24.
    pub groups_per_step: u32,
    /// Rollouts of each scenario, compared with each other. Default 8.
    pub group_size: u32,
    /// Step size of the optimiser. Default 7e-4, which suits small models; 1e-5 to 1e-4 suit
    /// larger ones.
    pub learning_rate: f64,
    /// Loss. Default `importance_sampling`.
    pub loss: LossName,
    /// Lower bound of the importance ratio, for `ppo` (default 0.8), `cispo` (default 0) and
    /// `gspo` (default 1 - 3e-4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_low: Option<f64>,
    /// Upper bound of the importance ratio, for `ppo` (default 1.2), `cispo` (default 4) and
    /// `gspo` (default 1 + 4e-4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// Strength of the pull towards the sampler, for `dro` (default 0.05).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dro_beta: Option<f64>,
    /// Pull towards the reference, see `kl_reference`: this much of a token's log-ratio to it, in
    /// nats, is taken off the token's advantage. Groups without any difference in reward are
    /// dropped before. Costs a forward pass more. Default 0.
    pub kl_penalty: f64,
    /// What `kl_penalty` pulls towards. `base`: the base model; `step:N`: version N of this run, and
    /// the base model before; anything else: a folder with an adapter in PEFT's layout, relative to
    /// the recipe file. Default `base`.
    pub kl_reference: KlReference,
    /// How rewards become advantages. Default `grpo`.
    pub advantage: Advantage,
    /// `sync`: every rollout of a step is played by the newest version. `async`: rollouts run
    /// ahead of the learner. Default `sync`.
    pub schedule: Schedule,
    /// With `async`: steps between the version that played and the one trained; older rollouts
    /// are dropped. Default 1.
    pub max_staleness: u32,
    /// Bound of the global gradient norm; 0 switches it off. Default 1.
    pub grad_clip: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Seed of the adapter's initial values and of all sampling. Default 0.
    pub seed: u64,
    /// Number of the first training instance. Default 5,000,000, far from the held-out ones.
    pub first_instance: u64,
    /// Steps between checkpoints; there is always one at the end. Default 20.
    pub checkpoint_every: u64,
    /// Adapter versions that are kept beside those in use. Default 4.
    pub retain_versions: u32,
    /// How the learning rate changes over the run. Default `constant`.
    pub lr_schedule: LearningRateSchedule,
    /// MiB that a step may use beside the model's weights: adapter, optimiser, activations. Where
    /// they need more, the learner computes layers twice and less at once; no result depends on
    /// it; a step for which that is not enough is refused. Default: half of what the machine, or the
    /// cgroup, has left when the learner starts; a step that needs more is then made with as little
    /// as it can be, and the learner warns. Not covered is what the reference of `kl_penalty`
    /// computes before a step: the keys and values of the longest sequence, for all layers, and
    /// the logits of 64 tokens (or 1 MiB).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

/// Shape of the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank. Default 16.
    pub rank: u32,
    /// Scale: the update is multiplied by alpha ÷ rank. Default 32.
    pub alpha: f64,
    /// What gets an adapter: projections of every layer, by name, and `lm_head`, the output matrix.
    /// Default: all seven projections.
    pub targets: Vec<LoraTarget>,
    /// Multiply by alpha ÷ √rank instead. Default false.
    pub rslora: bool,
}

/// How training rollouts are sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Temperature. Default 1.
    pub temperature: f64,
    /// Keeps the k most likely tokens; 0 keeps all. Default 0.
    pub top_k: u32,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum. Default 1: all.
    pub top_p: f64,
    /// Keeps tokens at least this fraction as likely as the most likely one. Default 0: all.
    pub min_p: f64,
    /// Strings that end a turn; evaluations stop at them too. Default: none.
    pub stop: Vec<String>,
}

/// Processes that play.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// Worker processes. Default 2.
    pub count: u32,
    /// Concurrent episodes of each. Default 32.
    pub slots: u32,
    /// Threads of each. Default 1.
    pub threads: u32,
}

/// The process that learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnerProcess {
    /// Threads. Default 2.
    pub threads: u32,
}

/// Held-out instances, played before and after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Instances; 0 switches evaluation off. Default 300.
    pub instances: u64,
    /// Number of the first one. Default 1,000,000.
    pub first_instance: u64,
}

impl Recipe {
    /// Reads and checks a recipe. The model's path is absolute afterwards.
    ///
    /// # Errors
    /// `CONFIG_INVALID` with `file:line:column`, the key and what is allowed.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let document = Document::read(path)?;
        let mut recipe: Self = document.parse()?;
        let dir = std::path::absolute(path).map_err(|error| {
            Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
        })?;
        let dir = files::parent_of(&dir);
        recipe.model = tidy(&dir.join(&recipe.model));
        let is_misspelt = recipe.train.kl_reference.is_misspelt();
        if let KlReference::Adapter(folder) = &mut recipe.train.kl_reference
            && !is_misspelt
        {
            *folder = tidy(&dir.join(&folder));
        }
        recipe.check(&document)?;
        Ok(recipe)
    }

    /// Checks the values again, after flags of the command line have changed some.
    ///
    /// # Errors
    /// `CONFIG_INVALID` with the key and what is allowed.
    pub fn validate(&self) -> Result<(), Fault> {
        self.check(&Document::new(Path::new("recipe"), String::new()))
    }

    /// The recipe with every default filled in, as the run directory keeps it.
    ///
    /// # Errors
    /// `CONFIG_INVALID` when the model's path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, Fault> {
        toml::to_string(self).map_err(|error| {
            let message = format!("the recipe cannot be written as TOML: {error}");
            Fault::new(ErrorCode::ConfigInvalid, message)
        })
    }

    fn check(&self, document: &Document) -> Result<(), Fault> {
        match ranges::first_violation(self) {
            None => Ok(()),
            Some((key, what)) => Err(document.fault(key, &what)),
        }
    }
}

impl Train {
    /// Learning rate of a step; the first step is 1.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        match self.lr_schedule {
            LearningRateSchedule::Constant => self.learning_rate,
            LearningRateSchedule::Linear => {
                let left = self.steps.saturating_sub(step.saturating_sub(1));
                self.learning_rate * left as f64 / self.steps.max(1) as f64
            }
        }
    }

    /// Steps that may lie between the version that played and the one trained.
    #[must_use]
    pub const fn staleness_max(&self) -> u32 {
        match self.schedule {
            Schedule::Sync => 0,
            Schedule::Async => self.max_staleness,
        }
    }

    /// Bounds of the importance ratio for the losses that have them.
    #[must_use]
    pub fn clip(&self) -> Option<(f64, f64)> {
        let (low, high) = self.loss.clip_default()?;
        Some((self.clip_low.unwrap_or(low), self.clip_high.unwrap_or(high)))
    }

    /// Strength of the pull towards the sampler (`dro`).
    #[must_use]
    pub fn dro_beta(&self) -> f64 {
        self.dro_beta.unwrap_or(0.05)
    }

    /// Rollouts of one step.
    #[must_use]
    pub fn rollouts_per_step(&self) -> u64 {
        u64::from(self.groups_per_step) * u64::from(self.group_size)
    }
}

/// The path without `.` and, where that is certain, without `..`: for people to read.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            // Behind a symbolic link `..` leads elsewhere than the text says.
            Component::ParentDir if tidy.is_dir() && !tidy.is_symlink() => {
                tidy.pop();
            }
            other => tidy.push(other),
        }
    }
    tidy
}

#[cfg(test)]
mod tests;
