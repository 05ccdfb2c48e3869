//! The matrix product `y[m, n] = x[m, k] * W[n, k]^T`.
//!
//! A register tile of `R` rows and `B` panels of sixteen columns walks along k once: every
//! accumulator lane is the fused multiply-add chain of one output. When k is cut into blocks
//! (so that a panel group stays in the second-level cache while all rows pass it), the chain
//! is stored in `y` and taken up again: storing an f32 does not change it.
//!
//! What a step along k is depends on the operands: see [`super::chains`].

use std::array::from_fn;

use super::bf16::Input;
use super::chains::{Operands, Paired, Single, Widened};
use super::pack::{PackedWeights, Panels};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::threads::Threads;
use super::tiles::{Tile, TileGrid};

/// What happens with a finished chain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Store {
    /// `y = chain`.
    Set,
    /// The chain starts at `y` instead of zero.
    Continue,
    /// `y = fma(scale, chain, y)`.
    AddScaled(f32),
}

/// One output of a group of products that share `x`.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub weights: &'a PackedWeights,
    /// Row-major `[m, n]`.
    pub y: &'a mut [f32],
    /// What to do with it.
    pub store: Store,
}

/// Values of k that one pass covers. A panel group of 64 columns is then 128 KiB of f32.
const K_BLOCK: usize = 512;
/// Rows of one chunk: enough to use a panel group many times, few enough to divide well.
const ROW_BLOCK: usize = 96;
/// Widest panel group.
const GROUP_MAX: usize = 8;
/// Multiply-adds below which a product stays on one thread: about 4 µs of work, a few times
/// what handing it to a spinning thread costs.
const PARALLEL_MIN: usize = 150_000;

/// `y[m, n] (+)= x[m, k] * W[n, k]^T`.
///
/// # Panics
/// When the lengths of `x` and `y` do not fit the weights.
pub fn gemm<'a>(
    threads: &Threads,
    x: impl Into<Input<'a>>,
    weights: &PackedWeights,
    y: &mut [f32],
    store: Store,
) {
    gemm_group(threads, x, vec![Product { weights, y, store }]);
}

/// The same on the calling thread: for small products that are many enough to divide themselves.
///
/// # Panics
/// As [`gemm`].
pub(crate) fn gemm_serial(
    isa: Isa,
    x: Input<'_>,
    weights: &PackedWeights,
    y: &mut [f32],
    store: Store,
) {
    let (m, n) = (x.rows(weights.k()), weights.n());
    if m > 0 {
        let mut grid = TileGrid::default();
        grid.push(y, [m, n], [m, n]);
        grid.run_here(|tile| run_tile(isa, x, weights, store, tile));
    }
}

/// Several products of the same `x[m, k]` in one parallel region.
///
/// # Panics
/// When the lengths of `x` and the outputs do not fit the weights, or `x` is rounded and the
/// weights are not.
pub fn gemm_group<'a>(threads: &Threads, x: impl Into<Input<'a>>, products: Vec<Product<'_>>) {
    let Some(k) = products.first().map(|p| p.weights.k()) else {
        return;
    };
    let x = x.into();
    let m = x.rows(k);
    if m == 0 {
        return;
    }
    let n_sum: usize = products.iter().map(|p| p.weights.n()).sum();
    let row_block = m.min(ROW_BLOCK);
    let col_block = column_block(n_sum, m.div_ceil(row_block), threads.count());
    let mut grid = TileGrid::default();
    let mut inputs = Vec::with_capacity(products.len());
    for Product { weights, y, store } in products {
        assert_eq!(k, weights.k(), "the products share x");
        grid.push(y, [m, weights.n()], [row_block, col_block]);
        inputs.push((weights, store));
    }
    let isa = threads.isa();
    grid.run(threads, m * k * n_sum >= PARALLEL_MIN, |tile| {
        let (weights, store) = inputs[tile.part];
        run_tile(isa, x, weights, store, tile);
    });
}

/// Columns of a chunk: about three chunks per thread, in whole panel groups.
fn column_block(n: usize, row_blocks: usize, threads: usize) -> usize {
    let group = 4 * LANES;
    let wanted = (3 * threads).div_ceil(row_blocks);
    n.div_ceil(wanted).next_multiple_of(group)
}

fn run_tile(isa: Isa, x: Input<'_>, weights: &PackedWeights, store: Store, tile: Tile<'_>) {
    match (x, weights.panels()) {
        (Input::F32(x), Panels::F32(panels)) => {
            isa.dispatch(TileProduct::<Single>::new(
                x,
                panels,
                weights.k(),
                store,
                tile,
            ));
        }
        (Input::F32(x), Panels::Bf16(panels)) => {
            isa.dispatch(TileProduct::<Widened>::new(
                x,
                panels,
                weights.k(),
                store,
                tile,
            ));
        }
        (Input::Bf16(x), Panels::Bf16(panels)) => {
            isa.dispatch(TileProduct::<Paired>::new(
                x,
                panels,
                weights.k(),
                store,
                tile,
            ));
        }
        (Input::Bf16(_), Panels::F32(_)) => {
            unreachable!("a rounded input meets weights that are not")
        }
    }
}

struct TileProduct<'a, O: Operands> {
    x: &'a [O::X],
    panels: &'a [[O::W; LANES]],
    /// Elements of a row of `x`.
    width: usize,
    /// Rows of a panel.
    depth: usize,
    store: Store,
    tile: Tile<'a>,
}

