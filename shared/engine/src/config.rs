//! What a checkpoint's `config.json` says, in the key layouts of transformers 4 and 5.
//!
//! A model is described by sizes plus a few switches ([`ModelConfig`]); the forward pass
//! reads only those, so a further architecture is one more arm in [`Architecture::from_name`]
//! and the switches it sets. A setting that would change the mathematics and is not computed
//! is refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::EngineError;

/// Largest accepted value of any size, so that products of two never overflow.
const SIZE_MAX: usize = 1 << 24;

/// The architectures that this engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `Qwen3ForCausalLM`: grouped-query attention with RMS-normed queries and keys.
    Qwen3,
}

impl Architecture {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "Qwen3ForCausalLM" => Some(Self::Qwen3),
            _ => None,
        }
    }
}

/// Sizes and switches of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Architecture the checkpoint was made for.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether queries and keys are RMS-normed per head before rotation.
    pub qk_norm: bool,
    /// Tokens that end a text, from `config.json`.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in a model's folder.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        let file = dir.join("config.json");
        let bytes = fs::read(&file).map_err(|e| EngineError::io(&file, e))?;
        Self::parse(&file, &bytes)
    }

    /// Parses the bytes of a `config.json`; `file` names it in errors.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, EngineError> {
        let at = At {
            file: file.to_owned(),
        };
        let raw: RawConfig =
            serde_json::from_slice(bytes).map_err(|e| at.invalid(e.to_string()))?;
        let [name] = raw.architectures.as_slice() else {
            return Err(at.invalid(format!("architectures is {:?}", raw.architectures)));
        };
        let architecture = Architecture::from_name(name)
            .ok_or_else(|| at.unsupported(format!("architecture {name}")))?;
        raw.refuse_unknown_mathematics(&at)?;
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None => raw.hidden_size / raw.num_attention_heads.max(1),
        };
        let config = Self {
            architecture,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_layers: raw.num_hidden_layers,
            num_heads: raw.num_attention_heads,
            num_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim,
            rms_norm_eps: raw.rms_norm_eps as f32,
            rope_theta: raw.rope_theta(&at)?,
            max_position_embeddings: raw.max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings,
            qk_norm: architecture == Architecture::Qwen3,
            eos_token_ids: raw
                .eos_token_id
                .map(OneOrMany::into_vec)
                .unwrap_or_default(),
        };
        config.check(&at)?;
        Ok(config)
    }

    /// Width of all query heads together.
    #[must_use]
    pub const fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    #[must_use]
    pub const fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    fn check(&self, at: &At) -> Result<(), EngineError> {
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 || size > SIZE_MAX {
                return Err(at.invalid(format!("{name} is {size}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
            return Err(at.invalid(format!("{heads} heads cannot share {kv_heads} key heads")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(at.invalid(format!("head_dim {} is odd", self.head_dim)));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(at.invalid(format!("rms_norm_eps is {}", self.rms_norm_eps)));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(at.invalid(format!("rope_theta is {}", self.rope_theta)));
        }
        Ok(())
    }
}

/// A number, or a list of numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawConfig {
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
    layer_types: Option<Vec<String>>,
    /// transformers 5.
    rope_parameters: Option<Map<String, Value>>,
    /// transformers 4.
    rope_theta: Option<f64>,
    /// transformers 4.
    rope_scaling: Option<Map<String, Value>>,
    quantization_config: Option<Value>,
    eos_token_id: Option<OneOrMany>,
}

impl RawConfig {
    fn refuse_unknown_mathematics(&self, at: &At) -> Result<(), EngineError> {
        if self.attention_bias {
            return Err(at.unsupported("attention_bias".to_owned()));
        }
        if self.use_sliding_window {
            return Err(at.unsupported("use_sliding_window".to_owned()));
        }
        if self.quantization_config.is_some() {
            return Err(at.unsupported("quantization_config".to_owned()));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(at.unsupported(format!("hidden_act {act}")));
        }
        let layer_types = self.layer_types.as_deref().unwrap_or_default();
        if let Some(other) = layer_types.iter().find(|kind| *kind != "full_attention") {
            return Err(at.unsupported(format!("layer type {other}")));
        }
        Ok(())
    }

    /// The rotary base, from either layout; any scaling is refused.
    fn rope_theta(&self, at: &At) -> Result<f64, EngineError> {
        for map in [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
        {
            for key in ["rope_type", "type"] {
                match map.get(key) {
                    None => {}
                    Some(kind) if kind == "default" => {}
                    Some(kind) => return Err(at.unsupported(format!("rope_type {kind}"))),
                }
            }
            if map.values().any(Value::is_object) {
                return Err(at.unsupported("rope_parameters per layer type".to_owned()));
            }
        }
        let nested = self
            .rope_parameters
            .as_ref()
            .and_then(|map| map.get("rope_theta"));
        nested
            .and_then(Value::as_f64)
            .or(self.rope_theta)
            .ok_or_else(|| at.invalid("rope_theta is missing".to_owned()))
    }
}

/// Where a complaint points to.
struct At {
    file: PathBuf,
}

impl At {
    fn invalid(&self, reason: String) -> EngineError {
        EngineError::ConfigInvalid {
            file: self.file.clone(),
            reason,
        }
    }

    fn unsupported(&self, what: String) -> EngineError {
        EngineError::ModelUnsupported {
            file: self.file.clone(),
            what,
        }
    }
}
