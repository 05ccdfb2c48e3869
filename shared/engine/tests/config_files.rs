//! `config.json` as the world writes it. What transformers 4 and 5 write for a supported model is
//! read as they read it (sizes, windows, rotary frequencies), the rest is refused by name, and no
//! number in a file leads to an angle that is none, or to memory that the weights do not back.

mod fixture;

use std::collections::BTreeMap;
use std::path::Path;

use fixture::Fixture;
use serde_json::{Value, json};
use volley_engine::adapter::Site;
use volley_engine::config::{Compute, ModelConfig, RopeConfig};
use volley_engine::cpu::rope::RopeTable;
use volley_engine::cpu::threads::Threads;
use volley_engine::error::EngineError;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, SYNTHETIC_WEIGHTS_MAX, Scratch, SequenceStep};
use volley_engine::safetensors::{SafetensorsFile, TensorData, write};

const GEMMA3: Fixture = Fixture("gemma3-tiny");

/// Written by `tests/compat/configs.py` with both versions.
const WRITTEN: &str = include_str!("../../../tests/fixtures/configs.jsonl");

fn parse(config: &Value) -> Result<ModelConfig, EngineError> {
    ModelConfig::parse(Path::new("c.json"), config.to_string().as_bytes())
}

/// The code and the words of the refusal.
fn refusal(config: &Value) -> (&'static str, String) {
    let error = parse(config).expect_err(&config.to_string());
    let message = error.to_string();
    assert!(message.starts_with("c.json"), "{message}");
    assert!(message.len() < 400, "{message}");
    (error.code(), message)
}

#[test]
fn what_transformers_writes_is_read_as_it_reads_it() {
    let (mut read, mut refused) = (0, 0);
    for line in WRITTEN.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let what = format!("{}, {}", line["made_by"], line["what"]);
        if let Some(word) = line["refused"].as_str() {
            let (code, message) = refusal(&line["config"]);
            assert_eq!(code, "MODEL_UNSUPPORTED", "{what}: {message}");
            assert!(message.contains(word), "{what}: {message}");
            refused += 1;
            continue;
        }
        let config = parse(&line["config"]).unwrap_or_else(|error| panic!("{what}: {error}"));
        compare(&what, &config, &line["expect"]);
        read += 1;
    }
    assert!(read > 120 && refused > 60, "{read} read, {refused} refused");
}

fn compare(what: &str, config: &ModelConfig, expect: &Value) {
    for (name, got) in [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_layers", config.num_layers),
        ("num_heads", config.num_heads),
        ("num_kv_heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
    ] {
        assert_eq!(expect[name], got, "{what}: {name}");
    }
    assert_eq!(expect["tied"], config.tie_word_embeddings, "{what}");
    let eps = expect["rms_norm_eps"].as_f64().expect("a number") as f32;
    assert_eq!(config.rms_norm_eps, eps, "{what}");
    let scalar = expect["scalar"].as_f64().unwrap_or(config.head_dim as f64);
    assert_eq!(config.attention_scale, scalar.powf(-0.5) as f32, "{what}");
    let windows = expect["windows"].as_array().expect("one per layer");
    assert_eq!(config.attention.len(), windows.len(), "{what}");
    for (layer, window) in config.attention.iter().zip(windows) {
        assert_eq!(layer.window, window.as_u64().map(|w| w as usize), "{what}");
        let kind = match layer.window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        let rope = config.ropes[layer.rope];
        compare_angles(what, config.head_dim, rope, &expect["frequencies"][kind]);
    }
}

/// At position one the angles are the frequencies, which the library keeps in f32.
fn compare_angles(what: &str, head_dim: usize, rope: RopeConfig, expect: &Value) {
    let expect = expect.as_array().expect("one per pair");
    let table = RopeTable::new(head_dim, rope, 2);
    let (cos, sin) = table.at(1);
    assert_eq!(cos.len(), expect.len(), "{what}");
    for ((cos, sin), frequency) in cos.iter().zip(sin).zip(expect) {
        let frequency = frequency.as_f64().expect("a number");
        assert!((f64::from(*cos) - frequency.cos()).abs() < 3e-7, "{what}");
        assert!((f64::from(*sin) - frequency.sin()).abs() < 3e-7, "{what}");
    }
}

/// A plain model in the keys of transformers 4.
fn plain() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 96, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
    })
}

