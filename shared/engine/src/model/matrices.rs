//! The matrices of a checkpoint: which there are, how they are packed, and where they are then.
//!
//! Their order: the linear layers of every layer by [`Target::index`], the output matrix, and the
//! embedding where it is another one.

use std::path::Path;
use std::sync::Arc;

use super::LoadOptions;
use super::checkpoint::Checkpoint;
use crate::adapter::Target;
use crate::config::{Compute, ModelConfig};
use crate::cpu::pack::{Format, PackedWeights};
use crate::error::EngineError;
use crate::packed::{Matrix, Packing};
use crate::safetensors::Dtype;

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// The matrices of an open checkpoint.
pub(super) struct Matrices<'a> {
    checkpoint: &'a Checkpoint,
    all: Vec<Matrix>,
    /// Whether the last one is the embedding.
    untied: bool,
}

/// The packed matrices.
pub(super) struct Packed {
    pub(super) matrices: Vec<PackedWeights>,
    /// Without the embedding; only where a file has them.
    pub(super) transposed: Option<Arc<[PackedWeights]>>,
    /// How those came, and these when they were asked for.
    pub(super) packings: Vec<Packing>,
}

impl<'a> Matrices<'a> {
    /// Finds and checks all matrices. Those that are stored in bfloat16 stay in it; what computes
    /// in bfloat16 rounds the others, except an embedding, which is no operand of a product.
    pub(super) fn of(
        checkpoint: &'a Checkpoint,
        config: &ModelConfig,
        compute: Compute,
    ) -> Result<Self, EngineError> {
        let matrix = |name: String, (n, k): (usize, usize), rounded: Compute| {
            let stored = checkpoint.tensor(&name, &[n, k])?.dtype();
            let format = match (stored, rounded) {
                (Dtype::Bf16, _) | (_, Compute::Bf16) => Format::Bf16,
                (Dtype::F32 | Dtype::F16, Compute::F32) => Format::F32,
            };
            Ok::<_, EngineError>(Matrix { name, format, n, k })
        };
        let mut all = Vec::new();
        for layer in 0..config.num_layers {
            for target in Target::ALL {
                let name = format!("model.layers.{layer}.{}", target.path());
                let bias = format!("{name}.bias");
                if checkpoint.has(&bias) && !has_bias(config, target) {
                    return Err(EngineError::ModelUnsupported {
                        file: Path::new("model.safetensors").to_owned(),
                        what: bias,
                    });
                }
                all.push(matrix(
                    format!("{name}.weight"),
                    target.shape(config),
                    compute,
                )?);
            }
        }
        let shape = (config.vocab_size, config.hidden_size);
        let untied = !config.tie_word_embeddings && checkpoint.has(OUTPUT);
        let output = if untied { OUTPUT } else { EMBEDDING };
        all.push(matrix(output.to_owned(), shape, compute)?);
        if untied {
            all.push(matrix(EMBEDDING.to_owned(), shape, Compute::F32)?);
        }
        Ok(Self {
            checkpoint,
            all,
            untied,
        })
    }

    /// Packs all matrices, or maps them.
    pub(super) fn provide(
        &self,
        digest: &[u8; 32],
        options: &LoadOptions,
    ) -> Result<Packed, EngineError> {
        let cached = |matrices: &[Matrix], make: &dyn Fn(usize) -> _| match &options.cache {
            Some(cache) => cache.provide(digest, matrices, make),
            None => Ok((None, Packing::Private)),
        };
        let (mapped, packing) = cached(&self.all, &|index| self.pack(&self.all[index]))?;
        let matrices = match mapped {
            Some(matrices) => matrices,
            None => (self.all.iter().map(|matrix| self.pack(matrix))).collect::<Result<_, _>>()?,
        };
        let mut packings = vec![packing];
        let mut transposed = None;
        if options.training {
            let multiplied = &self.all[..self.all.len() - usize::from(self.untied)];
            let turned = multiplied.iter().map(|matrix| Matrix {
                name: format!("{} transposed", matrix.name),
                format: matrix.format,
                n: matrix.k,
                k: matrix.n,
            });
            let turned: Vec<_> = turned.collect();
            let (mapped, packing) = cached(&turned, &|index| Ok(matrices[index].transposed()))?;
            transposed = mapped.map(Arc::from);
            packings.push(packing);
        }
        Ok(Packed {
            matrices,
            transposed,
            packings,
        })
    }

    fn pack(&self, matrix: &Matrix) -> Result<PackedWeights, EngineError> {
        let Matrix { name, format, n, k } = matrix;
        let (n, k) = (*n, *k);
        let view = self.checkpoint.tensor(name, &[n, k])?.expect_finite()?;
        let packed = match (view.to_bf16_bits(), format) {
            (Some(bits), _) => PackedWeights::pack_bf16(&bits, n, k),
            (None, Format::F32) => PackedWeights::pack(&view.to_f32(), n, k),
            (None, Format::Bf16) => PackedWeights::pack_rounded(&view.to_f32(), n, k),
        };
        // Or a file of the cache would keep other weights under this digest.
        self.checkpoint.check_unchanged()?;
        Ok(packed)
    }
}

const fn has_bias(config: &ModelConfig, target: Target) -> bool {
    config.qkv_bias && matches!(target, Target::Q | Target::K | Target::V)
}
