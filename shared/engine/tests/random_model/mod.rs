//! Checkpoints of any shape with random weights.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by test files; every one uses a part"
)]

use std::collections::BTreeMap;
use std::path::Path;

use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::{Architecture, Compute};
use volley_engine::model::Model;
use volley_engine::safetensors::{Dtype, SafetensorsFile, TensorData, serialize, write};

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub architecture: Architecture,
    pub vocab: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub tied: bool,
    pub dtype: Dtype,
}

/// Shapes that leave remainders everywhere: prime sizes, one key head, heads of 2 and 18.
pub const ODD_SHAPES: [Shape; 4] = [
    Shape {
        architecture: Architecture::Qwen3,
        vocab: 509,
        hidden: 40,
        ffn: 61,
        layers: 2,
        heads: 3,
        kv_heads: 1,
        head_dim: 18,
        tied: true,
        dtype: Dtype::F32,
    },
    Shape {
        architecture: Architecture::Qwen3,
        vocab: 17,
        hidden: 7,
        ffn: 5,
        layers: 3,
        heads: 5,
        kv_heads: 5,
        head_dim: 2,
        tied: false,
        dtype: Dtype::F16,
    },
    Shape {
        architecture: Architecture::Qwen3,
        vocab: 131,
        hidden: 96,
        ffn: 160,
        layers: 2,
        heads: 14,
        kv_heads: 2,
        head_dim: 32,
        tied: false,
        dtype: Dtype::Bf16,
    },
    Shape {
        architecture: Architecture::Qwen3,
        vocab: 2,
        hidden: 1,
        ffn: 1,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        tied: true,
        dtype: Dtype::Bf16,
    },
];

/// The shapes, each for Qwen 3 and for one further architecture, in both number formats.
pub fn models() -> Vec<(String, Shape, Model)> {
    let others = [
        Architecture::Gemma3,
        Architecture::Qwen2,
        Architecture::Llama,
        Architecture::Gemma3,
    ];
    let mut models = Vec::new();
    for (i, (shape, other)) in ODD_SHAPES.into_iter().zip(others).enumerate() {
        for architecture in [Architecture::Qwen3, other] {
            for compute in [Compute::F32, Compute::Bf16] {
                let shape = Shape {
                    architecture,
                    ..shape
                };
                let name = format!("{compute:?} {shape:?}");
                models.push((name, shape, shape.model_as(i as u64 + 1, compute)));
            }
        }
    }
    models
}

/// An adapter whose B is not zero.
pub fn adapter(model: &Model, config: &LoraConfig, seed: u64) -> Adapter {
    let fresh = Adapter::init(model.config(), config, seed).expect("valid settings");
    let mut noise = Noise::new(seed);
    changed(model, &fresh, |_, values| {
        values
            .iter_mut()
            .for_each(|v| *v += 0.2 * noise.symmetric());
    })
}

/// An adapter with other values: `change` gets every tensor's name in files and its values.
pub fn changed(
    model: &Model,
    adapter: &Adapter,
    mut change: impl FnMut(&str, &mut [f32]),
) -> Adapter {
    let file = SafetensorsFile::from_bytes("adapter", adapter.to_bytes()).expect("its own bytes");
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = (file.names())
        .map(|name| {
            let view = file.tensor(name).expect("it is there");
            let mut values = view.to_f32();
            change(name, &mut values);
            (name.to_owned(), view.shape().to_vec(), values)
        })
        .collect();
    let data: Vec<_> = (tensors.iter())
        .map(|(name, shape, data)| TensorData {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
            data,
        })
        .collect();
    let bytes = serialize(&data, file.metadata()).expect("valid");
    Adapter::from_bytes(model.config(), &bytes).expect("its own format")
}

