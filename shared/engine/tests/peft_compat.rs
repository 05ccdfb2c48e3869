//! What we save, PEFT loads, and it computes the same log-probabilities and gradients; what it
//! saves in turn, we load.
//!
//! Runs `tests/compat/peft_check.py` with `python3` where torch, transformers and peft are
//! installed; elsewhere it says that it skips. `VOLLEY_PYTHON_PEERS=1` makes their absence an
//! error.

mod fixture;
mod random_model;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixture::Fixture;
use serde_json::{Value, json};
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::safetensors::SafetensorsFile;
use volley_engine::score::score;
use volley_engine::train::{AdamParams, Datum, Loss, Trainer};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/peft_check.py")
}

fn peers_are_installed() -> bool {
    let probe = Command::new("python3")
        .arg(script())
        .arg("--probe")
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

#[expect(clippy::disallowed_methods, reason = "a switch of this test alone")]
fn peers_are_required() -> bool {
    std::env::var("VOLLEY_PYTHON_PEERS").is_ok_and(|value| value == "1")
}

/// What a skipped test says.
const SKIPPED: &str = "skipped: python3 has no torch, transformers and peft";

/// Whether a test that needs the libraries can run.
fn can_run() -> bool {
    let installed = peers_are_installed();
    assert!(installed || !peers_are_required(), "{SKIPPED}, required");
    installed
}

/// Log-probabilities of the golden sequences, computed by PEFT from a saved adapter. In `out`, if
/// it is given, PEFT leaves the adapter as it saves it, and gradients.
fn logprobs_of_peft(fixture: Fixture, adapter: &Path, out: Option<&Path>) -> Vec<Vec<f64>> {
    let mut child = Command::new("python3")
        .args([&script(), &fixture.dir()])
        .arg(adapter)
        .args(out)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 starts");
    let input = json!({"sequences": fixture.sequences()}).to_string();
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("the script reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the script ends");
    assert!(output.status.success(), "{}", output.status);
    let mut answer: Value = serde_json::from_slice(&output.stdout).expect("it answers in JSON");
    serde_json::from_value(answer["logprobs"].take()).expect("lists of numbers")
}

/// Two steps away from what PEFT once wrote, so that nothing is a copy of its file.
fn trained() -> (Trainer, std::sync::Arc<Adapter>) {
    let model = fixture::model();
    let adapter = fixture::adapter(&model, "adapter_r16_rslora");
    let mut trainer = Trainer::new(model, adapter, Threads::new(1)).expect("they fit");
    let loss = Loss::CrossEntropy;
    for _ in 0..2 {
        let data = fixture::data(&loss);
        trainer
            .forward_backward(&data, &loss)
            .expect("it is finite");
        let params = AdamParams {
            lr: 1e-3,
            ..AdamParams::default()
        };
        trainer.optim_step(&params).expect("the settings are valid");
    }
    let published = trainer.published();
    (trainer, published)
}

/// Fails unless PEFT's log-probabilities of the golden sequences are ours.
fn same_logprobs(fixture: Fixture, model: &Model, adapter: &Adapter, peft: &[Vec<f64>]) {
    let sequences = fixture.sequences();
    assert_eq!(peft.len(), sequences.len());
    for (tokens, peft) in sequences.iter().zip(peft) {
        let ours = score(model, Some(adapter), tokens, &Threads::new(1));
        let ours = ours.expect("it fits");
        assert_eq!(ours.len(), peft.len());
        for (ours, peft) in ours.iter().zip(peft) {
            assert!((f64::from(*ours) - peft).abs() <= 1e-4, "{ours} {peft}");
        }
    }
}

#[test]
fn a_saved_adapter_means_the_same_to_peft() {
    if !can_run() {
        println!("{SKIPPED}");
        return;
    }
    let (trainer, adapter) = trained();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    adapter
        .save_peft(dir.path(), "qwen3-tiny")
        .expect("it is writable");
    let peft = logprobs_of_peft(fixture::QWEN3, dir.path(), None);
    same_logprobs(fixture::QWEN3, trainer.model(), &adapter, &peft);
}

/// Gradients of the sum of all negative log-probabilities against those of torch.
fn same_gradients(trainer: &mut Trainer, fixture: Fixture, theirs: &SafetensorsFile) {
    let data = fixture.sequences().into_iter().map(|tokens| {
        let targets = tokens.len() - 1;
        Datum {
            tokens,
            sampled_logprobs: vec![0.0; targets],
            advantages: vec![0.0; targets],
            weights: vec![1.0; targets],
        }
    });
    let data: Vec<Datum> = data.collect();
    let output = trainer.forward_backward(&data, &Loss::CrossEntropy);
    output.expect("it is finite");
    let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    assert_eq!(theirs.names().count(), trainer.grads().count());
    for grad in trainer.grads() {
        let name = format!("base_model.model.{}.weight", grad.name);
        let due = theirs.tensor(&name).expect("torch has it, too").to_f32();
        assert_eq!(due.len(), grad.values.len(), "{name}");
        let error = norm(&mut due.iter().zip(grad.values).map(|(a, b)| a - b));
        let due = norm(&mut due.iter().copied());
        assert!(
            due > 0.0 && error <= 1e-4 * due,
            "{fixture:?} {name}: {error:e} of {due:e}"
        );
    }
}

#[test]
fn an_adapter_of_the_output_matrix_means_the_same_to_peft_at_every_rank() {
    if !can_run() {
        println!("{SKIPPED}");
        return;
    }
    // One with a tied embedding, one without.
    for fixture in [fixture::QWEN3, Fixture("qwen2-tiny")] {
        let model = fixture.model();
        for rank in [1, 7, 256] {
            let config = LoraConfig {
                lm_head: true,
                rslora: true,
                ..LoraConfig::all_linear(rank, 1.0)
            };
            let adapter = random_model::adapter(&model, &config, 6);
            let (ours, theirs) = (tempfile::tempdir(), tempfile::tempdir());
            let (ours, theirs) = (ours.expect("a folder"), theirs.expect("a folder"));
            adapter
                .save_peft(ours.path(), "tiny")
                .expect("it is writable");
            let peft = logprobs_of_peft(fixture, ours.path(), Some(theirs.path()));
            same_logprobs(fixture, &model, &adapter, &peft);
            let again = Adapter::load_peft_for(&model, theirs.path()).expect("PEFT saved it");
            assert_eq!(again, adapter, "{fixture:?} {rank}");
            let gradients = SafetensorsFile::open(&theirs.path().join("gradients.safetensors"));
            let trainer = Trainer::new(model.clone(), adapter, Threads::new(2));
            let mut trainer = trainer.expect("they fit");
            same_gradients(
                &mut trainer,
                fixture,
                &gradients.expect("the script wrote it"),
            );
        }
    }
}
