//! Rotary positions, half-split: `(a, b) -> (a cos - b sin, b cos + a sin)` where a and b are
//! the two halves of a head.

use std::sync::OnceLock;

use super::gemm::{load_part, store_part};
use super::ops::NormRowInPlace;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::threads::Threads;
use super::tiles::TileGrid;
use crate::config::{RopeConfig, RopeScaling};

/// Positions that are tabled together, the first time one of them is used.
const BLOCK: usize = 256;

/// Cosines and sines of all positions: `angle = position * theta^(-2 i / head_dim)` but for the
/// scaling, computed in f64 and rounded once.
#[derive(Debug)]
pub struct RopeTable {
    half: usize,
    frequencies: Vec<f64>,
    blocks: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    /// A table for heads of `head_dim` (even) and `positions` positions.
    #[must_use]
    pub fn new(head_dim: usize, rope: RopeConfig, positions: usize) -> Self {
        let half = head_dim / 2;
        let plain = |i: usize| rope.theta.powf(-((2 * i) as f64) / head_dim as f64);
        let frequency = |i: usize| scaled(plain(i), rope.scaling);
        Self {
            half,
            frequencies: (0..half).map(frequency).collect(),
            blocks: (0..positions.div_ceil(BLOCK))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// Cosines and sines of one position, `head_dim / 2` each.
    ///
    /// # Panics
    /// When the position is not in the table.
    #[must_use]
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let block = self.blocks[position / BLOCK].get_or_init(|| self.block(position / BLOCK));
        block[position % BLOCK * 2 * self.half..][..2 * self.half].split_at(self.half)
    }

    fn block(&self, index: usize) -> Box<[f32]> {
        let mut block = Vec::with_capacity(BLOCK * 2 * self.half);
        for position in index * BLOCK..(index + 1) * BLOCK {
            let angle = |f: &f64| position as f64 * f;
            block.extend(self.frequencies.iter().map(|f| angle(f).cos() as f32));
            block.extend(self.frequencies.iter().map(|f| angle(f).sin() as f32));
        }
        block.into_boxed_slice()
    }
}

/// A frequency after its scaling.
fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        } => {
            // How many wavelengths the original context held.
            let turns = original * frequency / std::f64::consts::TAU;
            if turns > high_freq_factor {
                frequency
            } else if turns < low_freq_factor {
                frequency / factor
            } else {
                let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
        }
    }
}

/// Norms (when `norm` is given) and rotates every head of every row of `x[rows, heads * D]` in
/// place; row i is at `positions[i]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn norm_and_rotate(
    threads: &Threads,
    x: &mut [f32],
    norm: Option<(&[f32], f32)>,
    table: &RopeTable,
    positions: &[u32],
) {
    let rows = positions.len();
    let width = x.len() / rows.max(1);
    let isa = threads.isa();
    // Elements below which this stays on one thread, about 4 µs of work.
    let parallel = x.len() >= 8192;
    let mut grid = TileGrid::default();
    grid.push(x, [rows, width], [16, width.max(1)]);
    grid.run(threads, parallel, |mut tile| {
        for row in tile.rows.clone() {
            let (cos, sin) = table.at(positions[row] as usize);
            for head in tile.row(row).chunks_exact_mut(2 * table.half) {
                norm_and_rotate_head(isa, head, norm, cos, sin);
            }
        }
    });
}

fn norm_and_rotate_head(
    isa: Isa,
    head: &mut [f32],
    norm: Option<(&[f32], f32)>,
    cos: &[f32],
    sin: &[f32],
) {
    if let Some((weight, eps)) = norm {
        isa.dispatch(NormRowInPlace {
            x: head,
            weight,
            eps,
        });
    }
    isa.dispatch(Rotate { head, cos, sin });
}

struct Rotate<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (first, second) = self.head.split_at_mut(self.cos.len());
        let halves = first.chunks_mut(LANES).zip(second.chunks_mut(LANES));
        for ((a, b), (cos, sin)) in halves.zip(self.cos.chunks(LANES).zip(self.sin.chunks(LANES))) {
            let (va, vb) = (load_part(s, a), load_part(s, b));
            let (cos, sin) = (load_part(s, cos), load_part(s, sin));
            // a cos - b sin and b cos + a sin, one product rounded, one fused.
            let minus = s.sub(s.splat(0.0), s.mul(vb, sin));
            store_part(s, a, s.fma(va, cos, minus));
            store_part(s, b, s.fma(vb, cos, s.mul(va, sin)));
        }
    }
}
