//! Backward of causal grouped-query attention over one sequence of a micro-batch.
//!
//! With `S = scale Q K^T` where a query sees a key, `P = softmax(S)`, `O = P V` (Vaswani et al.
//! 2017, arXiv 1706.03762, eq. 1; derivatives as in Dao et al. 2022, arXiv 2205.14135, appendix
//! B.2):
//!
//! ```text
//! dV = P^T dO      dP = dO V^T      D_i = dO_i . O_i
//! dS = P * (dP - D)      dQ = scale dS K      dK = scale dS^T Q
//! ```
//!
//! `P` is computed again from `Q` and `K`: keeping it would cost `[heads, T, T]` per layer. Queries
//! come in blocks, whose five products are products of whole matrices. A key head collects from its
//! query heads in their order, and from the blocks in theirs.

use std::ops::Range;

use super::matmul::{Left, Packing, Sizes, Start, matmul};
use crate::buffers::sized;
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

/// Queries of one block: the probabilities of a block are `[QUERIES, keys]`, 64 KiB at 256 keys.
const QUERIES: usize = 64;

/// Buffers that are used again for every sequence. Those of a head are contiguous copies of its
/// part of the rows, so that every product is one of whole matrices.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    packing: Packing,
    /// `[positions, dim]` of one key head, and the derivatives by them.
    keys: Vec<f32>,
    values: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
    /// `[dim, keys seen]`
    transposed: Vec<f32>,
    /// `[block, dim]` of one query head.
    queries: Vec<f32>,
    douts: Vec<f32>,
    dqueries: Vec<f32>,
    /// `[block, keys seen]`
    probs: Vec<f32>,
    dprobs: Vec<f32>,
}

impl Scratch {
    /// Bytes for sequences of at most `positions`.
    pub(super) fn bytes(dim: usize, positions: usize) -> u64 {
        let block = positions.min(QUERIES);
        let values = 5 * positions * dim + 3 * block * dim + 2 * block * positions;
        (values * size_of::<f32>() + Packing::BYTES) as u64
    }
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
    let (group, dim) = (heads.queries / heads.kv, heads.dim);
    let (prefix, positions) = (
        sequence.prefix.len(),
        sequence.prefix.len() + sequence.own.len(),
    );
    for key_head in 0..heads.kv {
        let part = HeadPart {
            sequence,
            stride: heads.kv * dim,
            offset: key_head * dim,
            dim,
        };
        part.gather(&mut scratch.keys, inputs.k, 0..positions);
        part.gather(&mut scratch.values, inputs.v, 0..positions);
        for derivative in [&mut scratch.dkeys, &mut scratch.dvalues] {
            sized(derivative, positions * dim).fill(0.0);
        }
        for query_head in key_head * group..(key_head + 1) * group {
            for first in (prefix..positions).step_by(QUERIES) {
                let block = Block {
                    isa,
                    heads,
                    queries: first..positions.min(first + QUERIES),
                    part: HeadPart {
                        stride: heads.queries * dim,
                        offset: query_head * dim,
                        ..part
                    },
                };
                block.run(inputs, outputs, scratch);
            }
        }
        part.scatter_add(outputs.dk, &scratch.dkeys, 0..positions);
        part.scatter_add(outputs.dv, &scratch.dvalues, 0..positions);
    }
}

/// One head's part of a sequence's rows.
#[derive(Clone, Copy)]
struct HeadPart<'a> {
    sequence: &'a SequenceRows,
    /// Values of a row of all heads.
    stride: usize,
    /// Where the head begins in it.
    offset: usize,
    dim: usize,
}

