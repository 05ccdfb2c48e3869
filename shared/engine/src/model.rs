//! A decoder-only transformer: its weights and its forward pass.
//!
//! One layer, for rows `x[rows, hidden]` of any mix of sequences:
//!
//! ```text
//! h = norm(x)                    q, k, v = W h [+ bias] + s B (A h)
//! q, k = rotate([norm per head](q, k))           keys and values go to the sequence's cache
//! x = x + [norm]((W + s B A) attention(q, cache))
//! h = norm(x)                    x = x + [norm]((W + s B A) (act(gate h) * up h))
//! ```
//!
//! After the last one, `logits = W h + s B (A h)` with `h = norm(x)`.
//!
//! What stands in brackets is a switch of [`ModelConfig`]. The same code serves prefill, decode
//! and the learner's forward; a row's result does not depend on the rows beside it (see
//! [`crate::cpu`]).

mod checkpoint;
mod forward;
mod layer;
mod layout;
mod lora;
mod matrices;
mod scratch;
mod synthetic;
mod unembed;
mod weights;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use forward::{Logits, LogitsWanted, SequenceStep};
pub(crate) use layer::{LayerBuffers, LayerPass, LowRank, SequenceRows, Work};
pub(crate) use layout::AdapterRun;
pub(crate) use lora::{PackedAdapter, PackedCell};
pub use scratch::Scratch;
pub use synthetic::SYNTHETIC_WEIGHTS_MAX;
pub(crate) use unembed::{UnembedBuffers, logit_rows};
pub use weights::LayerWeights;

use crate::config::{Compute, ModelConfig};
use crate::cpu::attention::Heads;
use crate::cpu::pack::PackedWeights;
use crate::cpu::rope::RopeTable;
use crate::error::EngineError;
use crate::packed::{PackedCache, Packing};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The number format of the products.
    pub compute: Compute,
    /// Where processes share packed weights; without it they are packed into private memory.
    pub cache: Option<PackedCache>,
    /// Whether a trainer will ask for the transposed matrices: then the cache has them, too.
    pub training: bool,
}

/// A model that is ready to compute.
pub struct Model {
    config: ModelConfig,
    compute: Compute,
    digest: [u8; 32],
    /// `None` when the output matrix is the embedding too.
    embedding: Option<PackedWeights>,
    layers: Vec<LayerWeights>,
    final_norm: Vec<f32>,
    output: PackedWeights,
    /// All linear layers and the output matrix, transposed, where a file has them.
    transposed: Option<Arc<[PackedWeights]>>,
    packings: Vec<Packing>,
    /// By [`ModelConfig::ropes`].
    ropes: Vec<RopeTable>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a folder in the Hugging Face layout: `config.json` and `model.safetensors`, or
    /// shards with their index.
    ///
    /// # Errors
    ///
    /// What is missing, cut off, misshapen or not supported, with the file and the tensor.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        Self::load_as(dir, Compute::F32)
    }

    /// The same with a number format of the products.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load`].
    pub fn load_as(dir: &Path, compute: Compute) -> Result<Self, EngineError> {
        let options = LoadOptions {
            compute,
            ..LoadOptions::default()
        };
        Self::load_with(dir, &options)
    }

    /// The same with all options. A cache that cannot be used is no error:
    /// [`Self::packings`] tells.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load`].
    pub fn load_with(dir: &Path, options: &LoadOptions) -> Result<Self, EngineError> {
        weights::load(dir, options)
    }

    /// The number format of the products.
    #[must_use]
    pub const fn compute(&self) -> Compute {
        self.compute
    }

    /// Sizes and switches.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// SHA-256 over the configuration and the weight files: equal digests, equal model.
    #[must_use]
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The weights of all layers.
    #[must_use]
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// Weights of the norm before the output matrix, `[hidden]`.
    #[must_use]
    pub fn final_norm(&self) -> &[f32] {
        &self.final_norm
    }

    /// The output matrix `[vocab, hidden]`.
    #[must_use]
    pub const fn output(&self) -> &PackedWeights {
        &self.output
    }

    /// All linear layers and the output matrix, transposed, where a file has them.
    pub(crate) const fn transposed(&self) -> Option<&Arc<[PackedWeights]>> {
        self.transposed.as_ref()
    }

    /// Where the packed weights are, and after it where their transposes are, when a trainer's
    /// were asked for.
    #[must_use]
    pub fn packings(&self) -> &[Packing] {
        &self.packings
    }

    /// Cosines and sines of the positions, as a layer reads them.
    ///
    /// # Panics
    ///
    /// There is no such layer.
    #[must_use]
    pub fn rope(&self, layer: usize) -> &RopeTable {
        &self.ropes[self.config.attention[layer].rope]
    }

    /// Sizes of the attention heads of a layer.
    ///
    /// # Panics
    ///
    /// There is no such layer.
    #[must_use]
    pub fn heads(&self, layer: usize) -> Heads {
        Heads {
            queries: self.config.num_heads,
            kv: self.config.num_kv_heads,
            dim: self.config.head_dim,
            scale: self.config.attention_scale,
            window: self.config.attention[layer].window,
        }
    }
}
