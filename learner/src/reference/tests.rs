use super::*;

use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::score::score;
use volley_engine::train::{AdamParams, Datum, Estimator, Loss, Trainer};
use volley_protocol::run::StepReport;
use volley_protocol::{AdapterVersion, Digest, RunId, Trajectory};

use crate::restore;
use crate::step::tests::header;
use crate::step::{self, PlayedGroup, StepSettings};

const MODEL: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32,
    "vocab_size": 50, "tie_word_embeddings": true, "max_position_embeddings": 64,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"
}"#;

fn model() -> Arc<Model> {
    let config = ModelConfig::parse(Path::new("config.json"), MODEL.as_bytes());
    Arc::new(Model::synthetic(config.expect("valid"), Compute::F32, 3))
}

/// The recipe of a run beside which `kl_reference` may lie.
fn recipe(home: &Path, kl_reference: &str) -> Recipe {
    let text = format!(
        "name = \"r\"\nmodel = \"m\"\nenvironment = \"e\"\n[train]\nkl_penalty = 0.5\n\
         kl_reference = \"{kl_reference}\"\n[lora]\nrank = 2\n"
    );
    let path = home.join("recipe.toml");
    std::fs::write(&path, text).expect("written");
    Recipe::load(&path).expect("valid")
}

/// A trainer a few steps on: its adapter says something else than the base.
fn trainer(recipe: &Recipe) -> Trainer {
    let (model, lora) = (model(), restore::lora(recipe));
    let adapter = Adapter::init(model.config(), &lora, 1).expect("valid");
    let mut trainer = Trainer::new(model, adapter, Threads::new(1)).expect("they fit");
    let datum = Datum {
        tokens: vec![1, 2, 3, 4, 5],
        sampled_logprobs: vec![0.0; 4],
        advantages: vec![1.0; 4],
        weights: vec![1.0; 4],
    };
    let params = AdamParams {
        lr: 0.02,
        ..AdamParams::default()
    };
    for _ in 0..3 {
        let output = trainer.forward_backward(std::slice::from_ref(&datum), &Loss::CrossEntropy);
        output.expect("finite");
        trainer.optim_step(&params).expect("valid");
    }
    trainer
}

fn settings(recipe: &Recipe, kl_penalty: f32) -> StepSettings {
    StepSettings {
        kl_penalty,
        estimator: Estimator::DrGrpo,
        ..restore::settings(recipe)
    }
}

/// A group whose answers the trainer's adapter has sampled.
fn group(trainer: &Trainer, numerics: &str) -> Vec<PlayedGroup> {
    let adapter = trainer.published();
    let member = |(reward, tokens): (f64, [u32; 5])| {
        let scores = score(trainer.model(), Some(&adapter), &tokens, &Threads::new(1));
        Arc::new(Trajectory {
            header: header(Some(version(&adapter)), numerics, reward),
            tokens: tokens.to_vec(),
            logprobs: [vec![0.0], scores.expect("it fits")].concat(),
            sampled: vec![0, 0, 1, 1, 1],
        })
    };
    let members = [(1.0, [7, 8, 9, 10, 11]), (0.0, [7, 8, 12, 13, 14])].map(member);
    vec![PlayedGroup {
        degraded: false,
        members: members.to_vec(),
    }]
}

fn version(adapter: &Adapter) -> AdapterVersion {
    AdapterVersion {
        run: RunId(1),
        lineage: 0,
        step: 3,
        digest: Digest(adapter.digest()),
    }
}

/// The adapter and the report of one step.
fn stepped(recipe: &Recipe, kl_penalty: f32, pull: Pull<'_>) -> (Digest, StepReport) {
    let mut trainer = trainer(recipe);
    let settings = settings(recipe, kl_penalty);
    let groups = group(&trainer, &settings.numerics);
    let parent = version(&trainer.published());
    let made = step::make(&mut trainer, &settings, pull, parent, &groups).expect("a step");
    (made.digest, made.report)
}

#[test]
fn a_policy_is_not_pulled_towards_itself_but_towards_others() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "base");
    let itself = trainer(&recipe).published();
    let towards = |adapter, metric| Pull { adapter, metric };
    let (free, report) = stepped(&recipe, 0.0, towards(None, "kl_base"));
    assert!(report.metrics.is_empty());
    let (pulled, report) = stepped(&recipe, 0.7, towards(Some(&itself), "kl_reference"));
    assert_eq!(report.metrics["kl_reference"], 0.0);
    assert_eq!(pulled, free);
    let (to_base, report) = stepped(&recipe, 0.7, towards(None, "kl_base"));
    assert!(report.metrics["kl_base"].abs() > 1e-6, "{report:?}");
    assert_ne!(to_base, free);
}

#[test]
fn a_version_of_the_run_is_the_reference_once_it_is_made() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "step:2");
    let (model, directory) = (model(), home.path().join("reference"));
    let adapter = trainer(&recipe).published();
    let open = |steps: &[StepRecord]| {
        Reference::open(&directory, &recipe, model.config(), steps).expect("open")
    };
    let mut reference = open(&[]);
    reference.made(1, &adapter).expect("not the one");
    let before = reference.pull(1).expect("the base");
    assert!(before.adapter.is_none() && before.metric == "kl_reference");
    assert!(!directory.exists());
    reference.made(2, &adapter).expect("written");
    let same = |reference: &Reference| {
        let pull = reference.pull(2).expect("the version");
        pull.adapter == Some(&*adapter)
    };
    assert!(same(&reference));

    // A learner that comes back, once after the step was recorded, once before.
    let record = |digest: String| StepRecord {
        step: 2,
        lineage: 0,
        digest,
        parent: String::new(),
        bytes: 0,
        groups: Vec::new(),
        dropped: Vec::new(),
        failed: Vec::new(),
        report: StepReport::default(),
    };
    let recorded = record(Digest(adapter.digest()).to_string());
    assert!(same(&open(&[recorded])));
    assert!(open(&[]).pull(1).expect("the base").adapter.is_none());
    let other = open(&[record(Digest([7; 32]).to_string())]);
    let fault = other.pull(2).expect_err("another adapter lies there");
    assert_eq!(fault.code, ErrorCode::CheckpointInvalid);
}

#[test]
fn a_folder_is_copied_into_the_run_and_not_asked_again() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "old");
    let (model, directory) = (model(), home.path().join("reference"));
    let open = || Reference::open(&directory, &recipe, model.config(), &[]);
    let fault = open().expect_err("nothing there");
    assert_eq!(fault.code, ErrorCode::ConfigInvalid);
    let place = home.path().join("old").display().to_string();
    assert!(fault.message.contains(&place), "{fault}");

    let adapter = trainer(&recipe).published();
    adapter.save_peft(Path::new(&place), "m").expect("written");
    for _ in 0..2 {
        let reference = open().expect("there, then kept");
        let pull = reference.pull(0).expect("from the first step on");
        assert_eq!(pull.adapter.map(Adapter::digest), Some(adapter.digest()));
        assert_eq!(pull.metric, "kl_reference");
        let _ = std::fs::remove_dir_all(&place);
    }
}