fn gemma() -> Value {
    let mut config = plain();
    config["architectures"] = json!(["Gemma3ForCausalLM"]);
    config["sliding_window"] = json!(16);
    config
}

fn with(config: Value, changes: &[(&str, Value)]) -> Value {
    let mut config = config;
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

fn without(config: Value, key: &str) -> Value {
    let mut config = config;
    config.as_object_mut().expect("an object").remove(key);
    config
}

#[test]
fn null_is_what_a_missing_key_is() {
    let llama = [("architectures", json!(["LlamaForCausalLM"]))];
    for config in [plain(), gemma(), with(plain(), &llama)] {
        for key in [
            "mlp_bias",
            "attention_bias",
            "tie_word_embeddings",
            "use_sliding_window",
            "use_bidirectional_attention",
            "head_dim",
            "num_key_value_heads",
            "hidden_act",
            "hidden_activation",
            "layer_types",
            "rope_scaling",
            "rope_parameters",
            "partial_rotary_factor",
            "quantization_config",
            "num_experts",
            "eos_token_id",
            "query_pre_attn_scalar",
            "model_type",
        ] {
            let null = parse(&with(config.clone(), &[(key, Value::Null)]));
            let absent = parse(&without(config.clone(), key));
            match (null, absent) {
                (Ok(null), Ok(absent)) => assert_eq!(null, absent, "{key}"),
                (null, absent) => panic!("{key}: {null:?} and {absent:?}"),
            }
        }
    }
}

#[test]
fn a_scaling_without_a_type_is_refused() {
    for key in ["rope_scaling", "rope_parameters"] {
        for scaling in [
            json!({"factor": 8.0}),
            json!({"rope_theta": 1e6, "factor": 8.0}),
            json!({"rope_theta": 1e6, "rope_type": null, "mrope_section": [2, 1, 1]}),
        ] {
            let (code, message) = refusal(&with(plain(), &[(key, scaling)]));
            assert_eq!(code, "MODEL_UNSUPPORTED");
            assert!(
                message.contains(key) && message.contains("rope_type"),
                "{message}"
            );
        }
        for harmless in [
            json!({}),
            json!({"rope_theta": 1e6}),
            json!({"rope_theta": 1e6, "factor": null}),
            json!({"rope_theta": 1e6, "partial_rotary_factor": 1.0}),
            json!({"rope_theta": 1e6, "partial_rotary_factor": 1, "rope_type": "default"}),
        ] {
            let config = parse(&with(plain(), &[(key, harmless)])).expect("the base alone");
            assert_eq!(config, parse(&plain()).expect("valid"));
        }
    }
}

#[test]
fn mathematics_of_others_is_refused_by_name() {
    for (key, value) in [
        ("partial_rotary_factor", json!(0.5)),
        ("partial_rotary_factor", json!("all")),
        ("attention_multiplier", json!(0.0156)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("logit_scale", json!(0.0625)),
        ("scale_depth", json!(1.4)),
        ("clip_qkv", json!(8.0)),
        ("num_local_experts", json!(8)),
        ("n_routed_experts", json!(64)),
        ("kv_lora_rank", json!(512)),
        ("attention_chunk_size", json!(8192)),
        ("no_rope_layers", json!([1, 1, 0, 1])),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("use_sliding_window", json!(true)),
        ("use_bidirectional_attention", json!("all")),
        ("hidden_act", json!("relu")),
        ("hidden_activation", json!("gelu")),
        ("pruned_heads", json!({"0": [1]})),
    ] {
        let (code, message) = refusal(&with(plain(), &[(key, value)]));
        assert_eq!(code, "MODEL_UNSUPPORTED", "{message}");
        assert!(message.contains(key), "{message}");
    }
    for key in ["qk_norm", "use_qk_norm", "qk_layernorm"] {
        let llama = with(plain(), &[("architectures", json!(["LlamaForCausalLM"]))]);
        assert!(refusal(&with(llama, &[(key, json!(true))])).1.contains(key));
        assert!(parse(&with(plain(), &[(key, json!(true))])).is_ok());
    }
    // The key that counts for an architecture, not another one beside it.
    let both = [
        ("hidden_act", json!("gelu")),
        ("hidden_activation", json!("silu")),
    ];
    assert!(refusal(&with(plain(), &both)).1.contains("hidden_act"));
    for (key, neutral) in [
        ("attention_multiplier", json!(1.0)),
        ("partial_rotary_factor", json!(1)),
        ("clip_qkv", Value::Null),
        ("pruned_heads", json!({})),
        ("is_encoder_decoder", json!(false)),
    ] {
        assert!(parse(&with(plain(), &[(key, neutral)])).is_ok(), "{key}");
    }
}

/// Values that no key of that name may have.
fn impossible() -> Value {
    json!({
        "rope_theta": [0, -1e4, 1e300, 5e-324, 0.5, "1e6"],
        "rms_norm_eps": [0, -1.0, 1e-300, 1e30, [1]],
        "hidden_size": [0, -4, 1.5, u64::MAX, "32", [32]],
        "head_dim": [0, 8192, 7],
        "num_hidden_layers": [0, 1025, 1u64 << 40],
        "num_key_value_heads": [0, 8, 3],
        "max_position_embeddings": [0, 1_000_000_000, 1e9, -1],
        "vocab_size": [0, u64::MAX, "x".repeat(100_000)],
        "tie_word_embeddings": [1, "true"],
        "eos_token_id": [-1, 1u64 << 32, [1, "2"], 1.0],
        "layer_types": [["full_attention"], "full_attention", [1, 2], []],
        "rope_scaling": ["linear", [1]],
        "rope_parameters": ["linear", {"rope_type": "default", "rope_theta": 1e4}],
        "architectures": [[], ["a", "b"], "Qwen3ForCausalLM", [1]],
        "model_type": ["llama", 3],
    })
}

#[test]
fn what_cannot_be_is_refused_with_file_and_key() {
    for (key, values) in impossible().as_object().expect("an object") {
        for value in values.as_array().expect("a list") {
            let (code, message) = refusal(&with(plain(), &[(key, value.clone())]));
            assert_eq!(code, "MODEL_CONFIG", "{message}");
            let last = key.rsplit('_').next().expect("a word");
            let named = message.contains(key) || message.contains(last);
            assert!(named, "{key}: {message}");
        }
    }
    for (key, value) in [
        ("sliding_window", json!(0)),
        ("sliding_window", Value::Null),
        ("sliding_window_pattern", json!(0)),
        ("rope_local_base_freq", json!(0)),
        ("query_pre_attn_scalar", json!(0)),
        ("query_pre_attn_scalar", json!(-1)),
        ("query_pre_attn_scalar", json!(1e300)),
    ] {
        let (code, message) = refusal(&with(gemma(), &[(key, value)]));
        assert_eq!(code, "MODEL_CONFIG", "{message}");
        assert!(message.contains(key), "{message}");
    }
    let types = [("layer_types", json!(["chunked_attention", "x"]))];
    let (code, message) = refusal(&with(gemma(), &types));
    assert_eq!(code, "MODEL_UNSUPPORTED");
    assert!(message.contains("chunked_attention"), "{message}");
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "rms_norm_eps",
        "max_position_embeddings",
        "architectures",
    ] {
        let (code, message) = refusal(&without(plain(), key));
        assert_eq!(code, "MODEL_CONFIG", "{message}");
        assert!(message.contains(key), "{message}");
    }
}

/// A window that is longer than the context is one that never slides.
#[test]
fn windows_may_be_longer_than_the_context() {
    let config = parse(&with(gemma(), &[("sliding_window", json!(100_000))])).expect("valid");
    assert_eq!(config.attention[0].window, Some(100_000));
    let full = [
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("sliding_window", Value::Null),
    ];
    let config = parse(&with(gemma(), &full)).expect("no layer needs one");
    assert!(config.attention.iter().all(|layer| layer.window.is_none()));
}

/// Every scaling that is accepted has angles that are numbers, at the last position, too.
#[test]
fn every_accepted_rope_has_finite_angles() {
    let extremes = [
        5e-324,
        1e-300,
        1e-6,
        0.5,
        1.0,
        1.0 + f64::EPSILON,
        8.0,
        1e4,
        1e6,
        1e9,
        1e30,
        1e300,
        0.0,
        -1.0,
    ];
    let mut accepted = 0;
    for theta in extremes {
        for factor in extremes {
            let mut maps = vec![json!({"rope_type": "linear", "factor": factor})];
            for (low, high) in [
                (1.0, 4.0),
                (factor, 4.0),
                (1.0, factor),
                (1.0, 1.0 + f64::EPSILON),
            ] {
                maps.push(json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                    "high_freq_factor": high, "original_max_position_embeddings": theta,
                }));
            }
            for map in maps {
                let config = with(
                    plain(),
                    &[
                        ("rope_theta", json!(theta)),
                        ("rope_scaling", map),
                        ("max_position_embeddings", json!(1 << 24)),
                    ],
                );
                let Ok(config) = parse(&config) else { continue };
                accepted += 1;
                let table = RopeTable::new(config.head_dim, config.ropes[0], 1 << 24);
                for position in [0, 1, (1 << 24) - 1] {
                    let (cos, sin) = table.at(position);
                    let finite = cos.iter().chain(sin).all(|value| value.is_finite());
                    assert!(finite, "{:?} at {position}", config.ropes[0]);
                }
            }
        }
    }
    assert!(accepted > 50, "{accepted}");
}

