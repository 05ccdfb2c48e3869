//! Row-wise operators: RMS norm, gated SiLU, residual sum.

use super::gemm::{load_part, store_part};
use super::math::{gelu_sigmoid, sigmoid};
use super::simd::{Kernel, LANES, Simd, sum_lanes};
use super::threads::Threads;
use super::tiles::TileGrid;
use crate::config::Activation;

/// Rows of one chunk.
const ROW_BLOCK: usize = 32;
/// Elements below which an operator stays on one thread, about 4 µs of work.
const PARALLEL_MIN: usize = 16_384;

/// `out = x / sqrt(mean(x^2) + eps) * weight`, for each row of `x[rows, weight.len()]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let rows = x.len() / width;
    assert_eq!(x.len(), rows * width, "x is [{rows}, {width}]");
    let isa = threads.isa();
    let mut grid = TileGrid::default();
    grid.push(out, [rows, width], [ROW_BLOCK, width]);
    grid.run(threads, x.len() >= PARALLEL_MIN, |mut tile| {
        for row in tile.rows.clone() {
            let x = &x[row * width..][..width];
            isa.dispatch(NormRow {
                x,
                weight,
                eps,
                out: tile.row(row),
            });
        }
    });
}

/// `inverse root mean square` of one row: `1 / sqrt(mean(x^2) + eps)`, as [`rms_norm`] has it.
#[must_use]
pub fn inverse_rms(threads: &Threads, x: &[f32], eps: f32) -> f32 {
    threads.isa().dispatch(InverseRms { x, eps })
}

/// `out = activation(gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gate_mul(
    threads: &Threads,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) {
    elementwise(threads, gate, up, out, Pairwise::GateMul(activation));
}

/// `out = a + b`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add(threads: &Threads, a: &[f32], b: &[f32], out: &mut [f32]) {
    elementwise(threads, a, b, out, Pairwise::Add);
}

/// `x = x + y`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(threads: &Threads, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "equal lengths");
    let isa = threads.isa();
    let len = x.len();
    let mut grid = TileGrid::default();
    grid.push(x, [1, len], [1, len.div_ceil(threads.count()).max(1)]);
    grid.run(threads, len >= PARALLEL_MIN, |mut tile| {
        let y = &y[tile.cols.clone()];
        isa.dispatch(AddAssign { x: tile.row(0), y });
    });
}

fn elementwise(threads: &Threads, a: &[f32], b: &[f32], out: &mut [f32], op: Pairwise) {
    let len = out.len();
    assert!(a.len() == len && b.len() == len, "equal lengths");
    let isa = threads.isa();
    let mut grid = TileGrid::default();
    grid.push(out, [1, len], [1, len.div_ceil(2 * threads.count()).max(1)]);
    grid.run(threads, len >= PARALLEL_MIN, |mut tile| {
        let (a, b) = (&a[tile.cols.clone()], &b[tile.cols.clone()]);
        isa.dispatch(PairwiseRow {
            op,
            a,
            b,
            out: tile.row(0),
        });
    });
}

pub(crate) struct NormRow<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inverse = s.splat(
            InverseRms {
                x: self.x,
                eps: self.eps,
            }
            .run(s),
        );
        let inputs = self.x.chunks(LANES).zip(self.weight.chunks(LANES));
        for ((x, w), out) in inputs.zip(self.out.chunks_mut(LANES)) {
            let v = s.mul(s.mul(load_part(s, x), inverse), load_part(s, w));
            store_part(s, out, v);
        }
    }
}

/// [`NormRow`] in place.
pub(crate) struct NormRowInPlace<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

impl Kernel for NormRowInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inverse = s.splat(
            InverseRms {
                x: self.x,
                eps: self.eps,
            }
            .run(s),
        );
        for (x, w) in self.x.chunks_mut(LANES).zip(self.weight.chunks(LANES)) {
            let v = s.mul(s.mul(load_part(s, x), inverse), load_part(s, w));
            store_part(s, x, v);
        }
    }
}

struct InverseRms<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Kernel for InverseRms<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        let mut squares = s.splat(0.0);
        for chunk in chunks {
            let v = s.load(chunk);
            squares = s.fma(v, v, squares);
        }
        if !rest.is_empty() {
            let v = load_part(s, rest);
            squares = s.fma(v, v, squares);
        }
        let mean = sum_lanes(s, squares) / self.x.len() as f32;
        1.0 / (mean + self.eps).sqrt()
    }
}

#[derive(Clone, Copy)]
enum Pairwise {
    GateMul(Activation),
    Add,
}

struct PairwiseRow<'a> {
    op: Pairwise,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for PairwiseRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.a.chunks(LANES).zip(self.b.chunks(LANES));
        for ((a, b), out) in inputs.zip(self.out.chunks_mut(LANES)) {
            let (a, b) = (load_part(s, a), load_part(s, b));
            let v = match self.op {
                Pairwise::GateMul(Activation::Silu) => s.mul(s.mul(a, sigmoid(s, a)), b),
                Pairwise::GateMul(Activation::GeluTanh) => s.mul(gelu(s, a), b),
                Pairwise::Add => s.add(a, b),
            };
            store_part(s, out, v);
        }
    }
}

/// `x / 2 (1 + tanh(u)) = x sigmoid(2 u)`.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    s.mul(x, gelu_sigmoid(s, x))
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_mut(LANES).zip(self.y.chunks(LANES)) {
            let v = s.add(load_part(s, x), load_part(s, y));
            store_part(s, x, v);
        }
    }
}
