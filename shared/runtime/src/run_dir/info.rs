//! `run.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volley_protocol::RunId;

use super::host::Host;
use super::stamp;
use crate::recipe::Recipe;

const SCHEMA: &str = "volley.run/1";

/// What `run.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfoFile {
    /// Shape of this file.
    pub schema: String,
    /// Identity of the run, in hex.
    pub run: String,
    /// Name, for people.
    pub name: String,
    /// Environment it trains on.
    pub environment: String,
    /// Folder of the base model.
    pub model: String,
    /// Version of the program that began it.
    pub volley: String,
    /// When it was begun.
    pub begun_unix_ms: u64,
    /// When it ended; absent while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// Where it stands.
    pub progress: RunProgress,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Held-out evaluations, ascending by step.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
    /// The machine that began it.
    pub host: Host,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunProgress {
    /// Begun, not ended.
    Training,
    /// All steps are made.
    Finished,
    /// Stopped by a person; can be resumed.
    Stopped,
    /// Stopped by an error; can be resumed when its cause is mended.
    Failed,
}

/// Mean rewards of one policy on the held-out instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps behind the policy; 0 is the base.
    pub step: u64,
    /// Mean reward at temperature 0.
    pub greedy: f64,
    /// Mean reward at temperature 1.
    pub sampled: f64,
    /// Means of the environment's metrics at temperature 0.
    #[serde(default)]
    pub greedy_metrics: BTreeMap<String, f64>,
    /// Means of the environment's metrics at temperature 1.
    #[serde(default)]
    pub sampled_metrics: BTreeMap<String, f64>,
    /// Instances played at each temperature.
    pub instances: u64,
}

impl RunInfoFile {
    pub(super) fn begin(run: RunId, recipe: &Recipe) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            run: run.to_string(),
            name: recipe.name.clone(),
            environment: recipe.environment.clone(),
            model: recipe.model.display().to_string(),
            volley: env!("CARGO_PKG_VERSION").to_owned(),
            begun_unix_ms: stamp::unix_ms(),
            ended_unix_ms: None,
            progress: RunProgress::Training,
            fault: None,
            evaluations: Vec::new(),
            host: Host::here(),
        }
    }

    /// Marks the run as ended now, or (with `Training`) as going on.
    pub fn set_progress(&mut self, progress: RunProgress, fault: Option<String>) {
        let ended = progress != RunProgress::Training;
        self.ended_unix_ms = ended.then(stamp::unix_ms);
        self.progress = progress;
        self.fault = fault;
    }

    /// The evaluation of the base policy.
    #[must_use]
    pub fn before(&self) -> Option<&Evaluation> {
        self.evaluations
            .first()
            .filter(|evaluation| evaluation.step == 0)
    }

    /// The evaluation of the newest trained policy.
    #[must_use]
    pub fn after(&self) -> Option<&Evaluation> {
        self.evaluations
            .last()
            .filter(|evaluation| evaluation.step > 0)
    }

    pub(super) fn keep(&mut self, evaluation: Evaluation) {
        self.evaluations.retain(|kept| kept.step != evaluation.step);
        self.evaluations.push(evaluation);
        self.evaluations.sort_by_key(|kept| kept.step);
    }
}