/// The tiny Gemma 3 as the text model of one with images.
fn with_images() -> Value {
    let config = std::fs::read(GEMMA3.dir().join("config.json")).expect("it is there");
    let mut text: Value = serde_json::from_slice(&config).expect("JSON");
    text["architectures"] = Value::Null;
    json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text, "vision_config": {"hidden_size": 8, "hidden_act": "gelu"},
        "eos_token_id": [1, 106],
    })
}

/// Writes its folder: the tensors of the text model begin with `inside`, but for the one that ends
/// with `gone`, and one of another part is beside them.
fn write_with_images(dir: &Path, inside: &str, gone: Option<&str>) {
    let source = SafetensorsFile::open(&GEMMA3.dir().join("model.safetensors")).expect("valid");
    let mut named = Vec::new();
    for name in source.names() {
        let rest = name.strip_prefix("model.").expect("tied: no output matrix");
        if gone.is_none_or(|gone| !rest.ends_with(gone)) {
            let view = source.tensor(name).expect("it is there");
            named.push((format!("{inside}{rest}"), view.clone(), view.to_f32()));
        }
    }
    let norm = source.tensor("model.norm.weight").expect("it is there");
    named.push((
        "vision_tower.norm.weight".to_owned(),
        norm.clone(),
        norm.to_f32(),
    ));
    let tensors = named.iter().map(|(name, view, data)| TensorData {
        name: name.clone(),
        shape: view.shape().to_vec(),
        dtype: view.dtype(),
        data,
    });
    let tensors: Vec<_> = tensors.collect();
    write(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).expect("writable");
    std::fs::write(dir.join("config.json"), with_images().to_string()).expect("writable");
}

