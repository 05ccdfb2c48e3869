//! `volley policy` against the golden numbers of the tiny model.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use volley_engine::safetensors::SafetensorsFile;

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen3-tiny");
    root.join(name)
}

fn volley(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_volley"))
        .arg("policy")
        .args(args)
        .arg("--json")
        .output()
        .expect("the binary starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {err}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn golden() -> Value {
    let text = std::fs::read(fixture("golden.json")).expect("the fixture");
    serde_json::from_slice(&text).expect("JSON")
}

/// Largest |a − b|.
fn distance(values: &Value, expected: &[f32]) -> f64 {
    let values = values.as_array().expect("an array");
    assert_eq!(values.len(), expected.len());
    let pairs = values.iter().zip(expected);
    let far = |(value, expected): (&Value, &f32)| {
        (value.as_f64().expect("a number") - f64::from(*expected)).abs()
    };
    pairs.map(far).fold(0.0, f64::max)
}

#[test]
fn scores_are_golden() {
    let file = SafetensorsFile::open(&fixture("golden.safetensors")).expect("the fixture");
    let tokens: Vec<_> = (0..4)
        .map(|i| file.integers(&format!("seq{i}.tokens")).expect("tokens"))
        .collect();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let input = dir.path().join("ids.json");
    std::fs::write(&input, json!({ "sequences": tokens }).to_string()).expect("writable");
    let (model, adapter) = (fixture(""), fixture("adapter"));
    let base = ["score", "--model", text(&model), "--input", text(&input)];
    let with_adapter = [&base[..], &["--adapter", text(&adapter)]].concat();
    for (args, prefix) in [(&base[..], ""), (&with_adapter, "adapter.")] {
        let scored = volley(args);
        for i in 0..4 {
            let name = format!("{prefix}seq{i}.logprobs");
            let expected = file.tensor(&name).expect("golden").to_f32();
            let distance = distance(&scored["logprobs"][i], &expected);
            assert!(distance < 1e-4, "{name}: {distance}");
        }
    }
}

#[test]
fn greedy_texts_are_golden() {
    let golden = golden();
    let generation = &golden["generations"][0];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let input = dir.path().join("ids.json");
    let prompts = json!({ "prompts": [generation["prompt"]] });
    std::fs::write(&input, prompts.to_string()).expect("writable");
    let model = fixture("");
    let args = [
        "generate",
        "--model",
        text(&model),
        "--input",
        text(&input),
        "--max-tokens",
        "8",
    ];
    let generated = volley(&args);
    let tokens = generated["sequences"][0]["tokens"]
        .as_array()
        .expect("tokens");
    let expected = generation["tokens"].as_array().expect("golden tokens");
    assert_eq!(tokens[..], expected[..8]);
}

#[test]
fn stop_strings_end_a_text_and_logprobs_agree_with_the_score() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let input = dir.path().join("ids.json");
    let prompt = json!({ "prompts": [[5, 17, 300, 22, 8], [5, 17, 300, 22, 8]] });
    std::fs::write(&input, prompt.to_string()).expect("writable");
    let model = fixture("");
    let files = ["--model", text(&model), "--input", text(&input)];
    let generate = |more: &[&str]| volley(&[&["generate"], &files[..], more].concat());
    let sample = ["--max-tokens", "6", "--temperature", "1"];
    let free = generate(&sample);
    let free = &free["sequences"][0];
    assert_eq!(
        (&free["end"], &free["text"]),
        (&json!("length"), &Value::Null)
    );
    // The sixth token's text begins with half a character.
    let stopped = generate(&[&sample[..], &["--stop", "never", "--stop", "rLa"]].concat());
    let stopped = &stopped["sequences"][1];
    assert_eq!(
        (&stopped["end"], &stopped["text"]),
        (&json!("stop_string"), &json!("Mho"))
    );
    assert_eq!(stopped["tokens"].as_array().map(Vec::len), Some(4));
    assert_eq!(stopped["tokens"][3], free["tokens"][3]);

    let only = [
        "--max-tokens",
        "0",
        "--prompt-logprobs",
        "--top-logprobs",
        "3",
    ];
    let prompt = generate(&only);
    let scored = volley(&[&["score"], &files[..]].concat());
    assert_eq!(
        prompt["sequences"][0]["prompt_logprobs"],
        scored["logprobs"][0]
    );
    let top = prompt["sequences"][1]["prompt_top_logprobs"].as_array();
    assert_eq!(top.map(Vec::len), Some(4));
}

#[test]
fn gradients_and_steps_are_golden() {
    let golden = golden();
    let (model, adapter) = (fixture(""), fixture("adapter"));
    let data = fixture("golden.safetensors");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let grads = dir.path().join("grads.safetensors");
    let config = golden["losses"]["ppo"]["config"].to_string();
    let batch = [
        "--model",
        text(&model),
        "--adapter",
        text(&adapter),
        "--data",
        text(&data),
    ];
    let ppo = [
        "--loss",
        "ppo",
        "--loss-config",
        &config,
        "--out",
        text(&grads),
    ];
    let told = volley(&[&["grad"], &batch[..], &ppo].concat());
    let close = |value: &Value, expected: &Value| {
        let (value, expected) = (value.as_f64().expect("a"), expected.as_f64().expect("b"));
        (value - expected).abs() <= 1e-4 * expected.abs()
    };
    assert!(
        close(&told["loss_sum"], &golden["losses"]["ppo"]["loss_sum"]),
        "{}",
        told["loss_sum"]
    );
    assert!(close(
        &told["grad_norm"],
        &golden["losses"]["ppo"]["grad_global_norm"]
    ));
    let written = SafetensorsFile::open(&grads).expect("written");
    let expected = SafetensorsFile::open(&fixture("golden_grads.safetensors")).expect("golden");
    let names: Vec<&str> = expected
        .names()
        .filter_map(|n| n.strip_prefix("ppo/"))
        .collect();
    assert!(
        names.iter().all(|name| written.tensor(name).is_ok()),
        "{names:?}"
    );

    let out = dir.path().join("adapter");
    let importance = [
        "--loss",
        "importance_sampling",
        "--steps",
        "3",
        "--lr",
        "1e-3",
    ];
    let decay = ["--weight-decay", "0.1", "--out", text(&out)];
    let told = volley(&[&["adamw"], &batch[..], &importance, &decay].concat());
    let steps = golden["adamw"]["wd01"]["steps"].as_array().expect("three");
    for (told, expected) in told["steps"].as_array().expect("three").iter().zip(steps) {
        assert!(
            close(&told["grad_norm"], &expected["grad_norm"]),
            "{told} {expected}"
        );
    }
    assert!(out.join("adapter_config.json").exists());
}
