//! `config.json` as it is written, and what each architecture makes of it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::attention::attention;
use super::keys::{At, Keys, shown};
use super::refused::refuse_unknown_mathematics;
use super::{Activation, Architecture, ModelConfig};
use crate::error::EngineError;

/// No published model has a fifth of this; a description per layer is kept.
const LAYERS_MAX: usize = 1024;
/// Eight times the widest published head. A block of the rotary table is 256 heads.
const HEAD_DIM_MAX: usize = 4096;
/// Beside a mean square; published ones are 1e-5 and 1e-6.
const EPS: RangeInclusive<f64> = 1e-30..=1.0;
/// Divides products of queries and keys; published ones are the width of a head, or near it.
const ATTENTION_SCALAR: RangeInclusive<f64> = 1e-6..=1e9;

/// `model_type` of Gemma 3 without images, and of the text model inside one with them.
const GEMMA3_TEXT: &str = "gemma3_text";

/// What an architecture fixes beside its sizes.
pub(super) struct Switches {
    pub(super) architecture: Architecture,
    /// What `model_type` is, where it is said.
    model_type: &'static str,
    pub(super) activation: Activation,
    pub(super) qk_norm: bool,
    qkv_bias: bool,
    /// Norm weights are stored minus one, branches are normed, embeddings scaled, attention
    /// slides: what Gemma 3 has and the others have not.
    pub(super) gemma: bool,
    /// Where the text model's keys are, if not at the top.
    inside: Option<&'static str>,
}

impl Switches {
    /// The table of architectures.
    fn of(name: &str) -> Option<Self> {
        let plain = |architecture, model_type| Self {
            architecture,
            model_type,
            activation: Activation::Silu,
            qk_norm: false,
            qkv_bias: false,
            gemma: false,
            inside: None,
        };
        let gemma = |model_type| Self {
            activation: Activation::GeluTanh,
            qk_norm: true,
            gemma: true,
            ..plain(Architecture::Gemma3, model_type)
        };
        Some(match name {
            "LlamaForCausalLM" => plain(Architecture::Llama, "llama"),
            "Qwen2ForCausalLM" => Self {
                qkv_bias: true,
                ..plain(Architecture::Qwen2, "qwen2")
            },
            "Qwen3ForCausalLM" => Self {
                qk_norm: true,
                ..plain(Architecture::Qwen3, "qwen3")
            },
            "Gemma3ForCausalLM" => gemma(GEMMA3_TEXT),
            // With images; of its tensors those of the text model are read.
            "Gemma3ForConditionalGeneration" => Self {
                inside: Some("text_config"),
                ..gemma("gemma3")
            },
            _ => return None,
        })
    }

    /// What transformers takes where a file has no such size. It writes them all but for the text
    /// model inside a Gemma 3 with images.
    fn default_size(&self, key: &str) -> Option<usize> {
        if self.architecture == Architecture::Qwen3 && key == "head_dim" {
            return Some(128);
        }
        if !self.gemma {
            return None;
        }
        Some(match key {
            "vocab_size" => 262_208,
            "hidden_size" => 2304,
            "intermediate_size" => 9216,
            "num_hidden_layers" => 26,
            "num_attention_heads" => 8,
            "num_key_value_heads" => 4,
            "head_dim" => 256,
            "max_position_embeddings" => 131_072,
            _ => return None,
        })
    }
}

/// Reads a configuration; what the sizes must be to each other is not checked yet.
pub(super) fn parse(at: &At, bytes: &[u8]) -> Result<ModelConfig, EngineError> {
    let map: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| at.invalid(e.to_string()))?;
    let top = Keys::new(at, &map);
    let switches = switches(&top)?;
    let Some(inside) = switches.inside else {
        return model(&top, &top, &switches);
    };
    refuse_unknown_mathematics(&top, &switches)?;
    let keys = top.object(inside)?.ok_or_else(|| top.missing(inside))?;
    if let Some(other) = keys.text("model_type")?.filter(|kind| *kind != GEMMA3_TEXT) {
        let (name, other) = (keys.name("model_type"), shown(&Value::from(other)));
        return Err(at.unsupported(format!("{name} {other}")));
    }
    model(&top, &keys, &switches)
}