/// A model with images holds a text model, under other names: the same numbers to the bit.
#[test]
fn the_text_of_a_model_with_images_is_computed() {
    let expected = logits(&GEMMA3.model());
    for inside in ["language_model.model.", "model.language_model."] {
        let dir = tempfile::tempdir().expect("a folder");
        write_with_images(dir.path(), inside, None);
        let model = Model::load(dir.path()).expect("the text model is there");
        assert_eq!(logits(&model), expected, "{inside}");
        assert_eq!(model.config().eos_token_ids, [1, 106]);
        // What is missing is named as it would stand in the file.
        let gone = "layers.1.mlp.up_proj.weight";
        write_with_images(dir.path(), inside, Some(gone));
        let error = Model::load(dir.path())
            .expect_err("a tensor is gone")
            .to_string();
        assert!(error.contains(&format!("{inside}{gone}")), "{error}");
    }
}

#[test]
fn the_text_model_inside_is_checked_as_any_other() {
    for (key, value) in [
        ("model_type", json!("gemma2")),
        ("final_logit_softcapping", json!(30.0)),
        ("hidden_size", json!("wide")),
    ] {
        let mut config = with_images();
        config["text_config"][key] = value;
        let (_, message) = refusal(&config);
        assert!(message.contains(&format!("text_config.{key}")), "{message}");
    }
    let untied = with(with_images(), &[("tie_word_embeddings", json!(false))]);
    assert!(refusal(&untied).1.contains("tie_word_embeddings"));
    let (_, message) = refusal(&without(with_images(), "text_config"));
    assert!(message.contains("text_config is missing"), "{message}");
}

