//! Checkpoints that are cut off, contradictory or made to hurt: errors that name the file and
//! the tensor, never a panic, never a large allocation.

mod fixture;
mod random_model;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use random_model::ODD_SHAPES;
use serde_json::{Value, json};
use volley_engine::config::ModelConfig;
use volley_engine::model::Model;
use volley_engine::safetensors::{Dtype, SafetensorsFile, TensorData, serialize};

fn sample_file() -> Vec<u8> {
    let (a, b) = ([1.5f32, -2.0, 0.0, 3.25], [7.0f32; 3]);
    let tensor = |name: &str, shape: &[usize], dtype, data| TensorData {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
        data,
    };
    let tensors = [
        tensor("b.x", &[2, 2], Dtype::Bf16, &a),
        tensor("a", &[3, 1], Dtype::F32, &b),
        tensor("half", &[4], Dtype::F16, &a),
        tensor("empty", &[0, 5], Dtype::F32, &[]),
    ];
    let metadata = BTreeMap::from([("k".to_owned(), "v \"quoted\"".to_owned())]);
    serialize(&tensors, &metadata).expect("shapes fit")
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// The code and the message of the refusal.
fn refusal(bytes: &[u8]) -> (&'static str, String) {
    let error = SafetensorsFile::from_bytes("w.safetensors", bytes.to_vec());
    let error = error.expect_err("it is refused");
    (error.code(), error.to_string())
}

#[test]
fn what_is_written_is_read() {
    let file = SafetensorsFile::from_bytes("f", sample_file()).expect("valid");
    assert_eq!(
        file.names().collect::<Vec<_>>(),
        ["a", "b.x", "empty", "half"]
    );
    assert_eq!(file.metadata()["k"], "v \"quoted\"");
    let values = |name| file.tensor(name).expect("it is there").to_f32();
    assert_eq!(values("b.x"), [1.5, -2.0, 0.0, 3.25]);
    assert_eq!(values("half"), [1.5, -2.0, 0.0, 3.25]);
    assert_eq!(values("a"), [7.0; 3]);
    assert!(values("empty").is_empty());
    assert_eq!(file.tensor("a").expect("it is there").shape(), [3, 1]);
    assert_eq!(sample_file(), sample_file());
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample_file();
    for len in 0..whole.len() {
        let (code, message) = refusal(&whole[..len]);
        assert_eq!(code, "MODEL_TRUNCATED", "{len}: {message}");
        assert!(message.contains("w.safetensors"), "{message}");
    }
    let (code, _) = refusal(&[whole, vec![0]].concat());
    assert_eq!(code, "SAFETENSORS_HEADER");
}

#[test]
fn absurd_lengths_are_errors() {
    for length in [1u64 << 63, u64::MAX, (8 << 20) + 1, u64::MAX - 7] {
        let bytes = [length.to_le_bytes().as_slice(), b"{}"].concat();
        assert_eq!(refusal(&bytes).0, "SAFETENSORS_HEADER", "{length}");
    }
    assert_eq!(refusal(&(8u64 << 20).to_le_bytes()).0, "MODEL_TRUNCATED");
}

#[test]
fn contradictions_are_errors_that_name_the_tensor() {
    let entry = |shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let one = |shape: &str, offsets: &str| format!(r#"{{"t":{}}}"#, entry(shape, offsets));
    let two = |a: &str, b: &str| format!(r#"{{"s":{},"t":{}}}"#, entry("[2]", a), entry("[2]", b));
    let twice = format!(r#"{{"t":{0},"t":{0}}}"#, entry("[4]", "[0,16]"));
    let cases = [
        one("[4]", "[16,0]"),
        one("[4]", "[0,12]"),
        one("[3]", "[0,16]"),
        one("[4]", "[4,20]"),
        one("[18446744073709551615,2]", "[0,16]"),
        one("[4611686018427387904]", "[0,16]"),
        one("[1,1,1,1,1,1,1,1,4]", "[0,16]"),
        one("[4]", "[18446744073709551600,18446744073709551615]"),
        two("[0,8]", "[0,8]"),
        two("[0,8]", "[4,12]"),
        two("[8,16]", "[8,16]"),
        twice,
        r#"{"t":{"dtype":"F31","shape":[4],"data_offsets":[0,16]}}"#.to_owned(),
    ];
    for header in cases {
        let (code, message) = refusal(&with_header(&header, &[0; 16]));
        assert_eq!(code, "SAFETENSORS_HEADER", "{header}");
        assert!(message.contains('t'), "{message}");
    }
    let too_far = one("[8]", "[0,32]");
    let (code, message) = refusal(&with_header(&too_far, &[0; 16]));
    assert_eq!(code, "MODEL_TRUNCATED");
    assert!(message.contains("t needs"), "{message}");
}

#[test]
fn broken_json_is_an_error() {
    for header in [
        "",
        "[]",
        "{",
        "nul",
        r#"{"t":1}"#,
        r#"{"t":{"dtype":"F32"}}"#,
        "{}x",
        "\u{0}",
    ] {
        assert_eq!(
            refusal(&with_header(header, &[])).0,
            "SAFETENSORS_HEADER",
            "{header}"
        );
    }
    let deep = format!("{{\"t\":{}", "[".repeat(100_000));
    assert_eq!(refusal(&with_header(&deep, &[])).0, "SAFETENSORS_HEADER");
}

#[test]
fn integers_are_read_as_integers_only() {
    let header = r#"{"t":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}"#;
    let bytes = with_header(header, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let file = SafetensorsFile::from_bytes("f", bytes).expect("valid");
    assert_eq!(file.integers("t").expect("integers"), [1, -1]);
    assert_eq!(
        file.tensor("t").expect_err("not a float").code(),
        "TENSOR_DTYPE"
    );
    let floats = SafetensorsFile::from_bytes("f", sample_file()).expect("valid");
    assert_eq!(
        floats.integers("a").expect_err("not an integer").code(),
        "TENSOR_DTYPE"
    );
    assert_eq!(
        floats.integers("z").expect_err("not there").code(),
        "TENSOR_MISSING"
    );
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((0usize..600, any::<u8>()), 1..6),
    ) {
        let mut bytes = sample_file();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(file) = SafetensorsFile::from_bytes("f", bytes) {
            for name in file.names() {
                if let Ok(view) = file.tensor(name) {
                    prop_assert_eq!(view.to_f32().len(), view.shape().iter().product::<usize>());
                }
            }
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SafetensorsFile::from_bytes("f", bytes);
    }
}

#[test]
fn a_model_says_what_is_wrong_with_its_folder() {
    let load = |dir: &Path| Model::load(dir).expect_err("it is refused");
    let dir = tempfile::tempdir().expect("a folder");
    assert_eq!(load(&dir.path().join("nowhere")).code(), "MODEL_NOT_FOUND");
    assert!(load(dir.path()).to_string().contains("config.json"));
    ODD_SHAPES[0].write(dir.path(), 1);
    assert!(Model::load(dir.path()).is_ok());
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).expect("it was written");

    fs::write(&weights, &whole[..whole.len() - 5000]).expect("writable");
    let error = load(dir.path());
    assert_eq!(error.code(), "MODEL_TRUNCATED");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(error.to_string().contains("model.layers.1."), "{error}");
    fs::write(&weights, []).expect("writable");
    assert_eq!(load(dir.path()).code(), "MODEL_TRUNCATED");
    // The last value of the file becomes NaN in f32, f16 and bf16 alike.
    let mut not_a_number = whole.clone();
    let end = not_a_number.len();
    not_a_number[end - 4..].fill(0xff);
    fs::write(&weights, &not_a_number).expect("writable");
    let error = load(dir.path());
    assert_eq!(error.code(), "MODEL_TRUNCATED");
    assert!(error.to_string().contains("not finite"), "{error}");
    fs::remove_file(&weights).expect("it is there");
    assert_eq!(load(dir.path()).code(), "MODEL_NOT_FOUND");

    // A checkpoint of other sizes than the configuration's.
    let config = fs::read_to_string(dir.path().join("config.json")).expect("it was written");
    fs::write(&weights, &whole).expect("writable");
    let wider = config.replace("\"hidden_size\":40", "\"hidden_size\":48");
    fs::write(dir.path().join("config.json"), wider).expect("writable");
    let error = load(dir.path());
    assert_eq!(error.code(), "TENSOR_SHAPE");
    assert!(
        error.to_string().contains("[2, 48]") || error.to_string().contains("48"),
        "{error}"
    );
    let deeper = config.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":3");
    fs::write(dir.path().join("config.json"), deeper).expect("writable");
    assert!(load(dir.path()).to_string().contains("model.layers.2."));
}

#[test]
fn shards_are_one_model() {
    let dir = tempfile::tempdir().expect("a folder");
    ODD_SHAPES[2].write(dir.path(), 4);
    let single = dir.path().join("model.safetensors");
    let file = SafetensorsFile::open(&single).expect("valid");
    let mut shards = [Vec::new(), Vec::new()];
    let mut map = serde_json::Map::new();
    let named: Vec<_> = (file.names())
        .map(|name| {
            let view = file.tensor(name).expect("it is there");
            (
                name.to_owned(),
                view.shape().to_vec(),
                view.dtype(),
                view.to_f32(),
            )
        })
        .collect();
    for (i, (name, shape, dtype, data)) in named.iter().enumerate() {
        let (name, shape, dtype) = (name.clone(), shape.clone(), *dtype);
        map.insert(name.clone(), json!(format!("part-{}.safetensors", i % 2)));
        shards[i % 2].push(TensorData {
            name,
            shape,
            dtype,
            data,
        });
    }
    for (i, shard) in shards.iter().enumerate() {
        let bytes = serialize(shard, &BTreeMap::new()).expect("shapes fit");
        fs::write(dir.path().join(format!("part-{i}.safetensors")), bytes).expect("writable");
    }
    let whole = Model::load(dir.path()).expect("one file");
    fs::remove_file(&single).expect("it is there");
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": map }).to_string()).expect("writable");
    let sharded = Model::load(dir.path()).expect("two shards");
    assert_eq!(
        whole.output().to_row_major(),
        sharded.output().to_row_major()
    );
    assert_ne!(whole.digest(), sharded.digest());
    for name in ["../part-0.safetensors", "/etc/hostname", "", ".."] {
        let text = json!({ "weight_map": { "t": name } }).to_string();
        fs::write(&index, text).expect("writable");
        assert_eq!(
            Model::load(dir.path()).expect_err("refused").code(),
            "MODEL_CONFIG",
            "{name}"
        );
    }
}

#[test]
fn both_layouts_of_the_configuration_are_one() {
    let parse_of = |fixture: fixture::Fixture, name: &str| {
        let path = fixture.dir().join(name);
        ModelConfig::parse(&path, &fs::read(&path).expect("it is there")).expect("valid")
    };
    for fixture in fixture::ALL {
        let (new, old) = ("config.json", "config.v4.json");
        assert_eq!(parse_of(fixture, new), parse_of(fixture, old));
    }
    let parse = |name: &str| parse_of(fixture::QWEN3, name);
    assert_eq!(parse("config.json").ropes[0].theta, 1e6);
    assert_eq!(parse("config.json").eos_token_ids, [509]);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let bytes = fs::read(fixture::dir().join("config.json")).expect("it is there");
    let whole: Value = serde_json::from_slice(&bytes).expect("JSON");
    let refused = |key: &str, value: Value| -> (&'static str, String) {
        let mut config = whole.clone();
        config[key] = value;
        let error = ModelConfig::parse(Path::new("c.json"), config.to_string().as_bytes());
        let error = error.expect_err("it is refused");
        (error.code(), error.to_string())
    };
    for (key, value, word) in [
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            "MambaForCausalLM",
        ),
        ("attention_bias", json!(true), "attention_bias"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("hidden_act", json!("gelu"), "gelu"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "sliding_attention",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e6}),
            "yarn",
        ),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("num_experts", json!(8), "num_experts"),
        (
            "final_logit_softcapping",
            json!(30.0),
            "final_logit_softcapping",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config",
        ),
    ] {
        let (code, message) = refused(key, value);
        assert_eq!(code, "MODEL_UNSUPPORTED", "{message}");
        assert!(message.contains(word), "{message}");
    }
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1u64 << 60)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(31)),
        ("rms_norm_eps", json!(-1.0)),
        ("vocab_size", json!("many")),
        ("architectures", json!([])),
        ("num_hidden_layers", json!(1_000_000)),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0}),
        ),
        ("rope_parameters", json!({"rope_type": "default"})),
    ] {
        assert_eq!(refused(key, value).0, "MODEL_CONFIG", "{key}");
    }
}
