//! The frozen matrices, transposed for the backward pass.

use crate::adapter::{PerSite, Site};
use crate::cpu::pack::PackedWeights;
use crate::model::Model;

/// Matrices for `dx = dy W`: packed so that inputs are the outputs. They double the memory of the
/// weights, in the number format of the weights.
#[derive(Debug)]
pub(super) struct Frozen {
    matrices: PerSite<PackedWeights>,
}

impl Frozen {
    pub(super) fn of(model: &Model) -> Self {
        let layers = model.layers();
        let matrices = PerSite::from_fn(layers.len(), |site| match site {
            Site::Layer(layer, target) => layers[layer].linear(target).transposed(),
            Site::LmHead => model.output().transposed(),
        });
        Self { matrices }
    }

    /// The matrix of a site, `[in, out]`.
    pub(super) fn matrix(&self, site: Site) -> &PackedWeights {
        &self.matrices[site]
    }
}
