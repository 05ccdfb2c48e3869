//! `config.json` as it is written, and what each architecture makes of it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Activation, Architecture, ModelConfig};
use crate::error::EngineError;

/// What transformers takes for `head_dim` and `query_pre_attn_scalar` of Gemma 3 where a file does
/// not say them.
const GEMMA3_HEAD_DIM: usize = 256;

/// Where a complaint points to.
pub(super) struct At {
    file: PathBuf,
}

impl At {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
        }
    }

    pub(super) fn invalid(&self, reason: String) -> EngineError {
        EngineError::ConfigInvalid {
            file: self.file.clone(),
            reason,
        }
    }

    pub(super) fn unsupported(&self, what: String) -> EngineError {
        EngineError::ModelUnsupported {
            file: self.file.clone(),
            what,
        }
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
pub(super) struct RawConfig {
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    /// Gemma's files leave it out and mean `true`.
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    use_bidirectional_attention: bool,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) sliding_window: Option<usize>,
    /// transformers 4: every so many layers one has full attention.
    pub(super) sliding_window_pattern: Option<usize>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    /// transformers 5.
    pub(super) rope_parameters: Option<Map<String, Value>>,
    /// transformers 4.
    pub(super) rope_theta: Option<f64>,
    /// transformers 4: the base of sliding layers.
    pub(super) rope_local_base_freq: Option<f64>,
    /// transformers 4.
    pub(super) rope_scaling: Option<Map<String, Value>>,
    quantization_config: Option<Value>,
    num_experts: Option<Value>,
    num_local_experts: Option<Value>,
    eos_token_id: Option<OneOrMany>,
}

/// What an architecture fixes beside its sizes.
pub(super) struct Switches {
    architecture: Architecture,
    activation: Activation,
    qk_norm: bool,
    qkv_bias: bool,
    /// Norm weights are stored minus one, branches are normed, embeddings scaled, attention
    /// slides: what Gemma 3 has and the others have not.
    pub(super) gemma: bool,
}

impl Switches {
    /// The table of architectures.
    fn of(name: &str) -> Option<Self> {
        let plain = |architecture| Self {
            architecture,
            activation: Activation::Silu,
            qk_norm: false,
            qkv_bias: false,
            gemma: false,
        };
        Some(match name {
            "LlamaForCausalLM" => plain(Architecture::Llama),
            "Qwen2ForCausalLM" => Self {
                qkv_bias: true,
                ..plain(Architecture::Qwen2)
            },
            "Qwen3ForCausalLM" => Self {
                qk_norm: true,
                ..plain(Architecture::Qwen3)
            },
            "Gemma3ForCausalLM" => Self {
                activation: Activation::GeluTanh,
                qk_norm: true,
                gemma: true,
                ..plain(Architecture::Gemma3)
            },
            _ => return None,
        })
    }
}

/// Reads a configuration; the sizes are not checked yet.
pub(super) fn parse(at: &At, bytes: &[u8]) -> Result<ModelConfig, EngineError> {
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| at.invalid(e.to_string()))?;
    let [name] = raw.architectures.as_slice() else {
        return Err(at.invalid(format!("architectures is {:?}", raw.architectures)));
    };
    let switches = Switches::of(name).ok_or_else(|| {
        at.unsupported(format!(
            "architecture {name} (known: Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM, \
             Gemma3ForCausalLM)"
        ))
    })?;
    raw.refuse_unknown_mathematics(at, &switches)?;
    let (ropes, attention) = raw.attention(at, &switches)?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => head_dim,
        None if switches.gemma => GEMMA3_HEAD_DIM,
        None => raw.hidden_size / raw.num_attention_heads.max(1),
    };
    let root = |value: f64| value.powf(-0.5) as f32;
    Ok(ModelConfig {
        architecture: switches.architecture,
        vocab_size: raw.vocab_size,
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_layers: raw.num_hidden_layers,
        num_heads: raw.num_attention_heads,
        num_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        head_dim,
        rms_norm_eps: raw.rms_norm_eps as f32,
        max_position_embeddings: raw.max_position_embeddings,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(switches.gemma),
        qk_norm: switches.qk_norm,
        qkv_bias: switches.qkv_bias,
        norm_plus_one: switches.gemma,
        branch_norms: switches.gemma,
        activation: switches.activation,
        embedding_scale: if switches.gemma {
            (raw.hidden_size as f64).sqrt() as f32
        } else {
            1.0
        },
        attention_scale: if switches.gemma {
            root(raw.query_pre_attn_scalar.unwrap_or(GEMMA3_HEAD_DIM as f64))
        } else {
            root(head_dim as f64)
        },
        ropes,
        attention,
        eos_token_ids: raw
            .eos_token_id
            .map(OneOrMany::into_vec)
            .unwrap_or_default(),
    })
}

impl RawConfig {
    fn refuse_unknown_mathematics(&self, at: &At, switches: &Switches) -> Result<(), EngineError> {
        for (name, set) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            (
                "use_bidirectional_attention",
                self.use_bidirectional_attention,
            ),
            (
                "use_sliding_window",
                self.use_sliding_window && !switches.gemma,
            ),
            (
                "attn_logit_softcapping",
                self.attn_logit_softcapping.is_some(),
            ),
            (
                "final_logit_softcapping",
                self.final_logit_softcapping.is_some(),
            ),
            ("quantization_config", self.quantization_config.is_some()),
            ("num_experts", self.num_experts.is_some()),
            ("num_local_experts", self.num_local_experts.is_some()),
        ] {
            if set {
                return Err(at.unsupported(name.to_owned()));
            }
        }
        let known = match switches.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        };
        // Gemma's files may carry an obsolete `hidden_act` beside the key that counts.
        let (key, act) = match &self.hidden_activation {
            Some(act) => ("hidden_activation", Some(act)),
            None => ("hidden_act", self.hidden_act.as_ref()),
        };
        if let Some(act) = act.filter(|act| *act != known) {
            return Err(at.unsupported(format!("{key} {act}")));
        }
        Ok(())
    }
}
