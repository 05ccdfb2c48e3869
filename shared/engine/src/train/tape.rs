//! The learner's forward: the sampler's kernels in the sampler's order, keeping what the backward
//! pass needs.
//!
//! A test compares its log-probabilities with those of token-by-token decoding, to the bit.

use super::rows::Rows;
use crate::adapter::{Adapter, Target};
use crate::cpu::attention::attention;
use crate::cpu::gemm::{Product, Store, gemm, gemm_group};
use crate::cpu::ops::{add_assign, rms_norm, silu_mul};
use crate::cpu::rope::norm_and_rotate;
use crate::cpu::threads::Threads;
use crate::kv::LayerCache;
use crate::model::Model;

/// What one layer leaves behind, `T` rows each.
#[derive(Debug, Default)]
pub(super) struct LayerTape {
    /// The layer's input.
    pub(super) x: Vec<f32>,
    /// Queries and keys before norm and rotation.
    pub(super) q_raw: Vec<f32>,
    pub(super) k_raw: Vec<f32>,
    /// Queries, keys and values as the attention read them.
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// The attention's result, before its output matrix.
    pub(super) attended: Vec<f32>,
    /// The input of the feed-forward's half.
    pub(super) mid: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// `x A^T` of every adapted linear layer, by [`Target::index`].
    pub(super) h: LowRank,
}

/// `x A^T` by [`Target::index`], `[T, rank]` each.
pub(super) type LowRank = [Vec<f32>; Target::ALL.len()];

/// All layers, and the last one's result.
#[derive(Debug, Default)]
pub(super) struct Tape {
    pub(super) layers: Vec<LayerTape>,
    /// `[T, hidden]`, before the final norm.
    pub(super) x: Vec<f32>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    branch: Vec<f32>,
}

/// What a forward reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward<'a> {
    pub(super) threads: &'a Threads,
    pub(super) model: &'a Model,
    pub(super) adapter: &'a Adapter,
    pub(super) rows: &'a Rows,
}

impl Forward<'_> {
    /// Computes all layers for whole sequences of input tokens, one per row.
    pub(super) fn record(self, tokens: impl Iterator<Item = u32>, tape: &mut Tape) {
        let config = self.model.config();
        let hidden = config.hidden_size;
        let x = resized(&mut tape.x, self.rows.len() * hidden);
        for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.model.embed(token, row);
        }
        let empty = LayerCache::new(config.num_kv_heads, config.head_dim);
        let mut caches = vec![empty; self.rows.sequences().count()];
        let mut layers = std::mem::take(&mut tape.layers);
        layers.resize_with(config.num_layers, LayerTape::default);
        for (index, layer) in layers.iter_mut().enumerate() {
            self.attention(index, layer, &mut caches, tape);
            self.feed_forward(index, layer, tape);
        }
        tape.layers = layers;
    }

    fn attention(
        self,
        index: usize,
        layer: &mut LayerTape,
        caches: &mut [LayerCache],
        tape: &mut Tape,
    ) {
        let (threads, config) = (self.threads, self.model.config());
        let weights = &self.model.layers()[index];
        let eps = config.rms_norm_eps;
        let Tape {
            x, normed, branch, ..
        } = tape;
        copy(&mut layer.x, x);
        let normed = resized(normed, x.len());
        rms_norm(threads, x, &weights.attn_norm, eps, normed);
        let rows = self.rows.len();
        let LayerTape { q, k, v, h, .. } = layer;
        let outputs = [
            (Target::Q, resized(q, rows * config.q_size())),
            (Target::K, resized(k, rows * config.kv_size())),
            (Target::V, resized(v, rows * config.kv_size())),
        ];
        self.linear(index, normed, outputs, h);
        copy(&mut layer.q_raw, q);
        copy(&mut layer.k_raw, k);
        for (part, norm) in [(&mut *q, &weights.q_norm), (&mut *k, &weights.k_norm)] {
            let norm = norm.as_deref().map(|weight| (weight, eps));
            let positions = self.rows.positions();
            norm_and_rotate(threads, part, norm, self.model.rope(), positions);
        }
        let width = config.kv_size();
        for (cache, rows) in caches.iter_mut().zip(self.rows.sequences()) {
            let range = rows.start * width..rows.end * width;
            cache.write(0, &k[range.clone()], &v[range]);
        }
        let caches: Vec<&LayerCache> = caches.iter().collect();
        let attended = resized(&mut layer.attended, q.len());
        attention(
            threads,
            self.model.heads(),
            q,
            self.rows.places(),
            &caches,
            attended,
        );
        let branch = resized(branch, x.len());
        self.linear(index, attended, [(Target::O, &mut *branch)], h);
        add_assign(threads, x, branch);
    }

    fn feed_forward(self, index: usize, layer: &mut LayerTape, tape: &mut Tape) {
        let (threads, config) = (self.threads, self.model.config());
        let Tape {
            x,
            normed,
            inner,
            branch,
            ..
        } = tape;
        copy(&mut layer.mid, x);
        let normed = resized(normed, x.len());
        let weight = &self.model.layers()[index].ffn_norm;
        rms_norm(threads, x, weight, config.rms_norm_eps, normed);
        let wide = self.rows.len() * config.intermediate_size;
        let LayerTape { gate, up, h, .. } = layer;
        let outputs = [
            (Target::Gate, resized(gate, wide)),
            (Target::Up, resized(up, wide)),
        ];
        self.linear(index, normed, outputs, h);
        let inner = resized(inner, wide);
        silu_mul(threads, gate, up, inner);
        let branch = resized(branch, x.len());
        self.linear(index, inner, [(Target::Down, &mut *branch)], h);
        add_assign(threads, x, branch);
    }

    /// Linear layers that share their input, each with its adapter; `h` keeps `x A^T`.
    fn linear<const N: usize>(
        self,
        index: usize,
        x: &[f32],
        mut outputs: [(Target, &mut [f32]); N],
        h: &mut LowRank,
    ) {
        let products = outputs.iter_mut().map(|(target, y)| Product {
            weights: self.model.layers()[index].linear(*target),
            y,
            store: Store::Set,
        });
        gemm_group(self.threads, x, products.collect());
        let adapter = self.adapter.packed();
        for (target, y) in outputs {
            if let Some(pair) = adapter.pair(index, target) {
                let h = resized(&mut h[target.index()], self.rows.len() * pair.a.n());
                gemm(self.threads, x, &pair.a, h, Store::Set);
                gemm(
                    self.threads,
                    h,
                    &pair.b,
                    y,
                    Store::AddScaled(adapter.scale()),
                );
            }
        }
    }
}

fn copy(to: &mut Vec<f32>, from: &[f32]) {
    to.clear();
    to.extend_from_slice(from);
}

fn resized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}
