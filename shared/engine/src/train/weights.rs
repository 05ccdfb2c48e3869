//! The frozen matrices, transposed for the backward pass.

use crate::adapter::Target;
use crate::cpu::pack::PackedWeights;
use crate::model::Model;

/// Matrices for `dx = dy W`: packed so that inputs are the outputs. They double the memory of the
/// weights, in the number format of the weights.
#[derive(Debug)]
pub(super) struct Frozen {
    layers: Vec<[PackedWeights; Target::ALL.len()]>,
    output: PackedWeights,
}

impl Frozen {
    pub(super) fn of(model: &Model) -> Self {
        let layers = model
            .layers()
            .iter()
            .map(|layer| Target::ALL.map(|target| layer.linear(target).transposed()));
        Self {
            layers: layers.collect(),
            output: model.output().transposed(),
        }
    }

    /// A linear layer, `[in, out]`.
    pub(super) fn linear(&self, layer: usize, target: Target) -> &PackedWeights {
        &self.layers[layer][target.index()]
    }

    /// The output matrix, `[hidden, vocab]`.
    pub(super) const fn output(&self) -> &PackedWeights {
        &self.output
    }
}
