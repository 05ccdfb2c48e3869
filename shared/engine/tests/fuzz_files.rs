//! Files that were changed at random, with their structure in mind: whoever reads them returns in
//! bounded time and memory, never panics, and what is accepted can be computed with.
//!
//! Every case follows from [`cases::SEED`], its target and its number, which a failure prints. Each file
//! that once broke something has a test of its own, beside the code that was at fault.

mod cases;
mod fixture;
mod mutate;
mod random_model;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cases::fuzz;
use random_model::{Noise, ODD_SHAPES, Shape};
use serde_json::Value;
use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::{Architecture, Compute, ModelConfig};
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LoadOptions, LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::packed::PackedCache;
use volley_engine::safetensors::SafetensorsFile;
use volley_engine::text::{ChatMessage, ChatTemplate, Tokenizer, stop_tokens};
use volley_engine::train::{AdamParams, Datum, Loss, Trainer};

/// Tells acceptance; a refusal must have words.
fn accepted<T>(result: Result<T, EngineError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// A model of a few thousand weights.
fn tiny(architecture: Architecture) -> Shape {
    Shape {
        architecture,
        ..ODD_SHAPES[1]
    }
}

/// A folder with such a model.
fn folder(architecture: Architecture) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    tiny(architecture).write(dir.path(), 3);
    dir
}

/// One pass over a few tokens, and what came of it.
fn compute(model: &Model, adapter: Option<&Adapter>) -> Vec<u32> {
    let mut cache = KvCache::new(model.config());
    let vocab = model.config().vocab_size as u32;
    let step = SequenceStep {
        tokens: &[0, vocab - 1, vocab / 2],
        cache: &mut cache,
        adapter,
        logits: LogitsWanted::All,
    };
    match model.forward(&mut [step], &Threads::new(1), &mut Scratch::new()) {
        Ok(logits) => logits[0].data().iter().map(|x| x.to_bits()).collect(),
        Err(error) => {
            assert_eq!(error.code(), "CONTEXT_EXCEEDED", "{error}");
            Vec::new()
        }
    }
}

/// Writes a new file in place of an old one, which a disk is not waited for.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("writable");
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON")
}

#[test]
fn safetensors() {
    let dir = fixture::dir();
    let weights = folder(Architecture::Qwen3);
    let file = fs::read(weights.path().join("model.safetensors")).expect("it was written");
    let path = dir.join("adapter_r4_qv/adapter_model.safetensors");
    let other = fs::read(path).expect("it is there");
    let make = |noise: &mut Noise| {
        let bytes = mutate::safetensors(noise, &file, &other);
        let len = bytes.len();
        (bytes, len)
    };
    fuzz("safetensors", 4000, make, |bytes| {
        let Some(file) = accepted(SafetensorsFile::from_bytes("f", bytes.clone())) else {
            return false;
        };
        for name in file.names() {
            if let Ok(view) = file.tensor(name) {
                let values = view.shape().iter().product::<usize>();
                assert_eq!(view.to_f32().len(), values);
            }
            let _ = file.integers(name);
        }
        true
    });
}

#[test]
fn configurations() {
    let lines = include_str!("../../../tests/fixtures/configs.jsonl").lines();
    let configs: Vec<Value> = (lines.map(serde_json::from_str::<Value>))
        .map(|line| line.expect("JSON")["config"].take())
        .collect();
    let make = |noise: &mut Noise| {
        let (one, other) = (noise.below(configs.len()), noise.below(configs.len()));
        let text = mutate::json(noise, &configs[one], &configs[other]);
        let len = text.len();
        (text, len)
    };
    fuzz("configurations", 8000, make, |text| {
        let config = ModelConfig::parse(Path::new("config.json"), text);
        accepted(config).is_some_and(|config| {
            assert_eq!(config.attention.len(), config.num_layers);
            assert!(
                config
                    .attention
                    .iter()
                    .all(|layer| layer.rope < config.ropes.len())
            );
            true
        })
    });
}

#[test]
fn models() {
    let architectures = [
        Architecture::Qwen3,
        Architecture::Qwen2,
        Architecture::Llama,
        Architecture::Gemma3,
    ];
    let folders = architectures.map(folder);
    let dir = tempfile::tempdir().expect("a folder");
    let read = |i: usize, name: &str| fs::read(folders[i].path().join(name)).expect("written");
    let configs = [0, 1, 2, 3].map(|i| read_json(&folders[i].path().join("config.json")));
    let weights = [0, 1, 2, 3].map(|i| read(i, "model.safetensors"));
    let make = |noise: &mut Noise| {
        let (one, other) = (noise.below(4), noise.below(4));
        let mut json = configs[one].to_string().into_bytes();
        let mut data = weights[one].clone();
        match noise.below(3) {
            0 => json = mutate::json(noise, &configs[one], &configs[other]),
            1 => data = mutate::safetensors(noise, &data, &weights[other]),
            // Small changes alone, most of which fit the weights.
            _ => {
                let mut config = configs[one].clone();
                let keys = [
                    "rope_theta",
                    "rms_norm_eps",
                    "max_position_embeddings",
                    "sliding_window",
                    "num_hidden_layers",
                ];
                let values: [Value; 6] = [
                    1.into(),
                    3.into(),
                    (1u64 << 24).into(),
                    1e-30.into(),
                    1e-6.into(),
                    1e30.into(),
                ];
                let number = values[noise.below(values.len())].clone();
                config[keys[noise.below(keys.len())]] = number;
                json = config.to_string().into_bytes();
            }
        }
        let len = json.len() + data.len();
        ((json, data, noise.below(2) == 0), len)
    };
    fuzz("models", 1500, make, |(json, data, f32)| {
        put(&dir.path().join("config.json"), json);
        put(&dir.path().join("model.safetensors"), data);
        let format = if *f32 { Compute::F32 } else { Compute::Bf16 };
        let model = accepted(Model::load_as(dir.path(), format));
        model.is_some_and(|model| {
            compute(&model, None);
            true
        })
    });
}