impl HeadPart<'_> {
    /// Copies the head's part of some positions.
    fn gather(self, to: &mut Vec<f32>, from: &[f32], positions: Range<usize>) {
        let to = sized(to, positions.len() * self.dim);
        for (position, to) in positions.zip(to.chunks_exact_mut(self.dim)) {
            let at = self.sequence.row_of(position) * self.stride + self.offset;
            to.copy_from_slice(&from[at..at + self.dim]);
        }
    }

    /// Adds the head's part of some positions to the rows.
    fn scatter_add(self, to: &mut [f32], from: &[f32], positions: Range<usize>) {
        for (position, from) in positions.zip(from.chunks_exact(self.dim)) {
            let at = self.sequence.row_of(position) * self.stride + self.offset;
            let to = &mut to[at..at + self.dim];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

/// Some queries of one head, by position.
struct Block<'a> {
    isa: Isa,
    heads: Heads,
    queries: Range<usize>,
    part: HeadPart<'a>,
}

impl Block<'_> {
    fn run(&self, inputs: Inputs<'_>, outputs: &mut Outputs<'_>, scratch: &mut Scratch) {
        let Scratch {
            packing,
            keys,
            values,
            dkeys,
            dvalues,
            transposed,
            queries,
            douts,
            dqueries,
            probs,
            dprobs,
        } = scratch;
        let (isa, dim, m) = (self.isa, self.heads.dim, self.queries.len());
        // The keys that some query of the block sees.
        let seen = self.heads.first_key(self.queries.start)..self.queries.end;
        let n = seen.len();
        let of_keys = seen.start * dim..seen.end * dim;
        self.part.gather(queries, inputs.q, self.queries.clone());
        self.part.gather(douts, inputs.dout, self.queries.clone());
        for (products, left, right) in [
            (&mut *probs, &*queries, &keys[of_keys.clone()]),
            (&mut *dprobs, &*douts, &values[of_keys.clone()]),
        ] {
            transpose(transposed, right, dim);
            let products = sized(products, m * n);
            let sizes = Sizes { m, k: dim, n };
            let left = Left::Rows(left);
            matmul(isa, packing, Start::Zero, products, left, transposed, sizes);
        }
        for (row, position) in self.queries.clone().enumerate() {
            let at = self.part.sequence.row_of(position) * self.part.stride + self.part.offset;
            isa.dispatch(Row {
                scale: self.heads.scale,
                seen: self.heads.first_key(position) - seen.start..position + 1 - seen.start,
                probs: &mut probs[row * n..][..n],
                dprobs: &mut dprobs[row * n..][..n],
                dout: &douts[row * dim..][..dim],
                out: &inputs.out[at..at + dim],
            });
        }
        let dqueries = sized(dqueries, m * dim);
        let (dscores, back) = (Left::Rows(dprobs), &keys[of_keys.clone()]);
        let sizes = Sizes { m, k: n, n: dim };
        matmul(isa, packing, Start::Zero, dqueries, dscores, back, sizes);
        self.part
            .scatter_add(outputs.dq, dqueries, self.queries.clone());
        for (derivative, left, right) in [(dkeys, &*dprobs, &*queries), (dvalues, &*probs, &*douts)]
        {
            let sizes = Sizes { m: n, k: m, n: dim };
            let (derivative, left) = (&mut derivative[of_keys.clone()], Left::Columns(left));
            matmul(isa, packing, Start::Old, derivative, left, right, sizes);
        }
    }
}

/// One query: `probs` are its scores and become probabilities, `dprobs` becomes the derivative by
/// the scores; both zero where the query does not see the key.
struct Row<'a> {
    scale: f32,
    seen: Range<usize>,
    probs: &'a mut [f32],
    dprobs: &'a mut [f32],
    dout: &'a [f32],
    out: &'a [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for values in [&mut *self.probs, &mut *self.dprobs] {
            values[..self.seen.start].fill(0.0);
            values[self.seen.end..].fill(0.0);
        }
        let probs = &mut self.probs[self.seen.clone()];
        softmax(s, probs, self.scale);
        let pull = s.splat(dot(s, self.dout, self.out));
        let scale = s.splat(self.scale);
        let dprobs = self.dprobs[self.seen].chunks_mut(LANES);
        for (dp, p) in dprobs.zip(probs.chunks(LANES)) {
            let weight = s.mul(scale, load_part(s, p));
            store_part(s, dp, s.mul(weight, s.sub(load_part(s, dp), pull)));
        }
    }
}

