//! The frozen matrices, transposed for the backward pass.

use std::sync::Arc;

use crate::adapter::{Site, Target};
use crate::cpu::pack::PackedWeights;
use crate::model::Model;

/// Matrices for `dx = dy W`: packed so that inputs are the outputs. They double the memory of the
/// weights, in the number format of the weights; a model that was loaded for training from a cache
/// has them mapped.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Seven per layer, by [`Target::index`], then the output matrix.
    matrices: Arc<[PackedWeights]>,
}

impl Frozen {
    pub(super) fn of(model: &Model) -> Self {
        if let Some(mapped) = model.transposed() {
            let matrices = Arc::clone(mapped);
            return Self { matrices };
        }
        let layers = model.layers().iter();
        let linear = layers.flat_map(|layer| Target::ALL.map(|target| layer.linear(target)));
        let matrices = linear.chain([model.output()]);
        Self {
            matrices: matrices.map(PackedWeights::transposed).collect(),
        }
    }

    /// The matrix of a site, `[in, out]`.
    pub(super) fn matrix(&self, site: Site) -> &PackedWeights {
        let output = self.matrices.len() - 1;
        match site {
            Site::Layer(layer, target) => {
                &self.matrices[..output][layer * Target::ALL.len() + target.index()]
            }
            Site::LmHead => &self.matrices[output],
        }
    }
}
