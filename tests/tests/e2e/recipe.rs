//! Small training runs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::home::{Home, Running};

/// The bundled model.
pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-base")
}

/// A run of examples/routing, made small.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) steps: u64,
    pub(crate) groups: u64,
    pub(crate) group_size: u64,
    /// Number format of the matrix products.
    pub(crate) compute: &'static str,
    /// Pull towards the base model.
    pub(crate) kl_penalty: f64,
}

impl Recipe {
    pub(crate) const TINY: Self = Self {
        steps: 2,
        groups: 4,
        group_size: 4,
        compute: "f32",
        kl_penalty: 0.0,
    };

    /// Long enough to be met in the middle, on fast machines, too.
    pub(crate) const LONGER: Self = Self {
        steps: 6,
        groups: 16,
        group_size: 8,
        compute: "f32",
        kl_penalty: 0.0,
    };

    pub(crate) fn rollouts(&self) -> u64 {
        self.steps * self.groups * self.group_size
    }

    pub(crate) fn text(&self) -> String {
        let (model, steps) = (model(), self.steps);
        let (groups, group_size) = (self.groups, self.group_size);
        let (compute, kl_penalty) = (self.compute, self.kl_penalty);
        format!(
            r#"name = "small"
model = {model:?}
compute = "{compute}"
environment = "routing"

[train]
steps = {steps}
groups_per_step = {groups}
group_size = {group_size}
learning_rate = 7e-4
loss = "importance_sampling"
kl_penalty = {kl_penalty:?}
advantage = "grpo"
schedule = "sync"
first_instance = 5000000

[lora]
rank = 16
alpha = 32
targets = ["q", "k", "v", "o", "gate", "up", "down"]

[workers]
count = 2
slots = 32
threads = 1

[evaluation]
instances = 8
first_instance = 1000000
"#
        )
    }

    /// Starts training in `HOME/run`.
    pub(crate) fn start(&self, home: &Home) -> Running {
        home.write("recipe.toml", self.text());
        home.start(&[
            "train",
            "recipe.toml",
            "--run-dir",
            "run",
            "--seed",
            "7",
            "--json",
        ])
    }
}

/// Waits until a run that goes on has told of `step`.
pub(crate) fn wait_for_step(run: &mut Running, step: u64) {
    let told = |run: &Running| {
        let mut events = run.objects().into_iter();
        events.any(|event| event["event"] == "step" && event["report"]["step"] == step)
    };
    crate::process::until("a step of the run", || {
        (told(run) || run.has_ended()).then_some(())
    });
    assert!(!run.has_ended(), "the run has ended already: {}", run.err());
}

/// The event of a kind; the last one if there are several.
#[track_caller]
pub(crate) fn event(events: &[Value], kind: &str) -> Value {
    let found = events.iter().rfind(|event| event["event"] == kind);
    found.unwrap_or_else(|| panic!("no event {kind}")).clone()
}

/// The bytes of the adapter after `step`.
pub(crate) fn adapter(run_dir: &Path, step: u64) -> Vec<u8> {
    let name = format!("adapters/step-{step:06}/adapter_model.safetensors");
    let path = run_dir.join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
