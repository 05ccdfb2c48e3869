//! Each layer's attention and the families of rotary angles, from either key layout.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::keys::{Keys, shown};
use super::raw::Switches;
use super::refused::is_one;
use super::{Architecture, LayerAttention, RopeConfig, RopeScaling};
use crate::error::EngineError;

/// Layers per full-attention layer where Gemma 3's files do not say it.
const GEMMA3_PATTERN: usize = 6;
/// What transformers takes where a file of Gemma 3 has no such key.
const GEMMA3_WINDOW: usize = 4096;
const GEMMA3_THETA: f64 = 1e6;
const GEMMA3_THETA_SLIDING: f64 = 1e4;
/// The base of Llama's files that were written before it could be told.
const LLAMA_THETA: f64 = 1e4;

/// Bases of the frequencies. Published ones are from 1e4 to 1e11; a frequency must be a number
/// that positions can be multiplied with.
const THETA: RangeInclusive<f64> = 1.0..=1e30;
/// Divisors of frequencies, and borders between long wavelengths and short ones. Published ones are
/// from 1 to 64.
const FACTOR: RangeInclusive<f64> = 1e-6..=1e6;
/// Positions of a context.
const CONTEXT: RangeInclusive<f64> = 1.0..=1e9;

/// The families of rotary angles, and the attention of `layers` layers.
pub(super) fn attention(
    keys: &Keys<'_>,
    switches: &Switches,
    layers: usize,
) -> Result<(Vec<RopeConfig>, Vec<LayerAttention>), EngineError> {
    let full = LayerAttention {
        window: None,
        rope: 0,
    };
    let types = layer_types(keys, switches, layers)?;
    if !switches.gemma {
        return Ok((vec![rope(keys, switches)?], vec![full; layers]));
    }
    let ropes = gemma_ropes(keys)?;
    let slides: Vec<bool> = match types {
        Some(types) => types
            .iter()
            .map(|kind| *kind == "sliding_attention")
            .collect(),
        None => {
            let pattern = keys.size("sliding_window_pattern")?;
            let pattern = pattern.unwrap_or(GEMMA3_PATTERN);
            (1..=layers).map(|i| !i.is_multiple_of(pattern)).collect()
        }
    };
    let window = match keys.size("sliding_window")? {
        None if keys.is_null("sliding_window") && slides.contains(&true) => {
            return Err(keys.missing("sliding_window"));
        }
        window => window.unwrap_or(GEMMA3_WINDOW),
    };
    let sliding = LayerAttention {
        window: Some(window),
        rope: 1,
    };
    let kinds = slides
        .iter()
        .map(|slides| if *slides { sliding } else { full });
    Ok((ropes, kinds.collect()))
}

/// The kind of each layer, where the file says it.
fn layer_types<'a>(
    keys: &Keys<'a>,
    switches: &Switches,
    layers: usize,
) -> Result<Option<Vec<&'a str>>, EngineError> {
    let Some(types) = keys.texts("layer_types")? else {
        return Ok(None);
    };
    let known = |kind: &str| match kind {
        "full_attention" => true,
        "sliding_attention" => switches.gemma,
        _ => false,
    };
    if let Some(other) = types.iter().find(|kind| !known(kind)) {
        let other = shown(&Value::from(*other));
        return Err(keys.at.unsupported(format!("layer type {other}")));
    }
    if types.len() != layers {
        let (name, len) = (keys.name("layer_types"), types.len());
        let reason = format!("{name} has {len} entries for {layers} layers");
        return Err(keys.at.invalid(reason));
    }
    Ok(Some(types))
}

/// The one family of the plain architectures.
fn rope(keys: &Keys<'_>, switches: &Switches) -> Result<RopeConfig, EngineError> {
    let theta = keys.number("rope_theta", &THETA)?;
    let Some(new) = keys.object("rope_parameters")? else {
        let default = (switches.architecture == Architecture::Llama).then_some(LLAMA_THETA);
        return match keys.object("rope_scaling")? {
            Some(old) => rope_of(keys, &old, theta.or(default)),
            None => rope_of(keys, &Keys::new(keys.at, &Map::new()), theta.or(default)),
        };
    };
    if new.present().any(|(_, value)| value.is_object()) {
        let what = "rope_parameters per layer type";
        return Err(keys.at.unsupported(what.to_owned()));
    }
    let rope = rope_of(keys, &new, theta)?;
    refuse_contradiction(keys, &rope)?;
    Ok(rope)
}

