//! Models without a checkpoint, for measurements: any configuration, seeded random weights.

use super::{LayerWeights, Model};
use crate::adapter::{Site, Target};
use crate::config::{Compute, ModelConfig};
use crate::cpu::pack::PackedWeights;
use crate::cpu::rope::RopeTable;
use crate::error::EngineError;
use crate::packed::Packing;
use crate::sampler::philox;

/// Most weights of a model that is made up: twice what anyone trains on a CPU. More is a slip in
/// the sizes, and would only meet the end of the memory.
pub const SYNTHETIC_WEIGHTS_MAX: u64 = 1 << 34;

impl Model {
    /// A model of this configuration whose matrices are random (uniform, of variance `1 / in`)
    /// and whose norms are one. Speed does not depend on the values; sensible sizes keep
    /// everything finite. With [`Compute::Bf16`] the weights are stored in bfloat16.
    ///
    /// # Errors
    ///
    /// It would have more than [`SYNTHETIC_WEIGHTS_MAX`] weights.
    pub fn synthetic(
        config: ModelConfig,
        compute: Compute,
        seed: u64,
    ) -> Result<Self, EngineError> {
        check_size(&config)?;
        let mut matrices = 0;
        let mut matrix = |n: usize, k: usize| {
            matrices += 1;
            let width = (12.0 / k as f32).sqrt();
            let mut values = vec![0.0; n * k];
            for (block, values) in values.chunks_mut(4).enumerate() {
                let counter = [block as u32, (block >> 32) as u32, matrices, 0];
                for (value, bits) in values.iter_mut().zip(philox(counter, seed)) {
                    *value = ((bits >> 8) as f32 / (1u32 << 24) as f32 - 0.5) * width;
                }
            }
            match compute {
                Compute::F32 => PackedWeights::pack(&values, n, k),
                Compute::Bf16 => PackedWeights::pack_rounded(&values, n, k),
            }
        };
        let layers = (0..config.num_layers).map(|_| {
            let linear = Target::ALL.map(|target| {
                let (n, k) = target.shape(&config);
                matrix(n, k)
            });
            LayerWeights::plain(&config, linear.into())
        });
        let layers = layers.collect();
        let output = matrix(config.vocab_size, config.hidden_size);
        let untied = !config.tie_word_embeddings;
        let embedding = untied.then(|| matrix(config.vocab_size, config.hidden_size));
        let ropes = config.ropes.iter();
        Ok(Self {
            compute,
            digest: [0; 32],
            embedding,
            layers,
            final_norm: vec![1.0; config.hidden_size],
            output,
            transposed: None,
            packings: vec![Packing::Private],
            ropes: ropes
                .map(|rope| RopeTable::new(config.head_dim, *rope, config.max_position_embeddings))
                .collect(),
            config,
        })
    }
}

fn check_size(config: &ModelConfig) -> Result<(), EngineError> {
    let embedding = (!config.tie_word_embeddings).then_some(Site::LmHead);
    let matrices = Site::all(config.num_layers).chain(embedding);
    let weights = matrices.map(|site| {
        let (n, k) = site.shape(config);
        (n as u64).saturating_mul(k as u64)
    });
    let weights = weights.fold(0u64, u64::saturating_add);
    if weights <= SYNTHETIC_WEIGHTS_MAX {
        return Ok(());
    }
    let what = format!(
        "a model of these sizes has {weights} weights; at most {SYNTHETIC_WEIGHTS_MAX} are made up"
    );
    Err(EngineError::InvalidArgument { what })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// An embedding of zeros is divided by its own norm on the way back: a gradient of NaN.
    #[test]
    fn tokens_have_embeddings_of_their_own() {
        for tied in [true, false] {
            let json = format!(
                r#"{{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 40, "hidden_size": 24,
                    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
                    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
                    "tie_word_embeddings": {tied}}}"#
            );
            let config = ModelConfig::parse(Path::new("config.json"), json.as_bytes());
            let config = config.expect("a valid configuration");
            for compute in [Compute::F32, Compute::Bf16] {
                let model = Model::synthetic(config.clone(), compute, 1).expect("small");
                let embedding = |token| {
                    let mut row = vec![0.0; 24];
                    model.embed(token, &mut row);
                    row
                };
                let (first, second) = (embedding(0), embedding(39));
                assert_ne!(first, second);
                let mut output = vec![0.0; 24];
                model.output().copy_row(0, &mut output);
                assert_eq!(first == output, tied);
                let square: f32 = first.iter().map(|value| value * value).sum();
                assert!((0.2..5.0).contains(&square), "{square}");
            }
        }
    }
}
