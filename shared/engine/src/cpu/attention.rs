//! Causal grouped-query attention over cached keys and values.
//!
//! For a query q at position p, per head: `s[j] = scale * chain over d of q[d] k[j][d]` for the
//! keys j = 0..=p (or, with a window of w, the last w of them); `m = max s`;
//! `e[j] = exp(s[j] - m)`; `z` = sum of e in sixteen lanes by `j % 16`, then the fixed tree;
//! `out = (chain over ascending j of e[j] v[j]) * (1 / z)`.
//! Nothing here depends on which other queries are computed at the same time: a tile of
//! queries shares the reading of keys and values, never a sum.

use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;

use super::chains::{Operands, Single};
use super::gemm::store_part;
use super::math::exp;
use super::simd::{Kernel, LANES, Simd, max_lanes, sum_lanes};
use super::threads::Threads;
use super::tiles::{Tile, TileGrid};
use crate::buffers::sized;
use crate::kv::LayerCache;

/// Rows of one chunk.
const ROW_BLOCK: usize = 16;
/// Multiply-adds below which attention stays on one thread, about 4 µs of work.
const PARALLEL_MIN: usize = 100_000;

/// Most pairs of (row, head) that share the reading of keys and values.
const PAIRS_MAX: usize = 6;

/// Sizes of the heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
    /// Factor of the scores, usually `dim^-1/2`.
    pub scale: f32,
    /// A query sees this many keys, its own included; `None`: all before it.
    pub window: Option<usize>,
}

impl Heads {
    /// The first key that a query at a position sees.
    #[inline(always)]
    pub(crate) fn first_key(self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Where a row of queries belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPlace {
    /// Index of its sequence's cache.
    pub sequence: u32,
    /// Its position; it sees keys up to this one.
    pub position: u32,
}

/// `out[rows, queries * dim]` from rotated `q` of the same shape. Rows of one sequence are
/// next to each other with ascending positions, and their keys and values are in the cache.
///
/// # Panics
/// When the lengths do not fit.
pub fn attention(
    threads: &Threads,
    heads: Heads,
    q: &[f32],
    places: &[RowPlace],
    caches: &[&LayerCache],
    out: &mut [f32],
) {
    let width = heads.queries * heads.dim;
    assert_eq!(
        q.len(),
        places.len() * width,
        "q is [{}, {width}]",
        places.len()
    );
    let group = heads.queries / heads.kv;
    let isa = threads.isa();
    let keys: usize = places.iter().map(|place| place.position as usize + 1).sum();
    let mut grid = TileGrid::default();
    grid.push(out, [places.len(), width], [ROW_BLOCK, group * heads.dim]);
    grid.run(threads, keys * width * 2 >= PARALLEL_MIN, |mut tile| {
        SCORES.with_borrow_mut(|scores| {
            let mut row = tile.rows.start;
            while row < tile.rows.end {
                let place = places[row];
                let same = |p: &&RowPlace| p.sequence == place.sequence;
                let rows = places[row..tile.rows.end].iter().take_while(same).count();
                let cache = caches[place.sequence as usize];
                let run = Run {
                    heads,
                    q,
                    places,
                    cache,
                    row,
                    rows,
                };
                isa.dispatch(Attend {
                    run,
                    tile: &mut tile,
                    scores,
                });
                row += rows;
            }
        });
    });
}

thread_local! {
    /// Scores of the queries that a thread is working on.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of the scores that one thread works on, for a sequence of so many positions.
pub(crate) const fn score_bytes(positions: usize) -> usize {
    PAIRS_MAX * positions.next_multiple_of(LANES) * size_of::<f32>()
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy)]
struct Run<'a> {
    heads: Heads,
    q: &'a [f32],
    places: &'a [RowPlace],
    cache: &'a LayerCache,
    row: usize,
    rows: usize,
}

struct Attend<'a, 'b> {
    run: Run<'a>,
    tile: &'a mut Tile<'b>,
    scores: &'a mut Vec<f32>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // A register tile holds pairs of (row, head of the group), row by row.
        let pairs = self.run.rows * (self.run.heads.queries / self.run.heads.kv);
        let mut pair = 0;
        while pair < pairs {
            let left = pairs - pair;
            pair += if left >= PAIRS_MAX && const { PAIRS_MAX <= S::ACCUMULATORS } {
                self.pairs::<S, PAIRS_MAX>(s, pair)
            } else if left >= 4 {
                self.pairs::<S, 4>(s, pair)
            } else if left >= 3 {
                self.pairs::<S, 3>(s, pair)
            } else if left == 2 {
                self.pairs::<S, 2>(s, pair)
            } else {
                self.pairs::<S, 1>(s, pair)
            };
        }
    }
}

