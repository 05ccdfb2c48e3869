//! Backward of causal grouped-query attention over one sequence of a micro-batch.
//!
//! With `S = scale Q K^T` where a query sees a key, `P = softmax(S)`, `O = P V` (Vaswani et al. 2017,
//! arXiv 1706.03762, eq. 1; derivatives as in Dao et al. 2022, arXiv 2205.14135, appendix B.2):
//!
//! ```text
//! dV = P^T dO      dP = dO V^T      D_i = dO_i . O_i
//! dS = P * (dP - D)      dQ = scale dS K      dK = scale dS^T Q
//! ```
//!
//! `P` is computed again from `Q` and `K`: keeping it would cost `[heads, T, T]` per layer. A key
//! head collects from its query heads in their order, and from the queries in theirs.

use crate::cpu::attention::Heads;
use crate::cpu::gemm::{load_part, store_part};
use crate::cpu::math::exp;
use crate::cpu::simd::{Isa, Kernel, LANES, Simd, max_lanes, sum_lanes};
use crate::model::SequenceRows;

/// What the forward left behind, and the derivative by its result, for all `T` rows of the
/// micro-batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    /// `[T, queries * dim]`, rotated.
    pub(super) q: &'a [f32],
    /// `[T, keys * dim]`, rotated.
    pub(super) k: &'a [f32],
    /// `[T, keys * dim]`
    pub(super) v: &'a [f32],
    /// `[T, queries * dim]`
    pub(super) out: &'a [f32],
    /// `[T, queries * dim]`
    pub(super) dout: &'a [f32],
}

/// Derivatives by the arguments, for all `T` rows of the micro-batch; all are added to.
#[derive(Debug)]
pub(super) struct Outputs<'a> {
    /// `[T, queries * dim]`
    pub(super) dq: &'a mut [f32],
    /// `[T, keys * dim]`
    pub(super) dk: &'a mut [f32],
    /// `[T, keys * dim]`
    pub(super) dv: &'a mut [f32],
}

/// Buffers that are used again for every sequence.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Keys and values of one head, `[dim, T]`: scores of one query are then sums of whole rows.
    keys: Vec<f32>,
    values: Vec<f32>,
    probs: Vec<f32>,
    dprobs: Vec<f32>,
}

/// Adds the derivatives of one sequence: of its own queries, by all keys they see.
pub(super) fn backward(
    isa: Isa,
    heads: Heads,
    sequence: &SequenceRows,
    inputs: Inputs<'_>,
    outputs: &mut Outputs<'_>,
    scratch: &mut Scratch,
) {
    let group = heads.queries / heads.kv;
    for key_head in 0..heads.kv {
        transpose_head(&mut scratch.keys, inputs.k, sequence, heads, key_head);
        transpose_head(&mut scratch.values, inputs.v, sequence, heads, key_head);
        for query_head in key_head * group..(key_head + 1) * group {
            isa.dispatch(Head {
                heads,
                sequence,
                key_head,
                query_head,
                inputs,
                outputs,
                scratch,
            });
        }
    }
}

/// One query head.
struct Head<'a, 'b> {
    heads: Heads,
    sequence: &'a SequenceRows,
    key_head: usize,
    query_head: usize,
    inputs: Inputs<'a>,
    outputs: &'a mut Outputs<'b>,
    scratch: &'a mut Scratch,
}

impl Kernel for Head<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            heads,
            sequence,
            key_head,
            query_head,
            inputs,
            outputs,
            scratch,
        } = self;
        let Heads {
            queries,
            kv: keys,
            dim,
            scale,
            ..
        } = heads;
        let prefix = sequence.prefix.len();
        let rows = prefix + sequence.own.len();
        scratch.probs.resize(rows, 0.0);
        scratch.dprobs.resize(rows, 0.0);
        for i in prefix..rows {
            let at = (sequence.row_of(i) * queries + query_head) * dim;
            let (query, dout) = (&inputs.q[at..at + dim], &inputs.dout[at..at + dim]);
            let first = heads.first_key(i);
            let probs = &mut scratch.probs[first..=i];
            let dprobs = &mut scratch.dprobs[first..=i];
            row_times_columns(s, probs, query, &scratch.keys[first..], rows);
            softmax(s, probs, scale);
            row_times_columns(s, dprobs, dout, &scratch.values[first..], rows);
            let pull = dot(s, dout, &inputs.out[at..at + dim]);
            let dq = &mut outputs.dq[at..at + dim];
            for (j, (p, dp)) in (first..).zip(probs.iter().zip(dprobs)) {
                let key_at = (sequence.row_of(j) * keys + key_head) * dim;
                let ds = scale * p * (*dp - pull);
                axpy(s, dq, ds, &inputs.k[key_at..key_at + dim]);
                axpy(s, &mut outputs.dk[key_at..key_at + dim], ds, query);
                axpy(s, &mut outputs.dv[key_at..key_at + dim], *p, dout);
            }
        }
    }
}

/// `[dim, positions]` from the rows of one key head.
fn transpose_head(
    to: &mut Vec<f32>,
    from: &[f32],
    sequence: &SequenceRows,
    heads: Heads,
    key_head: usize,
) {
    let rows = sequence.prefix.len() + sequence.own.len();
    to.resize(rows * heads.dim, 0.0);
    for t in 0..rows {
        let at = (sequence.row_of(t) * heads.kv + key_head) * heads.dim;
        let head = &from[at..at + heads.dim];
        for (d, value) in head.iter().enumerate() {
            to[d * rows + t] = *value;
        }
    }
}

