//! Adapters in the order in which the matrix product reads them, and what they add to a linear
//! layer.

use std::sync::OnceLock;

use super::layout::AdapterRun;
use crate::adapter::{Adapter, AdapterTensor, PerSite, Site};
use crate::buffers::sized;
use crate::config::Compute;
use crate::cpu::LANES;
use crate::cpu::bf16::{Input, input, round_here};
use crate::cpu::gemm::{Store, gemm, gemm_serial};
use crate::cpu::pack::PackedWeights;
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;

/// The factors of an adapter, packed.
#[derive(Debug)]
pub(crate) struct PackedAdapter {
    scale: f32,
    pairs: PerSite<Option<PackedPair>>,
}

/// The packed factors of one site.
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
        let pairs = PerSite::from_fn(adapter.num_layers(), |site| {
            adapter.pair(site).map(|pair| PackedPair {
                a: pack(&pair.a, rank, pair.a.len() / rank),
                b: pack(&pair.b, pair.b.len() / rank, rank),
            })
        });
        Self {
            scale: adapter.scale(),
            pairs,
        }
    }

    /// Bytes of an adapter's packed form.
    pub(crate) fn bytes(adapter: &Adapter, compute: Compute) -> u64 {
        let packed = |tensor: AdapterTensor<'_>| {
            let [n, k] = tensor.shape;
            let depth = match compute {
                Compute::F32 => k,
                Compute::Bf16 => k.div_ceil(2),
            };
            (n.div_ceil(LANES) * depth * size_of::<[f32; LANES]>()) as u64
        };
        adapter.tensors().map(packed).sum()
    }

    /// The factor of `B (A x)`.
    pub(crate) const fn scale(&self) -> f32 {
        self.scale
    }

    /// The pair of a site, if it is adapted.
    pub(crate) fn pair(&self, site: Site) -> Option<&PackedPair> {
        self.pairs[site].as_ref()
    }
}

/// Rows that one thread computes at a time: few enough that the rows of a decode step divide, and
/// enough that a factor is read into registers for several of them.
const PIECE_ROWS: usize = 16;
/// Multiply-adds below which everything stays on one thread, about 4 µs of work.
const PARALLEL_MIN: usize = 100_000;

/// What the adapters of a batch add to the linear layers that share an input, cut into pieces for
/// the threads: however many adapters there are, it is one parallel region.
#[derive(Default)]
pub(super) struct Pieces<'a> {
    pieces: Vec<Piece<'a>>,
    multiply_adds: usize,
}

/// One linear layer's adapter on a few rows: `low = x A^T`, `y = y + s low B^T`.
struct Piece<'a> {
    pair: &'a PackedPair,
    scale: f32,
    x: Input<'a>,
    low: &'a mut [f32],
    y: &'a mut [f32],
}

impl<'a> Pieces<'a> {
    /// Adds a linear layer: `y` and `x` are all rows of the batch, `low` becomes `x A^T` of the
    /// rows with an adapter on it.
    pub(super) fn cut(
        &mut self,
        runs: &'a [AdapterRun<'a>],
        site: Site,
        x: Input<'a>,
        y: &'a mut [f32],
        low: &'a mut Vec<f32>,
    ) {
        let adapted = |run: &'a AdapterRun<'a>| Some((run, run.adapter.pair(site)?));
        let values = |(run, pair): (&AdapterRun<'_>, &PackedPair)| run.rows.len() * pair.a.n();
        let total = runs.iter().filter_map(adapted).map(values).sum();
        let (mut low, mut y, mut row) = (sized(low, total), y, 0);
        for (run, pair) in runs.iter().filter_map(adapted) {
            let (rank, inputs, outputs) = (pair.a.n(), pair.a.k(), pair.b.n());
            y = y.split_at_mut((run.rows.start - row) * outputs).1;
            row = run.rows.start;
            while row < run.rows.end {
                let rows = PIECE_ROWS.min(run.rows.end - row);
                let (my_low, low_after) = low.split_at_mut(rows * rank);
                let (my_y, y_after) = y.split_at_mut(rows * outputs);
                (low, y) = (low_after, y_after);
                self.multiply_adds += rows * rank * (inputs + outputs);
                self.pieces.push(Piece {
                    pair,
                    scale: run.adapter.scale(),
                    x: x.rows_at(inputs, row, rows),
                    low: my_low,
                    y: my_y,
                });
                row += rows;
            }
        }
    }

    /// Computes all pieces.
    pub(super) fn run(mut self, threads: &Threads, compute: Compute) {
        let (isa, parallel) = (threads.isa(), self.multiply_adds >= PARALLEL_MIN);
        for_each_mut(threads, parallel, &mut self.pieces, |_, piece| {
            let Piece {
                pair,
                scale,
                x,
                low,
                y,
            } = piece;
            gemm_serial(isa, *x, &pair.a, low, Store::Set);
            let mut pairs = Vec::new();
            let low = match compute {
                Compute::F32 => Input::F32(low),
                Compute::Bf16 => round_here(isa, low, pair.b.k(), &mut pairs),
            };
            gemm_serial(isa, low, &pair.b, y, Store::AddScaled(*scale));
        });
    }
}

/// What the adapters of a batch add to one linear layer of very many outputs, which the threads
/// divide: to the bit what [`Pieces`] compute, in two parallel regions for each adapter. `low`
/// becomes `x A^T` of the rows with an adapter on it.
pub(super) fn add_wide(
    threads: &Threads,
    compute: Compute,
    runs: &[AdapterRun<'_>],
    site: Site,
    x: Input<'_>,
    y: &mut [f32],
    buffers: &mut Wide,
) {
    let adapted = |run: &AdapterRun<'_>| {
        run.adapter
            .pair(site)
            .map(|pair| run.rows.len() * pair.a.n())
    };
    let Wide { low, pairs } = buffers;
    let mut low = sized(low, runs.iter().filter_map(adapted).sum());
    for AdapterRun { rows, adapter } in runs {
        let Some(pair) = adapter.pair(site) else {
            continue;
        };
        let (rank, inputs, outputs) = (pair.a.n(), pair.a.k(), pair.b.n());
        let (mine, rest) = low.split_at_mut(rows.len() * rank);
        low = rest;
        let x = x.rows_at(inputs, rows.start, rows.len());
        gemm(threads, x, &pair.a, mine, Store::Set);
        let mine = input(compute, threads, mine, rank, pairs);
        let y = &mut y[rows.start * outputs..rows.end * outputs];
        gemm(threads, mine, &pair.b, y, Store::AddScaled(adapter.scale()));
    }
}

/// Buffers of [`add_wide`].
#[derive(Debug, Default)]
pub(crate) struct Wide {
    /// `x A^T`, of the adapters' rows one after the other.
    pub(crate) low: Vec<f32>,
    /// The same rounded.
    pairs: Vec<u32>,
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
