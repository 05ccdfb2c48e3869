//! One transformer layer: the code that the sampler and the learner both run.
//!
//! A layer leaves what it computed in [`LayerBuffers`]. The sampler has one set for all layers,
//! the learner one per layer, because its backward pass reads them.

use std::ops::Range;

use super::layout::AdapterRun;
use super::lora::Pieces;
use super::{LayerWeights, Model};
use crate::adapter::{Site, Target};
use crate::buffers::{copy, sized};
use crate::config::{Compute, ModelConfig};
use crate::cpu::attention::{RowPlace, attention};
use crate::cpu::bf16::input;
use crate::cpu::gemm::{Product, Store, gemm_group};
use crate::cpu::ops::{add_assign, gate_mul, rms_norm};
use crate::cpu::rope::norm_and_rotate;
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;
use crate::kv::LayerCache;

/// Values from which the sequences' caches are written on all threads.
const PARALLEL_WRITE_MIN: usize = 16_384;

/// Where one sequence's rows are in a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SequenceRows {
    /// Rows of the positions `0..prefix.len()`, which other sequences share. Empty when there
    /// are none, or when they are in the cache already.
    pub(crate) prefix: Range<usize>,
    /// Rows of the positions after them.
    pub(crate) own: Range<usize>,
}

impl SequenceRows {
    /// The row of a position, counted from the prefix's first.
    #[inline(always)]
    pub(crate) fn row_of(&self, position: usize) -> usize {
        match position.checked_sub(self.prefix.len()) {
            Some(own) => self.own.start + own,
            None => self.prefix.start + position,
        }
    }
}

/// `x A^T` by [`Target::index`], `[T, rank]` each.
pub(crate) type LowRank = [Vec<f32>; Target::ALL.len()];

/// What one layer leaves behind, `T` rows each.
#[derive(Debug, Default)]
pub(crate) struct LayerBuffers {
    /// The layer's input; only kept for a backward pass.
    pub(crate) x: Vec<f32>,
    /// Queries and keys before norm and rotation; only kept for a backward pass.
    pub(crate) q_raw: Vec<f32>,
    pub(crate) k_raw: Vec<f32>,
    /// Queries, keys and values as the attention reads them.
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// The attention's result, before its output matrix.
    pub(crate) attended: Vec<f32>,
    /// The input of the feed-forward's half; only kept for a backward pass.
    pub(crate) mid: Vec<f32>,
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
    /// Results of attention and feed-forward before their norm; only kept for a backward pass,
    /// where such norms exist.
    pub(crate) attn_branch: Vec<f32>,
    pub(crate) ffn_branch: Vec<f32>,
    /// `x A^T` of every adapted linear layer, of its adapters' rows one after the other.
    pub(crate) low: LowRank,
}

impl LayerBuffers {
    /// Values per row when a backward pass follows, `low` of them in `x A^T`.
    pub(crate) fn values_per_row(config: &ModelConfig, low: usize) -> usize {
        let branches = if config.branch_norms { 2 } else { 0 };
        (2 + branches) * config.hidden_size
            + 3 * (config.q_size() + config.kv_size())
            + 2 * config.intermediate_size
            + low
    }
}

/// What no later step reads.
#[derive(Debug, Default)]
pub(crate) struct Work {
    normed: Vec<f32>,
    gated: Vec<f32>,
    branch: Vec<f32>,
    /// Rounded inputs of products.
    pairs: Vec<u32>,
}

impl Work {
    /// Values per row.
    pub(crate) fn values_per_row(config: &ModelConfig, compute: Compute) -> usize {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        2 * hidden + wide + compute.pairs(hidden.max(wide).max(config.q_size()))
    }
}

/// What all layers of one pass have in common.
#[derive(Clone, Copy)]
pub(crate) struct LayerPass<'a> {
    pub(crate) threads: &'a Threads,
    pub(crate) model: &'a Model,
    /// One per row.
    pub(crate) places: &'a [RowPlace],
    /// The position of each row in its sequence.
    pub(crate) positions: &'a [u32],
    /// Rows of each sequence.
    pub(crate) sequences: &'a [SequenceRows],
    /// Rows with an adapter.
    pub(crate) runs: &'a [AdapterRun<'a>],
    /// Whether a backward pass follows.
    pub(crate) keep: bool,
}