/// `out[j] = sum over d of row[d] * columns[d, j]`, for the first `out.len()` columns; rows of
/// `columns` lie `stride` apart.
#[inline(always)]
fn row_times_columns<S: Simd>(s: S, out: &mut [f32], row: &[f32], columns: &[f32], stride: usize) {
    for (block, out) in out.chunks_mut(LANES).enumerate() {
        let mut sum = s.splat(0.0);
        for (d, value) in row.iter().enumerate() {
            let lanes = load_part(s, &columns[d * stride + block * LANES..][..out.len()]);
            sum = s.fma(s.splat(*value), lanes, sum);
        }
        store_part(s, out, sum);
    }
}

/// Softmax of `scale * scores`, in place.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut [f32], scale: f32) {
    let mut largest = s.splat(f32::NEG_INFINITY);
    for block in scores.chunks(LANES) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        lanes[..block.len()].copy_from_slice(block);
        largest = s.max(s.load(&lanes), largest);
    }
    let largest = s.splat(max_lanes(s, largest));
    let mut sum = s.splat(0.0);
    for block in scores.chunks_mut(LANES) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        lanes[..block.len()].copy_from_slice(block);
        let shifted = s.mul(s.splat(scale), s.sub(s.load(&lanes), largest));
        let weight = exp(s, shifted);
        sum = s.add(sum, weight);
        store_part(s, block, weight);
    }
    let inverse = s.splat(1.0 / sum_lanes(s, sum));
    for block in scores.chunks_mut(LANES) {
        store_part(s, block, s.mul(load_part(s, block), inverse));
    }
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        sum = s.fma(load_part(s, a), load_part(s, b), sum);
    }
    sum_lanes(s, sum)
}

/// `y += factor * x`.
#[inline(always)]
fn axpy<S: Simd>(s: S, y: &mut [f32], factor: f32, x: &[f32]) {
    let factor = s.splat(factor);
    for (y, x) in y.chunks_mut(LANES).zip(x.chunks(LANES)) {
        store_part(s, y, s.fma(factor, load_part(s, x), load_part(s, y)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads {
        queries: 4,
        kv: 2,
        dim: 6,
        scale: 0.4,
        window: None,
    };

    fn wave(n: usize, phase: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * 1.7 + phase).sin()).collect()
    }

    fn single(values: &[f64]) -> Vec<f32> {
        values.iter().map(|value| *value as f32).collect()
    }

    /// The forward in f64, written out.
    fn forward(heads: Heads, q: &[f64], k: &[f64], v: &[f64], rows: usize) -> Vec<f64> {
        let Heads {
            queries,
            kv: keys,
            dim,
            scale,
            ..
        } = heads;
        let mut out = vec![0.0; q.len()];
        for h in 0..queries {
            let g = h / (queries / keys);
            for i in 0..rows {
                let score = |j: usize| -> f64 {
                    let pairs = (0..dim)
                        .map(|d| q[(i * queries + h) * dim + d] * k[(j * keys + g) * dim + d]);
                    (f64::from(scale) * pairs.sum::<f64>()).exp()
                };
                let seen = heads.first_key(i)..=i;
                let total: f64 = seen.clone().map(score).sum();
                for j in seen {
                    for d in 0..dim {
                        out[(i * queries + h) * dim + d] +=
                            score(j) / total * v[(j * keys + g) * dim + d];
                    }
                }
            }
        }
        out
    }

    #[test]
    fn derivatives_match_differences() {
        for window in [None, Some(1), Some(2), Some(9)] {
            check_derivatives(Heads { window, ..HEADS });
        }
    }

    fn check_derivatives(heads: Heads) {
        let rows = 5;
        let (q, k) = (wave(rows * 24, 0.3), wave(rows * 12, 1.1));
        let (v, dout) = (wave(rows * 12, 2.7), wave(rows * 24, 0.9));
        let out = forward(heads, &q, &k, &v, rows);
        let (mut dq, mut dk, mut dv) = (vec![0.0; 120], vec![0.0; 60], vec![0.0; 60]);
        let (q32, k32, v32) = (single(&q), single(&k), single(&v));
        let inputs = Inputs {
            q: &q32,
            k: &k32,
            v: &v32,
            out: &single(&out),
            dout: &single(&dout),
        };
        let mut outputs = Outputs {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        backward(
            Isa::best(),
            heads,
            &SequenceRows {
                prefix: 0..0,
                own: 0..rows,
            },
            inputs,
            &mut outputs,
            &mut Scratch::default(),
        );

        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            let out = forward(heads, q, k, v, rows);
            out.iter().zip(&dout).map(|(a, b)| a * b).sum()
        };
        let difference = |which: usize, at: usize| -> f64 {
            let moved = |step: f64| {
                let mut all = [q.clone(), k.clone(), v.clone()];
                all[which][at] += step;
                loss(&all[0], &all[1], &all[2])
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        for (which, got) in [&dq, &dk, &dv].into_iter().enumerate() {
            for (at, value) in got.iter().enumerate() {
                let expected = difference(which, at);
                let error = (f64::from(*value) - expected).abs();
                assert!(error < 1e-5, "{which} {at}: {value} {expected}");
            }
        }
    }
}
