//! Adapters in files and byte strings: what is read, what is written, what is refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use volley_engine::adapter::{Adapter, LoraConfig, Target};
use volley_engine::{EngineError, ModelConfig};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen3-tiny")
}

fn model() -> ModelConfig {
    ModelConfig::load(&fixture()).expect("the fixture loads")
}

fn load(name: &str) -> Adapter {
    Adapter::load_peft(&model(), &fixture().join(name)).expect("the adapter loads")
}

/// A copy of a fixture's adapter with one key of its configuration changed.
fn with_setting(key: &str, value: Value) -> Result<Adapter, EngineError> {
    let from = fixture().join("adapter");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config[key] = value;
    let to = dir.path();
    std::fs::write(to.join("adapter_config.json"), config.to_string()).expect("writable");
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), to.join(weights)).expect("writable");
    Adapter::load_peft(&model(), to)
}

#[test]
fn adapters_of_the_fixture_load() {
    let all = load("adapter");
    assert_eq!((all.rank(), all.scale()), (8, 2.0));
    assert_eq!(all.config().targets, Target::ALL);
    assert_eq!(all.tensors().count(), 4 * 7 * 2);

    let qv = load("adapter_r4_qv");
    assert_eq!((qv.rank(), qv.scale()), (4, 2.0));
    assert_eq!(qv.config().targets, [Target::Q, Target::V]);
    assert!(qv.pair(0, Target::K).is_none());

    let rslora = load("adapter_r16_rslora");
    assert_eq!((rslora.rank(), rslora.scale()), (16, 4.0));
}

#[test]
fn what_peft_wrote_survives_a_round_trip() {
    for name in ["adapter", "adapter_r4_qv", "adapter_r16_rslora"] {
        let adapter = load(name);
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        adapter
            .save_peft(dir.path(), "qwen3-tiny")
            .expect("it is writable");
        let again = Adapter::load_peft(&model(), dir.path()).expect("it loads");
        assert_eq!(again, adapter);
    }
}

#[test]
fn bytes_carry_everything_and_name_the_adapter() {
    let adapter = load("adapter_r16_rslora");
    let bytes = adapter.to_bytes();
    let again = Adapter::from_bytes(&model(), &bytes).expect("it fits");
    assert_eq!(again, adapter);
    assert_eq!(again.to_bytes(), bytes);
    assert_eq!(again.digest(), adapter.digest());
    assert_ne!(load("adapter").digest(), adapter.digest());
}

#[test]
fn damaged_bytes_are_errors() {
    let bytes = load("adapter_r4_qv").to_bytes();
    for length in (0..bytes.len()).step_by(97) {
        assert!(Adapter::from_bytes(&model(), &bytes[..length]).is_err());
    }
    let header_bytes = 3_000;
    for at in (0..header_bytes).step_by(7) {
        let mut noisy = bytes.clone();
        noisy[at] ^= 0x15;
        // Many flips still leave a valid file; none may panic.
        let _ = Adapter::from_bytes(&model(), &noisy);
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_depends_on_its_seed_alone() {
    let config = LoraConfig::all_linear(8, 16.0);
    let fresh = |seed| Adapter::init(&model(), &config, seed).expect("it is valid");
    let adapter = fresh(1);
    assert_eq!(adapter, fresh(1));
    assert_ne!(adapter, fresh(2));
    adapter.check_finite().expect("it is finite");
    adapter.check_fits(&model()).expect("it fits");
    for tensor in adapter.tensors() {
        let largest = tensor.values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        if tensor.module_name().ends_with("lora_B") {
            assert_eq!(largest, 0.0);
        } else {
            let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
            assert!(largest <= bound && largest > 0.95 * bound, "{largest}");
        }
    }
}

#[test]
fn settings_that_change_the_mathematics_are_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("modules_to_save", json!(["lm_head"])),
        ("target_parameters", json!(["mlp.experts"])),
        ("trainable_token_indices", json!([1])),
        ("layer_replication", json!([[0, 2]])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("IA3")),
    ] {
        let error = with_setting(key, value).expect_err(key);
        assert_eq!(error.code(), "ADAPTER_MISMATCH");
        assert!(error.to_string().contains(key), "{error}");
    }
    with_setting("a_key_of_the_future", json!({"x": 1})).expect("unknown keys are ignored");
    with_setting("lora_dropout", json!(0.1)).expect("dropout is about training");
    with_setting("init_lora_weights", json!("gaussian")).expect("the base stays");
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let error = with_setting("r", json!(9)).expect_err("the rank differs");
    let text = error.to_string();
    for part in [
        "tensor=base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
        "expected=[9, 128]",
        "got=[8, 128]",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let mut other = model();
    other.num_layers = 2;
    let dir = fixture().join("adapter");
    assert!(Adapter::load_peft(&other, &dir).is_err());
    assert!(load("adapter").check_fits(&other).is_err());
    other.num_layers = 5;
    assert!(Adapter::load_peft(&other, &dir).is_err());
}

#[test]
fn values_that_are_not_finite_are_found() {
    let adapter = load("adapter_r4_qv");
    let mut bytes = adapter.to_bytes();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let poisoned = Adapter::from_bytes(&model(), &bytes).expect("the layout is right");
    let error = poisoned.check_finite().expect_err("it has a NaN");
    assert_eq!(error.code(), "ADAPTER_NONFINITE");
    assert!(error.to_string().contains("layers.3"), "{error}");
}