/// A small generator (xorshift): equal seeds, equal numbers, on every machine.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [-1, 1).
    pub fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub fn tokens(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab) as u32).collect()
    }
}

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab, self.hidden],
            ),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        let gemma = self.architecture == Architecture::Gemma3;
        for layer in 0..self.layers {
            let mut vectors = vec![
                ("input_layernorm.weight", self.hidden),
                ("post_attention_layernorm.weight", self.hidden),
            ];
            if gemma {
                vectors.push(("pre_feedforward_layernorm.weight", self.hidden));
                vectors.push(("post_feedforward_layernorm.weight", self.hidden));
            }
            if gemma || self.architecture == Architecture::Qwen3 {
                vectors.push(("self_attn.q_norm.weight", self.head_dim));
                vectors.push(("self_attn.k_norm.weight", self.head_dim));
            }
            if self.architecture == Architecture::Qwen2 {
                vectors.push(("self_attn.q_proj.bias", q));
                vectors.push(("self_attn.k_proj.bias", kv));
                vectors.push(("self_attn.v_proj.bias", kv));
            }
            for (name, len) in vectors {
                all.push((format!("model.layers.{layer}.{name}"), vec![len]));
            }
            for (name, shape) in [
                ("self_attn.q_proj", vec![q, self.hidden]),
                ("self_attn.k_proj", vec![kv, self.hidden]),
                ("self_attn.v_proj", vec![kv, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, q]),
                ("mlp.gate_proj", vec![self.ffn, self.hidden]),
                ("mlp.up_proj", vec![self.ffn, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.ffn]),
            ] {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        all
    }

    fn config(&self) -> String {
        let (name, act) = match self.architecture {
            Architecture::Qwen3 => ("Qwen3ForCausalLM", "silu"),
            Architecture::Qwen2 => ("Qwen2ForCausalLM", "silu"),
            Architecture::Llama => ("LlamaForCausalLM", "silu"),
            Architecture::Gemma3 => ("Gemma3ForCausalLM", "gelu_pytorch_tanh"),
        };
        let scaling = match self.architecture {
            Architecture::Llama => serde_json::json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }),
            _ => serde_json::Value::Null,
        };
        serde_json::json!({
            "rope_scaling": scaling, "sliding_window": 19, "sliding_window_pattern": 2,
            "architectures": [name], "vocab_size": self.vocab,
            "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "max_position_embeddings": 600, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied, "hidden_act": act,
        })
        .to_string()
    }

    /// Writes a checkpoint.
    pub fn write(&self, dir: &Path, seed: u64) {
        let mut noise = Noise::new(seed);
        let named: Vec<(String, Vec<usize>, Vec<f32>)> = (self.tensors().into_iter())
            .map(|(name, shape)| {
                let len = shape.iter().product();
                let (mid, spread) = match shape.as_slice() {
                    [_] => (1.0, 0.3),
                    [_, inputs] => (0.0, 2.0 / (*inputs as f32).sqrt()),
                    _ => unreachable!("vectors and matrices"),
                };
                let values = (0..len).map(|_| mid + spread * noise.symmetric()).collect();
                (name, shape, values)
            })
            .collect();
        let tensors: Vec<TensorData<'_>> = (named.iter())
            .map(|(name, shape, data)| TensorData {
                name: name.clone(),
                shape: shape.clone(),
                dtype: self.dtype,
                data,
            })
            .collect();
        std::fs::write(dir.join("config.json"), self.config()).expect("the folder is writable");
        write(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).expect("writable");
    }

    /// A loaded model.
    pub fn model(&self, seed: u64) -> Model {
        self.model_as(seed, Compute::F32)
    }

    /// A loaded model that computes in a number format.
    pub fn model_as(&self, seed: u64, compute: Compute) -> Model {
        let dir = tempfile::tempdir().expect("a folder");
        self.write(dir.path(), seed);
        Model::load_as(dir.path(), compute).expect("a valid checkpoint")
    }
}

/// The bytes of an adapter with other values.
pub fn with_values(bytes: &[u8], mut value: impl FnMut(f32) -> f32) -> Vec<u8> {
    let file = SafetensorsFile::from_bytes("adapter", bytes.to_vec()).expect("its own format");
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = (names.into_iter())
        .map(|name| {
            let tensor = file.tensor(&name).expect("it is named");
            let values = tensor.to_f32().into_iter().map(&mut value).collect();
            (name, tensor.shape().to_vec(), values)
        })
        .collect();
    let tensors: Vec<TensorData<'_>> = (tensors.iter())
        .map(|(name, shape, data)| TensorData {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
            data,
        })
        .collect();
    serialize(&tensors, file.metadata()).expect("shapes are those of the data")
}