impl Attend<'_, '_> {
    /// `R` pairs from `first`. Returns `R`.
    #[inline(always)]
    fn pairs<S: Simd, const R: usize>(&mut self, s: S, first: usize) -> usize {
        let Run {
            heads,
            q,
            places,
            cache,
            row,
            ..
        } = self.run;
        let group = heads.queries / heads.kv;
        let kv_head = self.tile.cols.start / (group * heads.dim);
        let row_and_head = |r: usize| (row + (first + r) / group, (first + r) % group);
        let queries: [&[f32]; R] = from_fn(|r| {
            let (row, head) = row_and_head(r);
            &q[(row * heads.queries + kv_head * group + head) * heads.dim..][..heads.dim]
        });
        let limits: [usize; R] = from_fn(|r| places[row_and_head(r).0].position as usize + 1);
        let starts: [usize; R] = from_fn(|r| heads.first_key(limits[r] - 1));
        // Positions ascend, so the first query sees the earliest key. Whole blocks before it add
        // an exact zero to nothing and are left out.
        let base = starts[0] / LANES * LANES;
        let stride = limits[R - 1].next_multiple_of(LANES) - base;
        if self.scores.len() < R * stride {
            sized(self.scores, R * stride);
        }
        let scores = &mut self.scores[..R * stride];
        let keys = Keys {
            cache,
            kv_head,
            base,
        };
        score(s, queries, keys, heads.scale, scores);
        let mut inverse = [0.0f32; R];
        for r in 0..R {
            let seen = starts[r] - base..limits[r] - base;
            inverse[r] = 1.0 / exp_and_sum(s, &mut scores[r * stride..][..stride], seen);
        }
        let values = Values {
            keys,
            scores,
            limits,
        };
        let panels = cache.value_panels();
        let mut panel = 0;
        while panel < panels {
            let left = panels - panel;
            let at = Place {
                row,
                first,
                group,
                panel,
                dim: heads.dim,
            };
            panel += if left >= 4 && const { 4 * R <= S::ACCUMULATORS } {
                values.write_sums::<S, 4>(s, inverse, at, self.tile)
            } else if left >= 2 && const { 2 * R <= S::ACCUMULATORS } {
                values.write_sums::<S, 2>(s, inverse, at, self.tile)
            } else {
                values.write_sums::<S, 1>(s, inverse, at, self.tile)
            };
        }
        R
    }
}

/// Keys and values of one head, from a block on.
#[derive(Clone, Copy)]
struct Keys<'a> {
    cache: &'a LayerCache,
    kv_head: usize,
    /// Position of the first key that has a score; a multiple of [`LANES`].
    base: usize,
}

/// `scores[r, j] = scale * q[r] . k[base + j]` for all keys of the blocks that `scores` covers.
#[inline(always)]
fn score<S: Simd, const R: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: Keys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    let stride = scores.len() / R;
    let blocks = stride / LANES;
    let mut block = 0;
    while block < blocks {
        let left = blocks - block;
        let to = &mut scores[block * LANES..];
        block += if left >= 4 && const { 4 * R <= S::ACCUMULATORS } {
            score_blocks::<S, R, 4>(s, queries, (keys, block), scale, to, stride)
        } else if left >= 2 && const { 2 * R <= S::ACCUMULATORS } {
            score_blocks::<S, R, 2>(s, queries, (keys, block), scale, to, stride)
        } else {
            score_blocks::<S, R, 1>(s, queries, (keys, block), scale, to, stride)
        };
    }
}

