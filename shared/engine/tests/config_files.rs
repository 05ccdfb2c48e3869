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

#[test]
fn what_cannot_be_is_refused_with_file_and_key() {
    let huge = "x".repeat(100_000);
    for (key, values) in [
        (
            "rope_theta",
            vec![
                json!(0),
                json!(-1e4),
                json!(1e300),
                json!(5e-324),
                json!(0.5),
                json!("1e6"),
            ],
        ),
        (
            "rms_norm_eps",
            vec![
                json!(0),
                json!(-1.0),
                json!(1e-300),
                json!(1e30),
                json!([1]),
            ],
        ),
        (
            "hidden_size",
            vec![
                json!(0),
                json!(-4),
                json!(1.5),
                json!(u64::MAX),
                json!("32"),
                json!([32]),
            ],
        ),
        ("head_dim", vec![json!(0), json!(8192), json!(7)]),
        (
            "num_hidden_layers",
            vec![json!(0), json!(1025), json!(1u64 << 40)],
        ),
        ("num_key_value_heads", vec![json!(0), json!(8), json!(3)]),
        (
            "max_position_embeddings",
            vec![json!(0), json!(1_000_000_000), json!(1e9), json!(-1)],
        ),
        ("vocab_size", vec![json!(0), json!(u64::MAX), json!(huge)]),
        ("tie_word_embeddings", vec![json!(1), json!("true")]),
        (
            "eos_token_id",
            vec![json!(-1), json!(1u64 << 32), json!([1, "2"]), json!(1.0)],
        ),
        (
            "layer_types",
            vec![
                json!(["full_attention"]),
                json!("full_attention"),
                json!([1, 2]),
                json!([]),
            ],
        ),
        ("rope_scaling", vec![json!("linear"), json!([1])]),
        (
            "rope_parameters",
            vec![
                json!("linear"),
                json!({"rope_type": "default", "rope_theta": 1e4}),
            ],
        ),
        (
            "architectures",
            vec![
                json!([]),
                json!(["a", "b"]),
                json!("Qwen3ForCausalLM"),
                json!([1]),
            ],
        ),
        ("model_type", vec![json!("llama"), json!(3)]),
    ] {
        for value in values {
            let (code, message) = refusal(&with(plain(), &[(key, value)]));
            assert_eq!(code, "MODEL_CONFIG", "{message}");
            let last = key.rsplit('_').next().expect("a word");
            assert!(
                message.contains(key) || message.contains(last),
                "{key}: {message}"
            );
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
    let (code, message) = refusal(&with(
        gemma(),
        &[("layer_types", json!(["chunked_attention", "x"]))],
    ));
    assert_eq!(code, "MODEL_UNSUPPORTED");
    assert!(message.contains("chunked_attention"), "{message}");
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
    ] {
        let (code, message) = refusal(&without(plain(), key));
        assert_eq!(
            (code, message.contains(key)),
            ("MODEL_CONFIG", true),
            "{message}"
        );
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

/// A model with images holds a text model, under other names: the same numbers to the bit.
#[test]
fn the_text_of_a_model_with_images_is_computed() {
    let fixture = Fixture("gemma3-tiny");
    let plain = fixture.model();
    let expected = logits(&plain);
    let source = SafetensorsFile::open(&fixture.dir().join("model.safetensors")).expect("valid");
    let config = std::fs::read(fixture.dir().join("config.json")).expect("it is there");
    let mut text: Value = serde_json::from_slice(&config).expect("JSON");
    text["model_type"] = json!("gemma3_text");
    text["architectures"] = Value::Null;
    let whole = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text, "vision_config": {"hidden_size": 8, "hidden_act": "gelu"},
        "eos_token_id": [1, 106],
    });
    for inside in ["language_model.model.", "model.language_model."] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for name in source.names() {
            let rest = name.strip_prefix("model.").expect("tied: no output matrix");
            names.insert(format!("{inside}{rest}"), name.to_owned());
        }
        names.insert(
            "vision_tower.embed.weight".to_owned(),
            "model.norm.weight".to_owned(),
        );
        let views = names
            .iter()
            .map(|(new, old)| (new, source.tensor(old).expect("it is there")));
        let stored: Vec<_> = views
            .map(|(new, view)| {
                (
                    new.clone(),
                    view.shape().to_vec(),
                    view.dtype(),
                    view.to_f32(),
                )
            })
            .collect();
        let tensors = stored.iter().map(|(name, shape, dtype, data)| TensorData {
            name: name.clone(),
            shape: shape.clone(),
            dtype: *dtype,
            data,
        });
        let tensors: Vec<_> = tensors.collect();
        let weights = dir.path().join("model.safetensors");
        write(&weights, &tensors, &BTreeMap::new()).expect("writable");
        std::fs::write(dir.path().join("config.json"), whole.to_string()).expect("writable");
        let model = Model::load(dir.path()).expect("the text model is there");
        assert_eq!(logits(&model), expected, "{inside}");
        assert_eq!(model.config().eos_token_ids, [1, 106]);
        // What is missing is named as it would stand in the file.
        let fewer: Vec<_> = tensors
            .into_iter()
            .filter(|t| !t.name.ends_with("1.mlp.up_proj.weight"))
            .collect();
        write(&weights, &fewer, &BTreeMap::new()).expect("writable");
        let error = Model::load(dir.path()).expect_err("a tensor is gone");
        assert!(
            error
                .to_string()
                .contains(&format!("{inside}layers.1.mlp.up_proj.weight")),
            "{error}"
        );
    }
    for (change, word) in [
        (json!({"model_type": "gemma2"}), "text_config.model_type"),
        (
            json!({"final_logit_softcapping": 30.0}),
            "text_config.final_logit_softcapping",
        ),
        (json!({"hidden_size": "wide"}), "text_config.hidden_size"),
    ] {
        let mut config = whole.clone();
        for (key, value) in change.as_object().expect("an object") {
            config["text_config"][key] = value.clone();
        }
        let (_, message) = refusal(&config);
        assert!(message.contains(word), "{message}");
    }
    let untied = with(whole.clone(), &[("tie_word_embeddings", json!(false))]);
    assert!(refusal(&untied).1.contains("tie_word_embeddings"));
    assert!(
        refusal(&without(whole, "text_config"))
            .1
            .contains("text_config")
    );
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