/// The architecture that a file names.
fn switches(top: &Keys<'_>) -> Result<Switches, EngineError> {
    let names = top.texts("architectures")?;
    let names = names.ok_or_else(|| top.missing("architectures"))?;
    let [name] = names.as_slice() else {
        return Err(top
            .at
            .invalid(format!("architectures has {} entries", names.len())));
    };
    let switches = Switches::of(name).ok_or_else(|| {
        top.at.unsupported(format!(
            "architecture {} (known: Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM, \
             Gemma3ForCausalLM, Gemma3ForConditionalGeneration)",
            shown(&Value::from(*name))
        ))
    })?;
    match top.text("model_type")? {
        Some(other) if other != switches.model_type => {
            let other = shown(&Value::from(other));
            let reason = format!("model_type {other} contradicts architectures {name}");
            Err(top.at.invalid(reason))
        }
        _ => Ok(switches),
    }
}

/// The text model of `keys`, which are `top` or inside it.
fn model(top: &Keys<'_>, keys: &Keys<'_>, switches: &Switches) -> Result<ModelConfig, EngineError> {
    refuse_unknown_mathematics(keys, switches)?;
    let size = |key: &str, max: Option<usize>| {
        let size = match max {
            Some(max) => keys.size_up_to(key, max)?,
            None => keys.size(key)?,
        };
        Ok::<_, EngineError>(size.or_else(|| switches.default_size(key)))
    };
    let due = |key: &str| size(key, None)?.ok_or_else(|| keys.missing(key));
    let num_layers = size("num_hidden_layers", Some(LAYERS_MAX))?;
    let num_layers = num_layers.ok_or_else(|| keys.missing("num_hidden_layers"))?;
    let (hidden_size, num_heads) = (due("hidden_size")?, due("num_attention_heads")?);
    let head_dim = match size("head_dim", Some(HEAD_DIM_MAX))? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => return Err(keys.missing("head_dim")),
    };
    let (ropes, attention) = attention(keys, switches, num_layers)?;
    let eps = match keys.number("rms_norm_eps", &EPS)? {
        Some(eps) => eps,
        None if switches.gemma => 1e-6,
        None => return Err(keys.missing("rms_norm_eps")),
    };
    let scalar = match switches.gemma {
        true => keys
            .number("query_pre_attn_scalar", &ATTENTION_SCALAR)?
            .unwrap_or(256.0),
        false => head_dim as f64,
    };
    let eos_token_ids = match top.tokens("eos_token_id")? {
        Some(ids) => ids,
        None => keys.tokens("eos_token_id")?.unwrap_or_default(),
    };
    Ok(ModelConfig {
        architecture: switches.architecture,
        vocab_size: due("vocab_size")?,
        hidden_size,
        intermediate_size: due("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: size("num_key_value_heads", None)?.unwrap_or(num_heads),
        head_dim,
        rms_norm_eps: eps as f32,
        max_position_embeddings: due("max_position_embeddings")?,
        tie_word_embeddings: tied(top, keys, switches)?,
        qk_norm: switches.qk_norm,
        qkv_bias: switches.qkv_bias,
        norm_plus_one: switches.gemma,
        branch_norms: switches.gemma,
        activation: switches.activation,
        embedding_scale: if switches.gemma {
            (hidden_size as f64).sqrt() as f32
        } else {
            1.0
        },
        attention_scale: scalar.powf(-0.5) as f32,
        ropes,
        attention,
        eos_token_ids,
    })
}

/// Whether the output matrix is the embedding. Gemma's files leave it out and mean `true`; those
/// with images may say it for the whole and for the text model.
fn tied(top: &Keys<'_>, keys: &Keys<'_>, switches: &Switches) -> Result<bool, EngineError> {
    let key = "tie_word_embeddings";
    let (whole, text) = (top.flag(key)?, keys.flag(key)?);
    if let (Some(whole), Some(text)) = (whole, text)
        && whole != text
    {
        return Err(top
            .at
            .invalid(format!("{key} contradicts {}", keys.name(key))));
    }
    Ok(text.or(whole).unwrap_or(switches.gemma))
}
