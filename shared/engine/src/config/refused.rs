//! Keys of `config.json` that name mathematics which is not computed here.

use serde_json::Value;

use super::Activation;
use super::keys::{Keys, shown};
use super::raw::Switches;
use crate::error::EngineError;

/// Keys that change the mathematics unless they are null, false, zero or empty. Not all of them
/// belong to architectures that are computed here: who takes over another one's name for a variant
/// of it tells the difference by such a key.
const REFUSED_UNLESS_EMPTY: [&str; 28] = [
    "add_cross_attention",
    "alibi",
    "attention_bias",
    "attention_chunk_size",
    "attn_logit_softcapping",
    "attn_temperature_tuning",
    "clip_qkv",
    "compression_config",
    "dim_model_base",
    "final_logit_softcapping",
    "hidden_size_per_layer_input",
    "is_encoder_decoder",
    "kv_lora_rank",
    "mlp_bias",
    "n_routed_experts",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_experts",
    "num_kv_shared_layers",
    "num_local_experts",
    "pruned_heads",
    "q_lora_rank",
    "quantization_config",
    "rope_interleave",
    "rope_interleaved",
    "scale_depth",
    "use_bidirectional_attention",
    "use_parallel_residual",
];

/// Keys that change the mathematics unless they are null or one.
const REFUSED_UNLESS_ONE: [&str; 8] = [
    "attention_multiplier",
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "partial_rotary_factor",
    "residual_multiplier",
    "rotary_pct",
    "scale_emb",
];

/// Names under which architectures say that queries and keys are normed.
const QK_NORM: [&str; 3] = ["qk_layernorm", "qk_norm", "use_qk_norm"];

/// Refuses by name what changes the mathematics and is not computed here.
pub(super) fn refuse_unknown_mathematics(
    keys: &Keys<'_>,
    switches: &Switches,
) -> Result<(), EngineError> {
    let refused = |key: &str, value: &Value| {
        let (name, value) = (keys.name(key), shown(value));
        Err(keys.at.unsupported(format!("{name} {value}")))
    };
    let sliding = (!switches.gemma).then_some("use_sliding_window");
    let normed = QK_NORM.into_iter().filter(|_| !switches.qk_norm);
    for key in REFUSED_UNLESS_EMPTY
        .into_iter()
        .chain(sliding)
        .chain(normed)
    {
        if let Some(value) = keys.get(key).filter(|value| !is_empty(value)) {
            return refused(key, value);
        }
    }
    for key in REFUSED_UNLESS_ONE {
        if let Some(value) = keys.get(key).filter(|value| !is_one(value)) {
            return refused(key, value);
        }
    }
    let known = match switches.activation {
        Activation::Silu => ["silu", "swish"],
        Activation::GeluTanh => ["gelu_pytorch_tanh"; 2],
    };
    // Gemma's files may carry an obsolete `hidden_act` beside the key that counts.
    let counts = keys.get("hidden_activation").is_some() && switches.gemma;
    let other = (!counts).then_some("hidden_act");
    for key in other.into_iter().chain(["hidden_activation"]) {
        if let Some(value) = keys.get(key)
            && !value.as_str().is_some_and(|act| known.contains(&act))
        {
            return refused(key, value);
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Whether a factor changes nothing.
pub(super) fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}