fn logits(model: &Model) -> Vec<f32> {
    let mut cache = KvCache::new(model.config());
    let mut batch = [SequenceStep {
        tokens: &[2, 17, 300, 41, 5, 8],
        cache: &mut cache,
        adapter: None,
        logits: LogitsWanted::All,
    }];
    let logits = model.forward(&mut batch, &Threads::new(1), &mut Scratch::new());
    logits.expect("valid tokens")[0].data().to_vec()
}

/// Sizes are only as large as the weights say, whatever the configuration says.
#[test]
fn sizes_without_weights_cost_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    write(&dir.path().join("model.safetensors"), &[], &BTreeMap::new()).expect("writable");
    let most = with(
        plain(),
        &[
            ("vocab_size", json!(1 << 24)),
            ("hidden_size", json!(1 << 24)),
            ("intermediate_size", json!(1 << 24)),
            ("num_hidden_layers", json!(1024)),
            ("num_attention_heads", json!(1 << 24)),
            ("num_key_value_heads", json!(1 << 24)),
            ("head_dim", json!(4096)),
            ("max_position_embeddings", json!(1 << 24)),
        ],
    );
    std::fs::write(dir.path().join("config.json"), most.to_string()).expect("writable");
    let error = Model::load(dir.path()).expect_err("there are no weights");
    assert_eq!(error.code(), "TENSOR_MISSING");
    let config = parse(&most).expect("within every bound");
    let error = Model::synthetic(config, Compute::F32, 1).expect_err("too many weights");
    assert_eq!(error.code(), "INVALID_ARGUMENT");
    assert!(
        error
            .to_string()
            .contains(&SYNTHETIC_WEIGHTS_MAX.to_string()),
        "{error}"
    );
}

/// The bound counts what is made up: all matrices, an embedding of its own among them.
#[test]
fn the_bound_of_models_that_are_made_up_counts_every_matrix() {
    let tied = with(
        plain(),
        &[("vocab_size", json!(1 << 24)), ("hidden_size", json!(1024))],
    );
    let weights = |config: &ModelConfig| {
        let shapes = Site::all(config.num_layers).map(|site| site.shape(config));
        shapes.map(|(n, k)| (n * k) as u64).sum::<u64>()
    };
    let config = parse(&tied).expect("valid");
    assert!(weights(&config) > SYNTHETIC_WEIGHTS_MAX);
    assert!(Model::synthetic(config, Compute::Bf16, 1).is_err());
    let half = with(
        tied,
        &[
            ("vocab_size", json!(1 << 23)),
            ("tie_word_embeddings", json!(false)),
        ],
    );
    let config = parse(&half).expect("valid");
    assert!(weights(&config) < SYNTHETIC_WEIGHTS_MAX);
    assert!(Model::synthetic(config, Compute::Bf16, 1).is_err());
}
