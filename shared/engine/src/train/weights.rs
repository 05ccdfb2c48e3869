//! The frozen matrices, transposed for the backward pass.

use half::bf16;

use crate::adapter::Target;
use crate::cpu::pack::{PackedWeights, Panels};
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
            .map(|layer| Target::ALL.map(|target| transposed(layer.linear(target))));
        Self {
            layers: layers.collect(),
            output: transposed(model.output()),
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

/// The same weights with inputs and outputs exchanged, in the same number format.
fn transposed(weights: &PackedWeights) -> PackedWeights {
    let Panels::Bf16(_) = weights.panels() else {
        return weights.transposed();
    };
    let (n, k) = (weights.n(), weights.k());
    let mut bits = vec![0_u16; n * k];
    let mut row = vec![0.0; k];
    for output in 0..n {
        weights.copy_row(output, &mut row);
        for (input, value) in row.iter().enumerate() {
            // Exact: the value was widened from bfloat16.
            bits[input * n + output] = bf16::from_f32(*value).to_bits();
        }
    }
    PackedWeights::pack_bf16(&bits, k, n)
}