/// Those of full and of sliding layers.
fn gemma_ropes(keys: &Keys<'_>) -> Result<Vec<RopeConfig>, EngineError> {
    let local = keys.number("rope_local_base_freq", &THETA)?;
    let Some(new) = keys.object("rope_parameters")? else {
        let theta = keys.number("rope_theta", &THETA)?;
        let theta = Some(theta.unwrap_or(GEMMA3_THETA));
        let full = match keys.object("rope_scaling")? {
            Some(old) => rope_of(keys, &old, theta)?,
            None => rope_of(keys, &Keys::new(keys.at, &Map::new()), theta)?,
        };
        let sliding = RopeConfig {
            theta: local.unwrap_or(GEMMA3_THETA_SLIDING),
            scaling: RopeScaling::None,
        };
        return Ok(vec![full, sliding]);
    };
    let of = |kind: &str| match new.object(kind)? {
        Some(map) => rope_of(keys, &map, None),
        None => Err(new.missing(kind)),
    };
    let (full, sliding) = (of("full_attention")?, of("sliding_attention")?);
    refuse_contradiction(keys, &full)?;
    if local.is_some_and(|local| local != sliding.theta) {
        return Err(contradiction(keys, "rope_local_base_freq"));
    }
    Ok(vec![full, sliding])
}

/// The keys of transformers 4 may stand beside those of version 5 only if they say the same.
fn refuse_contradiction(keys: &Keys<'_>, rope: &RopeConfig) -> Result<(), EngineError> {
    let theta = keys.number("rope_theta", &THETA)?;
    if theta.is_some_and(|theta| theta != rope.theta) {
        return Err(contradiction(keys, "rope_theta"));
    }
    match keys.object("rope_scaling")? {
        Some(old) if rope_of(keys, &old, Some(rope.theta))? != *rope => {
            Err(contradiction(keys, "rope_scaling"))
        }
        _ => Ok(()),
    }
}

fn contradiction(keys: &Keys<'_>, key: &str) -> EngineError {
    let (old, new) = (keys.name(key), keys.name("rope_parameters"));
    keys.at.invalid(format!("{old} contradicts {new}"))
}

/// One family of rotary angles; `theta` where the map has none. `top` is the model's object.
fn rope_of(top: &Keys<'_>, map: &Keys<'_>, theta: Option<f64>) -> Result<RopeConfig, EngineError> {
    let due = |key: &str, range| map.number(key, range)?.ok_or_else(|| map.missing(key));
    let theta = map.number("rope_theta", &THETA)?.or(theta);
    let theta = theta.ok_or_else(|| map.missing("rope_theta"))?;
    if let Some(factor) = map
        .get("partial_rotary_factor")
        .filter(|factor| !is_one(factor))
    {
        let (name, factor) = (map.name("partial_rotary_factor"), shown(factor));
        return Err(map.at.unsupported(format!("{name} {factor}")));
    }
    let scaling = match rope_type(map)? {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: due("factor", &FACTOR)?,
        },
        Some("llama3") => {
            let original = due("original_max_position_embeddings", &CONTEXT)?;
            // transformers 5 would take this one, version 4 the other.
            let other = top.number("original_max_position_embeddings", &CONTEXT)?;
            if other.is_some_and(|other| other != original) {
                let (inner, outer) = ("original_max_position_embeddings", "the one beside it");
                let reason = format!("{} contradicts {outer}", map.name(inner));
                return Err(map.at.invalid(reason));
            }
            RopeScaling::Llama3 {
                factor: due("factor", &FACTOR)?,
                low_freq_factor: due("low_freq_factor", &FACTOR)?,
                high_freq_factor: due("high_freq_factor", &FACTOR)?,
                original,
            }
        }
        Some(other) => {
            let (name, other) = (map.name("rope_type"), shown(&Value::from(other)));
            return Err(map.at.unsupported(format!("{name} {other}")));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

/// The name of a scaling. A map without it may say no more than the base: versions of transformers
/// read the rest differently.
fn rope_type<'a>(map: &Keys<'a>) -> Result<Option<&'a str>, EngineError> {
    let (new, old) = (map.text("rope_type")?, map.text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let (new, old) = (map.name("rope_type"), map.name("type"));
        return Err(map.at.invalid(format!("{new} contradicts {old}")));
    }
    let kind = new.or(old);
    let known = ["rope_theta", "partial_rotary_factor"];
    match map.present().find(|(key, _)| !known.contains(key)) {
        Some((key, _)) if kind.is_none() => {
            let what = format!("{} without a rope_type", map.name(key));
            Err(map.at.unsupported(what))
        }
        _ => Ok(kind),
    }
}
