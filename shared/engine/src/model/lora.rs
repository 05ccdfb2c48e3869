//! Adapters in the order in which the matrix product reads them.

use std::sync::OnceLock;

use crate::adapter::{Adapter, Target};
use crate::config::Compute;
use crate::cpu::pack::PackedWeights;

/// The factors of an adapter, packed.
#[derive(Debug)]
pub(crate) struct PackedAdapter {
    scale: f32,
    layers: Vec<[Option<PackedPair>; Target::ALL.len()]>,
}

/// The packed factors of one linear layer.
#[derive(Debug)]
pub(crate) struct PackedPair {
    /// `[rank, in]`
    pub(crate) a: PackedWeights,
    /// `[out, rank]`
    pub(crate) b: PackedWeights,
}

impl PackedAdapter {
    fn new(adapter: &Adapter, compute: Compute) -> Self {
        let rank = adapter.rank();
        let pack = match compute {
            Compute::F32 => PackedWeights::pack,
            Compute::Bf16 => PackedWeights::pack_rounded,
        };
        let layer = |layer| {
            Target::ALL.map(|target| {
                adapter.pair(layer, target).map(|pair| PackedPair {
                    a: pack(&pair.a, rank, pair.a.len() / rank),
                    b: pack(&pair.b, pair.b.len() / rank, rank),
                })
            })
        };
        Self {
            scale: adapter.scale(),
            layers: (0..adapter.num_layers()).map(layer).collect(),
        }
    }

    /// The factor of `B (A x)`.
    pub(crate) const fn scale(&self) -> f32 {
        self.scale
    }

    /// The pair of one linear layer, if it is adapted.
    pub(crate) fn pair(&self, layer: usize, target: Target) -> Option<&PackedPair> {
        self.layers[layer][target.index()].as_ref()
    }
}

/// Holds an adapter's packed forms from their first use on. Clones start empty, and all cells
/// are equal: the cell says nothing that the adapter does not.
#[derive(Debug, Default)]
pub(crate) struct PackedCell {
    f32: OnceLock<PackedAdapter>,
    bf16: OnceLock<PackedAdapter>,
}

impl PackedCell {
    /// The packed form of `adapter`, which must be the adapter that owns this cell.
    pub(crate) fn get(&self, adapter: &Adapter, compute: Compute) -> &PackedAdapter {
        let cell = match compute {
            Compute::F32 => &self.f32,
            Compute::Bf16 => &self.bf16,
        };
        cell.get_or_init(|| PackedAdapter::new(adapter, compute))
    }
}

impl Clone for PackedCell {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for PackedCell {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}
