//! Adapters in files and byte strings: what is read, what is written, what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use volley_engine::adapter::{Adapter, LoraConfig, Site, Target};
use volley_engine::model::Model;
use volley_engine::safetensors::{Dtype, TensorData, write};
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
    assert!(qv.pair(Site::Layer(0, Target::K)).is_none());
    assert!(qv.pair(Site::LmHead).is_none());

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

/// Frozen when the output matrix could not be adapted yet: adapters without a pair there keep
/// their bytes, fresh ones their values.
#[test]
fn digests_of_adapters_of_layers_are_pinned() {
    let hex = |adapter: &Adapter| -> String {
        let bytes = adapter.digest().into_iter();
        bytes.map(|byte| format!("{byte:02x}")).collect()
    };
    for (name, digest) in [
        (
            "adapter",
            "97e95dcf818e12a4eeabba0a7dd15cadb4c46f980a3fc5cd19f922c10f0015d9",
        ),
        (
            "adapter_r4_qv",
            "ed00ffca55942ae69c3ff383bb694355666c87549a1625f3a5097fc0ce49e7ba",
        ),
        (
            "adapter_r16_rslora",
            "d101f4c27474147b152576bfbd19234966e091dd183f39ece772702b140d815a",
        ),
    ] {
        assert_eq!(hex(&load(name)), digest, "{name}");
    }
    let fresh = Adapter::init(&model(), &LoraConfig::all_linear(7, 14.0), 1).expect("valid");
    let digest = "0394c0572f2df06297b192ae8e25e90eb5dff07f38ab9e29fa3c7a56130562d8";
    assert_eq!(hex(&fresh), digest);
    // A pair on the output matrix leaves the initial values of the others as they are.
    let with_head = fresh_with_head(7);
    assert_ne!(with_head.digest(), fresh.digest());
    for tensor in fresh.tensors() {
        let pair = with_head.pair(tensor.site).expect("it is adapted, too");
        assert!(tensor.values == pair.a || tensor.values == pair.b);
    }
}

fn fresh_with_head(rank: usize) -> Adapter {
    let config = LoraConfig {
        lm_head: true,
        ..LoraConfig::all_linear(rank, 14.0)
    };
    Adapter::init(&model(), &config, 1).expect("valid")
}

#[test]
fn an_adapter_of_the_output_matrix_survives_files_and_bytes() {
    let head_alone = LoraConfig {
        rank: 3,
        alpha: 4.0,
        rslora: false,
        targets: Vec::new(),
        lm_head: true,
    };
    let head_alone = Adapter::init(&model(), &head_alone, 5).expect("valid");
    assert_eq!(head_alone.tensors().count(), 2);
    for adapter in [
        fresh_with_head(1),
        fresh_with_head(7),
        fresh_with_head(256),
        head_alone,
    ] {
        let names: Vec<String> = adapter.tensors().map(|tensor| tensor.peft_name()).collect();
        let last =
            ["lora_A", "lora_B"].map(|half| format!("base_model.model.lm_head.{half}.weight"));
        assert_eq!(names[names.len() - 2..], last);
        let again = Adapter::from_bytes(&model(), &adapter.to_bytes()).expect("its own bytes");
        assert_eq!((&again, again.digest()), (&adapter, adapter.digest()));
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        adapter
            .save_peft(dir.path(), "qwen3-tiny")
            .expect("it is writable");
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json"));
        let config: Value = serde_json::from_str(&text.expect("it is there")).expect("JSON");
        let modules = config["target_modules"].as_array().expect("a list");
        assert_eq!(modules.last(), Some(&json!("lm_head")));
        assert_eq!(modules.len(), adapter.config().targets.len() + 1);
        let again = Adapter::load_peft(&model(), dir.path()).expect("it loads");
        assert_eq!(again, adapter);
    }
}

/// The file of a small adapter of two matrices, after a change to its tensors: names, shapes and
/// values.
fn with_tensors(
    change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>),
) -> tempfile::TempDir {
    let config = LoraConfig {
        rank: 2,
        alpha: 2.0,
        rslora: false,
        targets: vec![Target::Q],
        lm_head: true,
    };
    let adapter = Adapter::init(&model(), &config, 5).expect("valid");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    adapter
        .save_peft(dir.path(), "qwen3-tiny")
        .expect("it is writable");
    let tensors = adapter.tensors();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tensors
        .map(|t| (t.peft_name(), (t.shape.to_vec(), t.values.to_vec())))
        .collect();
    change(&mut tensors);
    let data: Vec<TensorData<'_>> = (tensors.iter())
        .map(|(name, (shape, data))| TensorData {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
            data,
        })
        .collect();
    let path = dir.path().join("adapter_model.safetensors");
    write(&path, &data, &BTreeMap::new()).expect("writable");
    dir
}