#[test]
fn shards() {
    let source = fixture::ALL[2].dir();
    let dir = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(&source).expect("it is there") {
        let path = entry.expect("readable").path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("writable");
        }
    }
    let name = "model.safetensors.index.json";
    let index = read_json(&source.join(name));
    let other = read_json(&source.join("config.json"));
    let weights: u64 = fs::read_dir(dir.path())
        .expect("it is there")
        .map(|entry| entry.expect("readable").metadata().expect("readable").len())
        .sum();
    let make = |noise: &mut Noise| {
        let text = mutate::json(noise, &index, &other);
        let len = text.len() + weights as usize;
        (text, len)
    };
    fuzz("shards", 300, make, |text| {
        put(&dir.path().join(name), text);
        let model = accepted(Model::load(dir.path()));
        model.is_some_and(|model| !compute(&model, None).is_empty())
    });
}

#[test]
fn tokenizers() {
    let dirs = fixture::ALL.map(fixture::Fixture::dir);
    let files: Vec<Value> = dirs
        .iter()
        .map(|dir| read_json(&dir.join("tokenizer.json")))
        .collect();
    let dir = tempfile::tempdir().expect("a folder");
    let make = |noise: &mut Noise| {
        let (one, other) = (noise.below(4), noise.below(4));
        let text = mutate::json(noise, &files[one], &files[other]);
        let len = text.len();
        (text, len)
    };
    fuzz("tokenizers", 1500, make, |text| {
        put(&dir.path().join("tokenizer.json"), text);
        let Some(tokenizer) = accepted(Tokenizer::load(dir.path())) else {
            return false;
        };
        let _ = tokenizer.encode("<|im_start|>user\nWörds  and 1234 numbers \u{1F600}<|im_end|>");
        let ids: Vec<u32> = (0..40).chain([500, 511, u32::MAX]).collect();
        for skip_special in [true, false] {
            let _ = tokenizer.decode(&ids, skip_special);
        }
        for id in ids {
            let _ = (tokenizer.token(id), tokenizer.has_text(id));
        }
        tokenizer.vocab_size() > 0
    });
}

#[test]
fn templates() {
    let dirs = fixture::ALL.map(fixture::Fixture::dir);
    let read = |name: &str| {
        dirs.each_ref()
            .map(|dir| fs::read(dir.join(name)).expect("it is there"))
    };
    let (templates, generation) = (read("chat_template.jinja"), read("generation_config.json"));
    let configs = dirs
        .each_ref()
        .map(|dir| read_json(&dir.join("tokenizer_config.json")));
    let generations =
        generation.map(|bytes| serde_json::from_slice::<Value>(&bytes).expect("JSON"));
    let dir = tempfile::tempdir().expect("a folder");
    let make = |noise: &mut Noise| {
        let (one, other) = (noise.below(4), noise.below(4));
        let mut template = templates[one].clone();
        let mut config = configs[one].clone();
        // Half of them where old files have it.
        let inside = noise.below(2) == 0;
        mutate::bytes(noise, &mut template, &templates[other]);
        if inside {
            config["chat_template"] = String::from_utf8_lossy(&template).into_owned().into();
        }
        let config = match noise.below(2) {
            0 => config.to_string().into_bytes(),
            _ => mutate::json(noise, &config, &configs[other]),
        };
        let generation = mutate::json(noise, &generations[one], &configs[other]);
        let len = template.len() + config.len() + generation.len();
        ((template, config, generation, inside), len)
    };
    let turns = [
        ("system", "Be brief."),
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("user", "and 3?"),
    ];
    let turns = turns.map(|(role, content)| ChatMessage::new(role, content));
    fuzz(
        "templates",
        3000,
        make,
        |(template, config, generation, inside)| {
            let path = dir.path().join("chat_template.jinja");
            match inside {
                true => drop(fs::remove_file(&path)),
                false => put(&path, template),
            }
            put(&dir.path().join("tokenizer_config.json"), config);
            put(&dir.path().join("generation_config.json"), generation);
            let _ = accepted(stop_tokens(dir.path()));
            let Some(template) = accepted(ChatTemplate::load(dir.path())) else {
                return false;
            };
            (1..=turns.len()).any(|n| accepted(template.render(&turns[..n], n % 2 == 0)).is_some())
        },
    );
}

