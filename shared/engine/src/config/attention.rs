//! Each layer's attention and the families of rotary angles, from either key layout.

use serde_json::{Map, Value};

use super::raw::{At, RawConfig, Switches};
use super::{LayerAttention, RopeConfig, RopeScaling};
use crate::error::EngineError;

/// No published model has a fifth of this; a description per layer is kept.
const LAYERS_MAX: usize = 1024;
/// Layers per full-attention layer where Gemma 3's files do not say it.
const GEMMA3_PATTERN: usize = 6;

impl RawConfig {
    /// The families of rotary angles, and each layer's attention.
    pub(super) fn attention(
        &self,
        at: &At,
        switches: &Switches,
    ) -> Result<(Vec<RopeConfig>, Vec<LayerAttention>), EngineError> {
        if self.num_hidden_layers > LAYERS_MAX {
            let layers = self.num_hidden_layers;
            return Err(at.invalid(format!("num_hidden_layers is {layers}")));
        }
        let full = LayerAttention {
            window: None,
            rope: 0,
        };
        if !switches.gemma {
            let types = self.layer_types.as_deref().unwrap_or_default();
            if let Some(other) = types.iter().find(|kind| *kind != "full_attention") {
                return Err(at.unsupported(format!("layer type {other}")));
            }
            let ropes = vec![self.rope(at)?];
            return Ok((ropes, vec![full; self.num_hidden_layers]));
        }
        let window = self.sliding_window.filter(|window| *window > 0);
        let sliding = LayerAttention {
            window: Some(window.ok_or_else(|| at.invalid("sliding_window is missing".to_owned()))?),
            rope: 1,
        };
        let attention = match &self.layer_types {
            Some(types) => {
                if types.len() != self.num_hidden_layers {
                    return Err(at.invalid(format!(
                        "{} layer_types for {} layers",
                        types.len(),
                        self.num_hidden_layers
                    )));
                }
                let kinds = types.iter().map(|kind| match kind.as_str() {
                    "full_attention" => Ok(full),
                    "sliding_attention" => Ok(sliding),
                    other => Err(at.unsupported(format!("layer type {other}"))),
                });
                kinds.collect::<Result<_, _>>()?
            }
            None => {
                let pattern = self.sliding_window_pattern.unwrap_or(GEMMA3_PATTERN).max(1);
                let kind = |i: usize| {
                    if (i + 1).is_multiple_of(pattern) {
                        full
                    } else {
                        sliding
                    }
                };
                (0..self.num_hidden_layers).map(kind).collect()
            }
        };
        Ok((self.gemma_ropes(at)?, attention))
    }

    /// The one family of the plain architectures, from either key layout.
    fn rope(&self, at: &At) -> Result<RopeConfig, EngineError> {
        if let Some(map) = &self.rope_parameters {
            if map.values().any(Value::is_object) {
                return Err(at.unsupported("rope_parameters per layer type".to_owned()));
            }
            if let Some(old) = &self.rope_scaling
                && rope_of(at, old, Some(1.0))?.scaling != rope_of(at, map, Some(1.0))?.scaling
            {
                return Err(at.invalid("rope_scaling contradicts rope_parameters".to_owned()));
            }
            return rope_of(at, map, self.rope_theta);
        }
        let empty = Map::new();
        rope_of(
            at,
            self.rope_scaling.as_ref().unwrap_or(&empty),
            self.rope_theta,
        )
    }

    /// Those of full and of sliding layers.
    fn gemma_ropes(&self, at: &At) -> Result<Vec<RopeConfig>, EngineError> {
        if let Some(map) = &self.rope_parameters {
            let of = |kind: &str| match map.get(kind).and_then(Value::as_object) {
                Some(map) => rope_of(at, map, None),
                None => Err(at.invalid(format!("rope_parameters.{kind} is missing"))),
            };
            return Ok(vec![of("full_attention")?, of("sliding_attention")?]);
        }
        let empty = Map::new();
        let scaling = self.rope_scaling.as_ref().unwrap_or(&empty);
        // Both defaults are those of transformers' Gemma 3 configuration.
        let full = rope_of(at, scaling, Some(self.rope_theta.unwrap_or(1e6)))?;
        let local = RopeConfig {
            theta: self.rope_local_base_freq.unwrap_or(1e4),
            scaling: RopeScaling::None,
        };
        Ok(vec![full, local])
    }
}

/// One family of rotary angles; `theta` where the map has none.
fn rope_of(
    at: &At,
    map: &Map<String, Value>,
    theta: Option<f64>,
) -> Result<RopeConfig, EngineError> {
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let due = |key: &str| number(key).ok_or_else(|| at.invalid(format!("rope {key} is missing")));
    let theta = number("rope_theta").or(theta);
    let theta = theta.ok_or_else(|| at.invalid("rope_theta is missing".to_owned()))?;
    let kind = map.get("rope_type").or_else(|| map.get("type"));
    let scaling = match kind {
        None => RopeScaling::None,
        Some(kind) => match kind.as_str() {
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: due("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: due("factor")?,
                low_freq_factor: due("low_freq_factor")?,
                high_freq_factor: due("high_freq_factor")?,
                original: due("original_max_position_embeddings")?,
            },
            _ => return Err(at.unsupported(format!("rope_type {kind}"))),
        },
    };
    if number("partial_rotary_factor").is_some_and(|factor| factor != 1.0) {
        return Err(at.unsupported("partial_rotary_factor".to_owned()));
    }
    Ok(RopeConfig { theta, scaling })
}
