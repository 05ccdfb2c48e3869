//! Models without a checkpoint, for measurements: any configuration, seeded random weights.

use super::{LayerWeights, Model, weights};
use crate::adapter::Target;
use crate::config::{Compute, ModelConfig};
use crate::cpu::pack::PackedWeights;
use crate::cpu::rope::RopeTable;
use crate::sampler::philox;

impl Model {
    /// A model of this configuration whose matrices are random (uniform, of variance `1 / in`)
    /// and whose norms are one. Speed does not depend on the values; sensible sizes keep
    /// everything finite. With [`Compute::Bf16`] the weights are stored in bfloat16.
    #[must_use]
    pub fn synthetic(config: ModelConfig, compute: Compute, seed: u64) -> Self {
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
        let embedding = (!config.tie_word_embeddings).then(|| {
            let zeros = vec![0.0; config.vocab_size * config.hidden_size];
            weights::Embedding::F32(zeros)
        });
        let ropes = config.ropes.iter();
        Self {
            compute,
            digest: [0; 32],
            embedding,
            layers,
            final_norm: vec![1.0; config.hidden_size],
            output,
            ropes: ropes
                .map(|rope| RopeTable::new(config.head_dim, *rope, config.max_position_embeddings))
                .collect(),
            config,
        }
    }
}