#[test]
fn adapters_of_peft() {
    let model = tiny(Architecture::Qwen3).model(3);
    let settings = [
        LoraConfig::all_linear(3, 8.0),
        LoraConfig {
            lm_head: true,
            ..LoraConfig::all_linear(1, 2.0)
        },
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let saved = settings.map(|settings| {
        random_model::adapter(&model, &settings, 1)
            .save_peft(dir.path(), "base")
            .expect("writable");
        let weights = fs::read(dir.path().join("adapter_model.safetensors")).expect("written");
        (read_json(&dir.path().join("adapter_config.json")), weights)
    });
    let make = |noise: &mut Noise| {
        let (one, other) = (&saved[noise.below(2)], &saved[noise.below(2)]);
        let (mut json, mut data) = (one.0.to_string().into_bytes(), one.1.clone());
        match noise.below(2) {
            0 => json = mutate::json(noise, &one.0, &other.0),
            _ => data = mutate::safetensors(noise, &data, &other.1),
        }
        let len = json.len() + data.len();
        ((json, data), len)
    };
    fuzz("adapters of PEFT", 2000, make, |(json, data)| {
        put(&dir.path().join("adapter_config.json"), json);
        put(&dir.path().join("adapter_model.safetensors"), data);
        let adapter = accepted(Adapter::load_peft_for(&model, dir.path()));
        adapter.is_some_and(|adapter| {
            let _ = adapter.check_finite();
            compute(&model, Some(&adapter));
            true
        })
    });
}

#[test]
fn adapters_from_the_wire() {
    let model = tiny(Architecture::Gemma3).model(3);
    let bytes = [(3, 1), (1, 2)].map(|(rank, seed)| {
        random_model::adapter(&model, &LoraConfig::all_linear(rank, 8.0), seed).to_bytes()
    });
    let make = |noise: &mut Noise| {
        let (one, other) = (noise.below(2), noise.below(2));
        let changed = mutate::safetensors(noise, &bytes[one], &bytes[other]);
        let len = changed.len();
        (changed, len)
    };
    fuzz("adapters from the wire", 3000, make, |bytes| {
        let adapter = accepted(Adapter::from_bytes(model.config(), bytes));
        adapter.is_some_and(|adapter| {
            let _ = adapter.check_finite();
            compute(&model, Some(&adapter));
            // What was read is written as it is.
            let again = Adapter::from_bytes(model.config(), &adapter.to_bytes());
            again.expect("its own bytes");
            true
        })
    });
}

#[test]
fn packed_files() {
    let model = folder(Architecture::Qwen2);
    let cache = tempfile::tempdir().expect("a folder");
    let options = LoadOptions {
        compute: Compute::Bf16,
        cache: Some(PackedCache::new(cache.path()).for_models_from(0)),
        training: false,
    };
    let load = || Model::load_with(model.path(), &options).expect("a valid model");
    let expected = compute(&load(), None);
    let entries = fs::read_dir(cache.path()).expect("it is there");
    let mut paths = entries.map(|entry| entry.expect("readable").path());
    let path = paths
        .find(|path| path.extension().is_some_and(|e| e == "packed"))
        .expect("a file");
    let whole = fs::read(&path).expect("it was written");
    let make = |noise: &mut Noise| {
        let mut bytes = whole.clone();
        // One in four stays as it is.
        if noise.below(4) != 0 {
            mutate::bytes(noise, &mut bytes, &whole);
        }
        let len = bytes.len() + whole.len();
        (bytes, len)
    };
    fuzz("packed files", 400, make, |bytes| {
        put(&path, bytes);
        let model = load();
        assert_eq!(compute(&model, None), expected, "another model");
        !model.packings()[0].is_trouble()
    });
}

#[test]
fn training_states() {
    let model = Arc::new(tiny(Architecture::Llama).model(3));
    let trainer = |rank, seed| {
        let adapter = random_model::adapter(&model, &LoraConfig::all_linear(rank, 8.0), seed);
        Trainer::new(Arc::clone(&model), adapter, Threads::new(1)).expect("it fits")
    };
    let mut one = trainer(3, 1);
    let params = AdamParams::default();
    let data = [Datum {
        tokens: vec![1, 5, 9, 2],
        sampled_logprobs: vec![-1.0; 3],
        advantages: vec![1.0; 3],
        weights: vec![1.0; 3],
    }];
    one.forward_backward(&data, &Loss::CrossEntropy)
        .expect("finite");
    one.optim_step(&params).expect("finite");
    let (good, other) = (one.save_state(), trainer(1, 2).save_state());
    let make = |noise: &mut Noise| {
        let changed = mutate::safetensors(noise, &good, &other);
        let len = changed.len();
        (changed, len)
    };
    fuzz("training states", 2000, make, |bytes| {
        let restored = accepted(one.restore_state(bytes)).is_some();
        // Whatever came of it, the trainer works; numbers that overflow are errors.
        let step = one.forward_backward(&data, &Loss::CrossEntropy);
        let _ = step.and_then(|_| one.optim_step(&params));
        one.restore_state(&good).expect("its own state");
        restored
    });
}
