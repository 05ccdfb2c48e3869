//! Backward of one linear layer with frozen weights and an adapter.
//!
//! `y = W x + s B (A x)` (Hu et al. 2021, arXiv 2106.09685, eq. 3), for `T` rows, with the
//! forward's `h = x A^T`:
//!
//! ```text
//! g  = s dy B            [T, r]
//! dA += g^T x            [r, in]
//! dB += dy^T (s h)       [out, r]
//! dx (+)= dy W + g A     [T, in]
//! ```

use super::arena::Place;
use super::matmul::{Left, Packing, Sizes, Start, matmul};
use super::ops::scale;
use crate::adapter::LoraPair;
use crate::buffers::{copy, sized};
use crate::config::Compute;
use crate::cpu::bf16::input;
use crate::cpu::gemm::{Store, gemm};
use crate::cpu::pack::PackedWeights;
use crate::cpu::threads::Threads;

/// An adapter on a layer, and where its gradients go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Low<'a> {
    /// The factors that the forward read.
    pub(super) pair: &'a LoraPair,
    /// Where they lie in the arena.
    pub(super) place: &'a Place,
    /// `x A^T`, `[T, rank]`.
    pub(super) h: &'a [f32],
    pub(super) rank: usize,
    pub(super) scale: f32,
}

/// What the forward left behind for one layer, and the derivative by its result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear<'a> {
    /// The frozen weights, transposed: a product with them is `dy W`.
    pub(super) weights: &'a PackedWeights,
    /// The layer's input, `[T, in]`.
    pub(super) x: &'a [f32],
    /// `[T, out]`
    pub(super) dy: &'a [f32],
    pub(super) low: Option<Low<'a>>,
    /// The number format of `dy W`; the adapter's own products are f32 in any case.
    pub(super) compute: Compute,
}

/// Buffers that every layer uses again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    packing: Packing,
    pairs: Vec<u32>,
    g: Vec<f32>,
    scaled: Vec<f32>,
}

impl Linear<'_> {
    /// Adds the adapter's gradients to `grads` (the arena), and, if it is wanted, writes the
    /// derivative by the input to `dx`, starting there at 0 or at what it holds.
    pub(super) fn backward(
        self,
        threads: &Threads,
        scratch: &mut Scratch,
        grads: &mut [f32],
        dx: Option<(&mut [f32], Start)>,
    ) {
        let Self {
            weights,
            x,
            dy,
            low,
            compute,
        } = self;
        if let Some(low) = low {
            low.gradients(threads, scratch, grads, x, dy);
        }
        let Some((dx, start)) = dx else { return };
        let store = match start {
            Start::Zero => Store::Set,
            Start::Old => Store::Continue,
        };
        let dy = input(compute, threads, dy, weights.k(), &mut scratch.pairs);
        gemm(threads, dy, weights, dx, store);
        if let Some(Low { pair, rank, .. }) = low {
            let (g, packing) = (Left::Rows(&scratch.g), &mut scratch.packing);
            let m = scratch.g.len() / rank;
            let sizes = Sizes {
                m,
                k: rank,
                n: pair.a.len() / rank,
            };
            matmul(threads.isa(), packing, Start::Old, dx, g, &pair.a, sizes);
        }
    }
}

impl Low<'_> {
    /// Leaves `g` in the scratch.
    fn gradients(
        self,
        threads: &Threads,
        scratch: &mut Scratch,
        grads: &mut [f32],
        x: &[f32],
        dy: &[f32],
    ) {
        let Self {
            pair,
            place,
            h,
            rank,
            scale: factor,
        } = self;
        let isa = threads.isa();
        let Scratch {
            packing, g, scaled, ..
        } = scratch;
        let (inputs, outputs) = (pair.a.len() / rank, pair.b.len() / rank);
        let rows = x.len() / inputs;
        debug_assert_eq!(dy.len(), rows * outputs, "x and dy have the same rows");

        let g = sized(g, rows * rank);
        let sizes = Sizes {
            m: rows,
            k: outputs,
            n: rank,
        };
        matmul(isa, packing, Start::Zero, g, Left::Rows(dy), &pair.b, sizes);
        scale(isa, g, factor);

        let da = &mut grads[place.a.clone()];
        let sizes = Sizes {
            m: rank,
            k: rows,
            n: inputs,
        };
        matmul(isa, packing, Start::Old, da, Left::Columns(g), x, sizes);

        copy(scaled, h);
        scale(isa, scaled, factor);
        let db = &mut grads[place.b.clone()];
        let sizes = Sizes {
            m: outputs,
            k: rows,
            n: rank,
        };
        matmul(
            isa,
            packing,
            Start::Old,
            db,
            Left::Columns(dy),
            scaled,
            sizes,
        );
    }
}