/// Scores of `B` blocks of keys. Returns `B`.
#[inline(always)]
fn score_blocks<S: Simd, const R: usize, const B: usize>(
    s: S,
    queries: [&[f32]; R],
    (keys, block): (Keys<'_>, usize),
    scale: f32,
    to: &mut [f32],
    stride: usize,
) -> usize {
    let first = keys.base / LANES + block;
    let keys: [&[[f32; LANES]]; B] = from_fn(|b| keys.cache.key_panel(first + b, keys.kv_head));
    let acc = Single::chains(s, queries, keys, [[s.splat(0.0); B]; R]);
    let scale = s.splat(scale);
    for r in 0..R {
        for b in 0..B {
            store_part(
                s,
                &mut to[r * stride + b * LANES..][..LANES],
                s.mul(acc[r][b], scale),
            );
        }
    }
    B
}

/// Replaces the scores of one query by `exp(score - max)`, zero where it does not see the key,
/// and returns their sum.
#[inline(always)]
fn exp_and_sum<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>) -> f32 {
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let blocks = scores.as_chunks_mut::<LANES>().0;
    let mut max = s.splat(f32::NEG_INFINITY);
    for block in &*blocks {
        max = s.max(s.load(block), max);
    }
    let max = s.splat(max_lanes(s, max));
    let mut sum = s.splat(0.0);
    for block in blocks {
        let weight = exp(s, s.sub(s.load(block), max));
        sum = s.add(sum, weight);
        s.store(block, weight);
    }
    sum_lanes(s, sum)
}

/// What a weighted sum of values needs.
struct Values<'a, const R: usize> {
    keys: Keys<'a>,
    /// `exp(score - max)`, `[R, keys from the base, rounded up]`.
    scores: &'a [f32],
    limits: [usize; R],
}

/// Where a weighted sum goes.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    first: usize,
    group: usize,
    panel: usize,
    dim: usize,
}

impl<const R: usize> Values<'_, R> {
    /// `out[r] = (sum over j < limits[r] of weight[r, j] * v[j]) * inverse[r]` for `B` panels.
    /// Keys that a query does not see have an exact zero for a weight. Returns `B`.
    #[inline(always)]
    fn write_sums<S: Simd, const B: usize>(
        &self,
        s: S,
        inverse: [f32; R],
        at: Place,
        tile: &mut Tile<'_>,
    ) -> usize {
        let (stride, base) = (self.scores.len() / R, self.keys.base);
        // Keys that every query sees are read once for all; the few behind them (at most one
        // per row of the tile) continue each query's chain on its own.
        let common = self.limits[0];
        let mut acc = [[s.splat(0.0); B]; R];
        let mut key = base;
        while key < common {
            let end = common.min(key + LANES);
            let weights: [&[f32]; R] =
                from_fn(|r| &self.scores[r * stride..][key - base..end - base]);
            acc = Single::chains(s, weights, self.panels::<B>(at.panel, key, end), acc);
            key = end;
        }
        for r in 0..R {
            let mut chain = [acc[r]];
            let mut key = common;
            while key < self.limits[r] {
                let end = self.limits[r].min((key / LANES + 1) * LANES);
                let weights = [&self.scores[r * stride..][key - base..end - base]];
                chain = Single::chains(s, weights, self.panels::<B>(at.panel, key, end), chain);
                key = end;
            }
            let (row, head) = (
                at.row + (at.first + r) / at.group,
                (at.first + r) % at.group,
            );
            let out = &mut tile.row(row)[head * at.dim..][..at.dim][at.panel * LANES..];
            for (b, out) in out.chunks_mut(LANES).take(B).enumerate() {
                store_part(s, out, s.mul(chain[0][b], s.splat(inverse[r])));
            }
        }
        B
    }

    /// Values of keys `key..end`, which lie in one block.
    #[inline(always)]
    fn panels<const B: usize>(&self, panel: usize, key: usize, end: usize) -> [&[[f32; LANES]]; B] {
        let (block, from) = (key / LANES, key % LANES);
        let Keys { cache, kv_head, .. } = self.keys;
        from_fn(|b| &cache.value_panel(block, kv_head, panel + b)[from..from + end - key])
    }
}
