use super::*;

use std::collections::BTreeMap;

use volley_engine::adapter::LoraConfig;
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::safetensors::{Dtype, SafetensorsFile, TensorData, serialize};
use volley_engine::score::score;
use volley_engine::train::{AdamParams, Datum, Estimator, Loss, Trainer};
use volley_protocol::run::StepReport;
use volley_protocol::{AdapterVersion, RunId, Trajectory};

use crate::restore;
use crate::step::tests::header;
use crate::step::{self, PlayedGroup, StepSettings};

const WEIGHTS: &str = "adapter_model.safetensors";

const MODEL: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32,
    "vocab_size": 50, "tie_word_embeddings": true, "max_position_embeddings": 64,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"
}"#;

fn model() -> Arc<Model> {
    let config = ModelConfig::parse(Path::new("config.json"), MODEL.as_bytes());
    Arc::new(Model::synthetic(config.expect("valid"), Compute::F32, 3).expect("small"))
}

/// The recipe of a run beside which `kl_reference` may lie.
pub(crate) fn recipe(home: &Path, kl_reference: &str) -> Recipe {
    let text = format!(
        "name = \"r\"\nmodel = \"m\"\nenvironment = \"e\"\n[train]\nkl_penalty = 0.5\n\
         kl_reference = \"{kl_reference}\"\n[lora]\nrank = 2\n"
    );
    let path = home.join("recipe.toml");
    std::fs::write(&path, text).expect("written");
    Recipe::load(&path).expect("valid")
}

/// A text to learn.
pub(crate) fn datum() -> Datum {
    Datum {
        tokens: vec![1, 2, 3, 4, 5],
        sampled_logprobs: vec![0.0; 4],
        advantages: vec![1.0; 4],
        weights: vec![1.0; 4],
    }
}

/// A trainer a few steps on: its adapter says something else than the base.
pub(crate) fn trainer(recipe: &Recipe) -> Trainer {
    let (model, lora) = (model(), restore::lora(recipe));
    let adapter = Adapter::init(model.config(), &lora, 1).expect("valid");
    let mut trainer = Trainer::new(model, adapter, Threads::new(1)).expect("they fit");
    let datum = datum();
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
    let towards = |adapter, metric| Pull {
        adapter,
        digest: None,
        metric,
    };
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
    let open =
        |steps: &[StepRecord]| Reference::open(&directory, &recipe, &model, steps).expect("open");
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
        digest,
        ..record(2, None)
    };
    let recorded = record(Digest(adapter.digest()).to_string());
    assert!(same(&open(std::slice::from_ref(&recorded))));
    assert!(open(&[]).pull(1).expect("the base").adapter.is_none());
    let other = open(&[record(Digest([7; 32]).to_string())]);
    let fault = other.pull(2).expect_err("another adapter lies there");
    assert_eq!(fault.code, ErrorCode::CheckpointInvalid);

    // A damaged one does not hinder a replay that writes it again; without one, it is missing.
    std::fs::write(directory.join(WEIGHTS), "torn").expect("written");
    let mut damaged = open(std::slice::from_ref(&recorded));
    assert!(damaged.pull(1).expect("the base").adapter.is_none());
    let fault = damaged.pull(2).expect_err("nothing to pull towards");
    assert_eq!(fault.code, ErrorCode::CheckpointInvalid);
    damaged.made(2, &adapter).expect("written again");
    assert!(same(&damaged) && same(&open(&[recorded])));
}

/// A step that was pulled towards this adapter.
fn record(step: u64, reference: Option<&Adapter>) -> StepRecord {
    StepRecord {
        step,
        lineage: 0,
        digest: String::new(),
        parent: String::new(),
        bytes: 0,
        groups: Vec::new(),
        dropped: Vec::new(),
        failed: Vec::new(),
        reference: reference.map(|adapter| Digest(adapter.digest()).to_string()),
        report: StepReport::default(),
    }
}