impl LayerPass<'_> {
    /// Replaces `x[T, hidden]` by the layer's result. `caches` are this layer's, one per
    /// sequence; the rows' keys and values are written to them.
    pub(crate) fn run(
        self,
        index: usize,
        x: &mut [f32],
        buffers: &mut LayerBuffers,
        work: &mut Work,
        caches: &mut [&mut LayerCache],
    ) {
        if self.keep {
            copy(&mut buffers.x, x);
        }
        self.attention_inputs(index, x, buffers, work);
        self.write_caches(buffers, caches);
        self.attend(index, x, buffers, work, caches);
        if self.keep {
            copy(&mut buffers.mid, x);
        }
        self.feed_forward(index, x, buffers, work);
    }

    fn weights(&self, index: usize) -> &LayerWeights {
        &self.model.layers()[index]
    }

    /// `x` to rotated `q` and `k`, and `v`.
    fn attention_inputs(self, index: usize, x: &[f32], b: &mut LayerBuffers, work: &mut Work) {
        let (config, weights) = (self.model.config(), self.weights(index));
        let (rows, eps) = (self.places.len(), config.rms_norm_eps);
        let normed = sized(&mut work.normed, x.len());
        rms_norm(self.threads, x, &weights.attn_norm, eps, normed);
        let outputs = [
            (Target::Q, sized(&mut b.q, rows * config.q_size())),
            (Target::K, sized(&mut b.k, rows * config.kv_size())),
            (Target::V, sized(&mut b.v, rows * config.kv_size())),
        ];
        self.linear(index, normed, outputs, &mut b.low, &mut work.pairs);
        if self.keep {
            copy(&mut b.q_raw, &b.q);
            copy(&mut b.k_raw, &b.k);
        }
        let rope = self.model.rope(index);
        for (part, norm) in [(&mut b.q, &weights.q_norm), (&mut b.k, &weights.k_norm)] {
            let norm = norm.as_deref().map(|weight| (weight, eps));
            norm_and_rotate(self.threads, part, norm, rope, self.positions);
        }
    }

    fn write_caches(self, b: &LayerBuffers, caches: &mut [&mut LayerCache]) {
        let width = self.model.config().kv_size();
        let parallel = b.k.len() >= PARALLEL_WRITE_MIN && caches.len() > 1;
        for_each_mut(self.threads, parallel, caches, |sequence, cache| {
            let SequenceRows { prefix, own } = &self.sequences[sequence];
            for rows in [prefix, own] {
                if let Some(first) = self.places[rows.clone()].first() {
                    let range = rows.start * width..rows.end * width;
                    cache.write(first.position as usize, &b.k[range.clone()], &b.v[range]);
                }
            }
        });
    }

    /// `x += [norm](W attention(q))`.
    fn attend(
        self,
        index: usize,
        x: &mut [f32],
        b: &mut LayerBuffers,
        work: &mut Work,
        caches: &[&mut LayerCache],
    ) {
        let caches: Vec<&LayerCache> = caches.iter().map(|cache| &**cache).collect();
        let heads = self.model.heads(index);
        let attended = sized(&mut b.attended, b.q.len());
        attention(self.threads, heads, &b.q, self.places, &caches, attended);
        let branch = sized(&mut work.branch, x.len());
        let output = [(Target::O, branch)];
        self.linear(index, attended, output, &mut b.low, &mut work.pairs);
        let norm = self.weights(index).attn_branch_norm.as_deref();
        self.add_branch(x, norm, &mut b.attn_branch, work);
    }

    /// `x += [norm](W (act(gate h) * up h))`.
    fn feed_forward(self, index: usize, x: &mut [f32], b: &mut LayerBuffers, work: &mut Work) {
        let (config, weights) = (self.model.config(), self.weights(index));
        let wide = self.places.len() * config.intermediate_size;
        let normed = sized(&mut work.normed, x.len());
        rms_norm(
            self.threads,
            x,
            &weights.ffn_norm,
            config.rms_norm_eps,
            normed,
        );
        let outputs = [
            (Target::Gate, sized(&mut b.gate, wide)),
            (Target::Up, sized(&mut b.up, wide)),
        ];
        self.linear(index, normed, outputs, &mut b.low, &mut work.pairs);
        let gated = sized(&mut work.gated, wide);
        gate_mul(self.threads, config.activation, &b.gate, &b.up, gated);
        let branch = sized(&mut work.branch, x.len());
        let output = [(Target::Down, branch)];
        self.linear(index, gated, output, &mut b.low, &mut work.pairs);
        let norm = weights.ffn_branch_norm.as_deref();
        self.add_branch(x, norm, &mut b.ffn_branch, work);
    }

    /// `x += [norm](branch)`.
    fn add_branch(self, x: &mut [f32], norm: Option<&[f32]>, kept: &mut Vec<f32>, work: &mut Work) {
        let Some(weight) = norm else {
            return add_assign(self.threads, x, &work.branch);
        };
        if self.keep {
            copy(kept, &work.branch);
        }
        let normed = sized(&mut work.normed, x.len());
        let eps = self.model.config().rms_norm_eps;
        rms_norm(self.threads, &work.branch, weight, eps, normed);
        add_assign(self.threads, x, normed);
    }

    /// Linear layers that share their input: `y = W x [+ bias]`, the chains starting at the
    /// bias, then `y = y + s (B (A x))` on the rows that have an adapter.
    fn linear<const N: usize>(
        self,
        index: usize,
        x: &[f32],
        mut outputs: [(Target, &mut [f32]); N],
        low: &mut LowRank,
        pairs: &mut Vec<u32>,
    ) {
        let (inputs, compute) = (x.len() / self.places.len().max(1), self.model.compute());
        let x = input(compute, self.threads, x, inputs, pairs);
        let weights = self.weights(index);
        let mut products = Vec::with_capacity(N);
        for (target, y) in &mut outputs {
            let store = match weights.bias(*target) {
                None => Store::Set,
                Some(bias) => {
                    y.chunks_exact_mut(bias.len())
                        .for_each(|row| row.copy_from_slice(bias));
                    Store::Continue
                }
            };
            let weights = weights.linear(*target);
            products.push(Product { weights, y, store });
        }
        gemm_group(self.threads, x, products);
        if self.runs.is_empty() {
            return;
        }
        let mut pieces = Pieces::default();
        let low: &mut [Vec<f32>] = low;
        let mut low: Vec<_> = low.iter_mut().map(Some).collect();
        for (target, y) in outputs {
            if let Some(low) = low[target.index()].take() {
                pieces.cut(self.runs, Site::Layer(index, target), x, y, low);
            }
        }
        pieces.run(self.threads, compute);
    }
}