impl<'a, O: Operands> TileProduct<'a, O> {
    fn new(
        x: &'a [O::X],
        panels: &'a [[O::W; LANES]],
        k: usize,
        store: Store,
        tile: Tile<'a>,
    ) -> Self {
        Self {
            x,
            panels,
            width: O::width(k),
            depth: O::depth(k),
            store,
            tile,
        }
    }
}

impl<O: Operands> Kernel for TileProduct<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let panels = self.tile.cols.start / LANES..self.tile.cols.end.div_ceil(LANES);
        let widest = widest_group::<S>(self.tile.rows.len());
        let mut panel = panels.start;
        while panel < panels.end {
            let mut group = widest;
            while group > panels.end - panel {
                group /= 2;
            }
            if group == 8 && const { 8 <= S::ACCUMULATORS } {
                self.group::<S, 8>(s, panel);
            } else if group == 4 {
                self.group::<S, 4>(s, panel);
            } else if group == 2 {
                self.group::<S, 2>(s, panel);
            } else {
                self.group::<S, 1>(s, panel);
            }
            panel += group;
        }
    }
}

/// The widest group of panels whose accumulators for this many rows fit in registers. Few rows
/// need wide groups: a chain takes four cycles per step, so eight must be under way at once.
#[inline(always)]
fn widest_group<S: Simd>(rows: usize) -> usize {
    let mut group = GROUP_MAX;
    while group > 1 && group * rows.min(6) > S::ACCUMULATORS {
        group /= 2;
    }
    group
}

impl<O: Operands> TileProduct<'_, O> {
    /// All rows of the tile for `B` panels.
    #[inline(always)]
    fn group<S: Simd, const B: usize>(&mut self, s: S, panel: usize) {
        // With one register tile of rows nothing is gained by visiting k in blocks, and
        // `AddScaled` needs the whole chain at once.
        let whole = self.tile.rows.len() <= 12 || matches!(self.store, Store::AddScaled(_));
        let block = if whole { self.depth } else { O::depth(K_BLOCK) };
        let mut k0 = 0;
        while k0 < self.depth {
            let k1 = self.depth.min(k0 + block);
            let store = if k0 == 0 { self.store } else { Store::Continue };
            let w: [&[[O::W; LANES]]; B] =
                from_fn(|b| &self.panels[(panel + b) * self.depth..][k0..k1]);
            let mut row = self.tile.rows.start;
            while row < self.tile.rows.end {
                let left = self.tile.rows.end - row;
                let fit = left.min(S::ACCUMULATORS / B).max(1);
                let at = (row, panel, k0);
                // Tiles that do not fit this instruction set are not even compiled.
                row += if fit >= 12 && const { 12 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 12>(s, w, at, store)
                } else if fit >= 8 && const { 8 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 8>(s, w, at, store)
                } else if fit >= 6 && const { 6 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 6>(s, w, at, store)
                } else if fit >= 4 && const { 4 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 4>(s, w, at, store)
                } else if fit >= 3 && const { 3 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 3>(s, w, at, store)
                } else if fit >= 2 && const { 2 * B <= S::ACCUMULATORS } {
                    self.rows::<S, B, 2>(s, w, at, store)
                } else {
                    self.rows::<S, B, 1>(s, w, at, store)
                };
            }
            k0 = k1;
        }
    }

    /// One register tile: `R` rows from `row`, `B` panels, k from `k0`. Returns `R`.
    #[inline(always)]
    fn rows<S: Simd, const B: usize, const R: usize>(
        &mut self,
        s: S,
        w: [&[[O::W; LANES]]; B],
        (row, panel, k0): (usize, usize, usize),
        store: Store,
    ) -> usize {
        let columns = O::columns(k0..k0 + w[0].len(), self.width);
        let x: [&[O::X]; R] =
            from_fn(|r| &self.x[(row + r) * self.width..][..self.width][columns.clone()]);
        let col = panel * LANES - self.tile.cols.start;
        let mut acc = [[s.splat(0.0); B]; R];
        if store == Store::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                let y = &self.tile.row(row + r)[col..];
                for (b, acc) in acc.iter_mut().enumerate() {
                    *acc = load_part(s, &y[b * LANES..]);
                }
            }
        }
        let acc = O::chains(s, x, w, acc);
        for (r, acc) in acc.into_iter().enumerate() {
            let y = &mut self.tile.row(row + r)[col..];
            for (b, mut v) in acc.into_iter().enumerate() {
                let y = &mut y[b * LANES..];
                if let Store::AddScaled(scale) = store {
                    v = s.fma(s.splat(scale), v, load_part(s, y));
                }
                store_part(s, y, v);
            }
        }
        R
    }
}

/// Up to sixteen values; missing ones are zero.
#[inline(always)]
pub(crate) fn load_part<S: Simd>(s: S, from: &[f32]) -> S::V {
    if let Some(full) = from.first_chunk::<LANES>() {
        return s.load(full);
    }
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    s.load(&lanes)
}

/// Up to sixteen values; surplus lanes are dropped.
#[inline(always)]
pub(crate) fn store_part<S: Simd>(s: S, to: &mut [f32], v: S::V) {
    if let Some(full) = to.first_chunk_mut::<LANES>() {
        s.store(full, v);
        return;
    }
    let mut lanes = [0.0; LANES];
    s.store(&mut lanes, v);
    let len = to.len();
    to.copy_from_slice(&lanes[..len]);
}