#[test]
fn a_broken_pair_on_the_output_matrix_is_refused_by_name() {
    const A: &str = "base_model.model.lm_head.lora_A.weight";
    const B: &str = "base_model.model.lm_head.lora_B.weight";
    let refused = |dir: tempfile::TempDir, parts: &[&str]| {
        let error = Adapter::load_peft(&model(), dir.path()).expect_err("it is broken");
        assert_eq!(error.code(), "ADAPTER_MISMATCH");
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let put = |name: &'static str, rows: usize, columns: usize| {
        let tensor = (vec![rows, columns], vec![0.5; rows * columns]);
        with_tensors(|tensors| {
            tensors.insert(name.to_owned(), tensor);
        })
    };
    refused(put(A, 2, 63), &[A, "expected=[2, 64]", "got=[2, 63]"]);
    refused(put(A, 3, 64), &[A, "expected=[2, 64]", "got=[3, 64]"]);
    refused(put(B, 511, 2), &[B, "expected=[512, 2]", "got=[511, 2]"]);
    refused(put(B, 2, 512), &[B, "expected=[512, 2]", "got=[2, 512]"]);
    refused(put(B, 0, 2), &[B, "got=[0, 2]"]);
    let without = |names: &'static [&'static str]| {
        with_tensors(|tensors| tensors.retain(|name, _| !names.contains(&name.as_str())))
    };
    refused(without(&[B]), &["lm_head.lora_B is missing"]);
    refused(without(&[A]), &["lm_head.lora_A is missing"]);
    refused(without(&[A, B]), &["lm_head is missing"]);
    // The embedding itself cannot be adapted, and no other name is the output matrix.
    let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
    refused(put(embedding, 2, 512), &[embedding, "not in this model"]);
    let nested = "base_model.model.model.lm_head.lora_A.weight";
    refused(put(nested, 2, 64), &[nested, "not in this model"]);
}

#[test]
fn a_copy_of_the_output_matrix_must_be_the_models() {
    const COPY: &str = "base_model.model.lm_head.base_layer.weight";
    let model = Model::load(&fixture()).expect("the fixture loads");
    let output = model.output().to_row_major();
    let with_copy = |shape: [usize; 2], values: Vec<f32>| {
        with_tensors(|tensors| {
            tensors.insert(COPY.to_owned(), (shape.to_vec(), values));
        })
    };
    let same = with_copy([512, 64], output.clone());
    Adapter::load_peft_for(&model, same.path()).expect("it is the model's");
    // Rounded as training in 16 bits leaves it.
    let rounded = |v: &f32| f32::from_bits((v.to_bits() + 0x8000) & 0xFFFF_0000);
    let rounded = with_copy([512, 64], output.iter().map(rounded).collect());
    Adapter::load_peft_for(&model, rounded.path()).expect("it is the model's, rounded");
    let mut other = output.clone();
    other[5 * 64 + 3] += 0.01;
    let other = with_copy([512, 64], other);
    let error = Adapter::load_peft_for(&model, other.path()).expect_err("another matrix");
    assert_eq!(error.code(), "ADAPTER_MISMATCH");
    assert!(error.to_string().contains("row 5"), "{error}");
    let nan = with_copy([512, 64], vec![f32::NAN; 512 * 64]);
    assert!(Adapter::load_peft_for(&model, nan.path()).is_err());
    let short = with_copy([511, 64], output[64..].to_vec());
    let error = Adapter::load_peft(model.config(), short.path()).expect_err("another size");
    assert!(error.to_string().contains("got=[511, 64]"), "{error}");
    // A copy without a pair: PEFT writes none.
    let alone = with_tensors(|tensors| {
        tensors.retain(|name, _| !name.contains("lm_head"));
        tensors.insert(COPY.to_owned(), (vec![512, 64], output));
    });
    let config = alone.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).expect("it is there");
    std::fs::write(&config, text.replace("\"lm_head\"", "\"q_proj\"")).expect("writable");
    let error = Adapter::load_peft(model.config(), alone.path()).expect_err("a copy of what?");
    assert!(error.to_string().contains("belongs to no pair"), "{error}");
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