/// `[dim, rows]` from `[rows, dim]`.
fn transpose(to: &mut Vec<f32>, from: &[f32], dim: usize) {
    let rows = from.len() / dim;
    let to = sized(to, from.len());
    for (row, values) in from.chunks_exact(dim).enumerate() {
        for (d, value) in values.iter().enumerate() {
            to[d * rows + row] = *value;
        }
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

    /// Derivatives by queries, keys and values in f64, one query after the other; added to `sums`.
    fn plain(
        heads: Heads,
        sequence: &SequenceRows,
        [q, k, v, dout]: [&[f64]; 4],
        out: &mut [f64],
        [dq, dk, dv]: &mut [Vec<f64>; 3],
    ) {
        let (dim, scale) = (heads.dim, f64::from(heads.scale));
        let group = heads.queries / heads.kv;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let add = |to: &mut [f64], from: &[f64], by: f64| {
            to.iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to += by * from);
        };
        let (prefix, own) = (sequence.prefix.len(), sequence.own.len());
        for h in 0..heads.queries {
            let query = |i: usize| (sequence.row_of(i) * heads.queries + h) * dim;
            let key = |j: usize| (sequence.row_of(j) * heads.kv + h / group) * dim;
            for i in prefix..prefix + own {
                let of_query = query(i)..query(i) + dim;
                let seen = heads.first_key(i)..i + 1;
                let of_key = |j: usize| key(j)..key(j) + dim;
                let score = |j| (scale * dot(&q[of_query.clone()], &k[of_key(j)])).exp();
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let total: f64 = scores.iter().sum();
                for (j, score) in seen.clone().zip(&scores) {
                    add(&mut out[of_query.clone()], &v[of_key(j)], score / total);
                }
                let pull = dot(&dout[of_query.clone()], &out[of_query.clone()]);
                for (j, score) in seen.zip(&scores) {
                    let p = score / total;
                    let ds = scale * p * (dot(&dout[of_query.clone()], &v[of_key(j)]) - pull);
                    add(&mut dv[of_key(j)], &dout[of_query.clone()], p);
                    add(&mut dq[of_query.clone()], &k[of_key(j)], ds);
                    add(&mut dk[of_key(j)], &q[of_query.clone()], ds);
                }
            }
        }
    }

    /// Several blocks of queries, two sequences on one prefix that is longer than a block, windows
    /// within a block, at its borders, across it and beyond everything.
    #[test]
    fn long_sequences_on_a_shared_prefix_match_the_plain_derivatives() {
        let (prefix, first, second) = (0..70, 70..220, 220..287);
        let rows = second.end;
        let (q, k) = (wave(rows * 24, 0.3), wave(rows * 12, 1.1));
        let (v, dout) = (wave(rows * 12, 2.7), wave(rows * 24, 0.9));
        let sequence = |prefix: &Range<usize>, own: &Range<usize>| SequenceRows {
            prefix: prefix.clone(),
            own: own.clone(),
        };
        let sequences = [
            sequence(&(0..0), &prefix),
            sequence(&prefix, &first),
            sequence(&prefix, &second),
        ];
        let [q32, k32, v32, dout32] = [&q, &k, &v, &dout].map(|values| single(values));
        for window in [
            None,
            Some(1),
            Some(63),
            Some(64),
            Some(65),
            Some(130),
            Some(1000),
        ] {
            let heads = Heads { window, ..HEADS };
            let mut out = vec![0.0; q.len()];
            let mut expected = [q.len(), k.len(), v.len()].map(|len| vec![0.0; len]);
            for sequence in &sequences {
                let inputs = [&q[..], &k, &v, &dout];
                plain(heads, sequence, inputs, &mut out, &mut expected);
            }
            for isa in Isa::available() {
                let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|n| vec![0.0; n]);
                let inputs = Inputs {
                    q: &q32,
                    k: &k32,
                    v: &v32,
                    out: &single(&out),
                    dout: &dout32,
                };
                let mut scratch = Scratch::default();
                for sequence in &sequences {
                    let mut outputs = Outputs {
                        dq: &mut dq,
                        dk: &mut dk,
                        dv: &mut dv,
                    };
                    backward(isa, heads, sequence, inputs, &mut outputs, &mut scratch);
                }
                for (which, (got, expected)) in [dq, dk, dv].iter().zip(&expected).enumerate() {
                    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
                        let error = (f64::from(*got) - expected).abs() / expected.abs().max(1.0);
                        assert!(error < 3e-6, "{window:?} {which} {at}: {got} {expected}");
                    }
                }
            }
        }
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
