//! What we save, PEFT loads, and it computes the same log-probabilities.
//!
//! Runs `tests/compat/peft_check.py` with `python3` where torch, transformers and peft are
//! installed; elsewhere it says that it skips. `VOLLEY_PYTHON_PEERS=1` makes their absence an
//! error.

mod fixture;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use volley_engine::adapter::Adapter;
use volley_engine::cpu::threads::Threads;
use volley_engine::score::score;
use volley_engine::train::{AdamParams, Loss, Trainer};

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

/// Log-probabilities of the golden sequences, computed by PEFT from a saved adapter.
fn logprobs_of_peft(adapter: &Path) -> Vec<Vec<f64>> {
    let mut child = Command::new("python3")
        .args([&script(), &fixture::dir()])
        .arg(adapter)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 starts");
    let input = json!({"sequences": fixture::QWEN3.sequences()}).to_string();
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

#[test]
fn a_saved_adapter_means_the_same_to_peft() {
    if !peers_are_installed() {
        assert!(
            !peers_are_required(),
            "python3 has no torch, transformers and peft"
        );
        println!("skipped: python3 has no torch, transformers and peft");
        return;
    }
    let (trainer, adapter) = trained();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    adapter
        .save_peft(dir.path(), "qwen3-tiny")
        .expect("it is writable");
    let peft = logprobs_of_peft(dir.path());
    let sequences = fixture::QWEN3.sequences();
    assert_eq!(peft.len(), sequences.len());
    for (tokens, peft) in sequences.iter().zip(&peft) {
        let ours = score(trainer.model(), Some(&adapter), tokens, &Threads::new(1));
        let ours = ours.expect("it fits");
        assert_eq!(ours.len(), peft.len());
        for (ours, peft) in ours.iter().zip(peft) {
            assert!((f64::from(*ours) - peft).abs() <= 1e-4, "{ours} {peft}");
        }
    }
}