#[test]
fn a_run_goes_on_with_the_folder_it_began_with_or_not_at_all() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "old");
    let (model, directory) = (model(), home.path().join("reference"));
    let open = |steps: &[StepRecord]| Reference::open(&directory, &recipe, &model, steps);
    let refused = |steps: &[StepRecord]| {
        let fault = open(steps).expect_err("not what the steps were pulled towards");
        assert_eq!(fault.code, ErrorCode::CheckpointInvalid);
        fault.to_string()
    };
    let first = trainer(&recipe).published();
    let second = Adapter::init(model.config(), &restore::lora(&recipe), 2).expect("valid");
    first
        .save_peft(&home.path().join("old"), "m")
        .expect("written");
    let pulled = open(&[]).expect("copied").pull(0).expect("there").digest;
    assert_eq!(pulled, Some(Digest(first.digest())));
    let steps = [record(1, Some(&first)), record(2, Some(&first))];
    assert!(open(&steps).is_ok() && open(&[record(1, None)]).is_ok());

    // The folder has changed and the copy is gone, or is another one.
    second
        .save_peft(&home.path().join("old"), "m")
        .expect("written");
    std::fs::remove_dir_all(&directory).expect("removed");
    assert!(refused(&steps).contains("reference"));
    refused(&[record(1, None)]);
    assert!(!directory.exists());
    second.save_peft(&directory, "m").expect("written");
    let message = refused(&steps);
    let due = Digest(first.digest()).to_string();
    assert!(message.contains(&due), "{message}");
    first.save_peft(&directory, "m").expect("put back");
    assert!(open(&steps).is_ok());
}

#[test]
fn a_folder_of_another_base_is_refused() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "old");
    let (model, folder) = (model(), home.path().join("old"));
    let lora = LoraConfig {
        lm_head: true,
        ..restore::lora(&recipe)
    };
    let adapter = Adapter::init(model.config(), &lora, 1).expect("valid");
    adapter.save_peft(&folder, "m").expect("written");
    // PEFT leaves a copy of the base's output matrix beside a pair on it.
    let with_copy = |copy: &[f32]| {
        let file = SafetensorsFile::open(&folder.join(WEIGHTS)).expect("written");
        let copied = "base_model.model.lm_head.base_layer.weight";
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let read = |name: &String| file.tensor(name).expect("it is there");
        let values: Vec<Vec<f32>> = names.iter().map(|name| read(name).to_f32()).collect();
        let own = names
            .iter()
            .zip(&values)
            .filter(|(name, _)| *name != copied);
        let tensor = |name: &str, shape: Vec<usize>, data| TensorData {
            name: name.to_owned(),
            shape,
            dtype: Dtype::F32,
            data,
        };
        let own = own.map(|(name, values)| tensor(name, read(name).shape().to_vec(), values));
        let copy = tensor(copied, vec![50, 16], copy);
        let tensors: Vec<TensorData<'_>> = own.chain([copy]).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize(&tensors, &metadata).expect("whole")
    };
    let mut output = model.output().to_row_major();
    let put = |bytes: Vec<u8>| std::fs::write(folder.join(WEIGHTS), bytes).expect("written");
    put(with_copy(&output));
    assert!(load_reference(&recipe, &model).is_ok_and(|adapter| adapter.is_some()));
    output[3] += 0.5;
    put(with_copy(&output));
    let fault = load_reference(&recipe, &model).expect_err("another base");
    assert_eq!(fault.code, ErrorCode::ConfigInvalid);
    assert!(fault.message.contains("base_layer"), "{fault}");
}

#[test]
fn a_folder_is_copied_into_the_run_and_not_asked_again() {
    let home = tempfile::tempdir().expect("directory");
    let recipe = recipe(home.path(), "old");
    let (model, directory) = (model(), home.path().join("reference"));
    let open = || Reference::open(&directory, &recipe, &model, &[]);
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
