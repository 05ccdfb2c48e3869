//! The forward pass.

use super::Model;
use super::layout::Layout;
use super::scratch::{Scratch, sized};
use super::weights::LayerWeights;
use crate::adapter::{Adapter, Target};
use crate::cpu::attention::attention;
use crate::cpu::gemm::{Product, Store, gemm, gemm_group};
use crate::cpu::ops::{add_assign, rms_norm, silu_mul};
use crate::cpu::rope::norm_and_rotate;
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;
use crate::error::EngineError;
use crate::kv::{KvCache, LayerCache};

/// Which rows' logits a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: the tokens only enter the cache.
    None,
    /// Those of the last token.
    Last,
    /// Those of every token.
    All,
}

/// Some further tokens of one sequence.
#[derive(Debug)]
pub struct SequenceStep<'a> {
    /// The tokens; they follow those in the cache.
    pub tokens: &'a [u32],
    /// The sequence so far. Grows by the tokens.
    pub cache: &'a mut KvCache,
    /// The adapter to compute with. A cache is only meaningful with the adapter it was made with.
    pub adapter: Option<&'a Adapter>,
    /// The logits to return.
    pub logits: LogitsWanted,
}

/// Logits of one sequence of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    rows: usize,
    vocab: usize,
    data: Vec<f32>,
}

impl Logits {
    /// Number of rows: 0, 1 or as many as there were tokens.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The logits of a row, `[vocab]`.
    ///
    /// # Panics
    ///
    /// There is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.vocab..][..self.vocab]
    }

    /// All rows, `[rows, vocab]`.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        &self.data
    }
}

impl Model {
    /// Computes further tokens of any number of sequences at once: long prompts, single tokens
    /// and different adapters in any mixture. The result for a sequence does not depend, to
    /// the bit, on what else is in the batch, on how its tokens are cut into calls, or on the
    /// threads. Returns one [`Logits`] per step, in order.
    ///
    /// # Errors
    ///
    /// A token outside the vocabulary, a sequence that becomes too long, a cache or an adapter
    /// of another model; then no cache has changed.
    pub fn forward(
        &self,
        batch: &mut [SequenceStep<'_>],
        threads: &Threads,
        scratch: &mut Scratch,
    ) -> Result<Vec<Logits>, EngineError> {
        let layout = Layout::new(batch, &self.config)?;
        let hidden = self.config.hidden_size;
        let x = sized(&mut scratch.x, layout.places.len() * hidden);
        let tokens = batch.iter().flat_map(|step| step.tokens);
        for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.embed(token, row);
        }
        scratch.positions.clear();
        scratch
            .positions
            .extend(layout.places.iter().map(|place| place.position));
        let mut pass = Pass {
            model: self,
            threads,
            layout: &layout,
            scratch,
        };
        for layer in 0..self.layers.len() {
            pass.layer(layer, batch);
        }
        let logits = pass.logits();
        for step in batch.iter_mut() {
            step.cache.advance(step.tokens.len());
        }
        Ok(logits)
    }
}

/// One forward pass under way.
struct Pass<'a> {
    model: &'a Model,
    threads: &'a Threads,
    layout: &'a Layout<'a>,
    scratch: &'a mut Scratch,
}

impl Pass<'_> {
    fn layer(&mut self, index: usize, batch: &mut [SequenceStep<'_>]) {
        let weights = &self.model.layers[index];
        self.attention_inputs(index, weights);
        self.write_cache(index, batch);
        self.attend(index, weights, batch);
        self.feed_forward(index, weights);
    }

    /// `x` to rotated `q` and `k`, and `v`.
    fn attention_inputs(&mut self, index: usize, weights: &LayerWeights) {
        let config = &self.model.config;
        let rows = self.layout.places.len();
        let s = &mut *self.scratch;
        let h = sized(&mut s.h, s.x.len());
        rms_norm(
            self.threads,
            &s.x,
            &weights.attn_norm,
            config.rms_norm_eps,
            h,
        );
        let linear = Linear {
            layout: self.layout,
            threads: self.threads,
            index,
            weights,
        };
        let outputs = vec![
            (Target::Q, sized(&mut s.q, rows * config.q_size())),
            (Target::K, sized(&mut s.k, rows * config.kv_size())),
            (Target::V, sized(&mut s.v, rows * config.kv_size())),
        ];
        linear.run(h, outputs, &mut s.low);
        let (rope, eps) = (&self.model.rope, config.rms_norm_eps);
        let q_norm = weights.q_norm.as_deref().map(|weight| (weight, eps));
        let k_norm = weights.k_norm.as_deref().map(|weight| (weight, eps));
        norm_and_rotate(self.threads, &mut s.q, q_norm, rope, &s.positions);
        norm_and_rotate(self.threads, &mut s.k, k_norm, rope, &s.positions);
    }

    fn write_cache(&mut self, index: usize, batch: &mut [SequenceStep<'_>]) {
        let width = self.model.config.kv_size();
        let (k, v) = (&self.scratch.k, &self.scratch.v);
        let parallel = k.len() >= 16_384 && batch.len() > 1;
        for_each_mut(self.threads, parallel, batch, |sequence, step| {
            let rows = &self.layout.sequences[sequence];
            let range = rows.start * width..rows.end * width;
            step.cache.write(index, &k[range.clone()], &v[range]);
        });
    }

    /// `x += W attention(q)`.
    fn attend(&mut self, index: usize, weights: &LayerWeights, batch: &[SequenceStep<'_>]) {
        let s = &mut *self.scratch;
        let caches: Vec<&LayerCache> = batch.iter().map(|step| step.cache.layer(index)).collect();
        let attended = sized(&mut s.attended, s.q.len());
        let heads = self.model.heads();
        attention(
            self.threads,
            heads,
            &s.q,
            &self.layout.places,
            &caches,
            attended,
        );
        let linear = Linear {
            layout: self.layout,
            threads: self.threads,
            index,
            weights,
        };
        let branch = sized(&mut s.branch, s.x.len());
        linear.run(attended, vec![(Target::O, branch)], &mut s.low);
        add_assign(self.threads, &mut s.x, &s.branch);
    }

    /// `x += W (silu(gate h) * up h)`.
    fn feed_forward(&mut self, index: usize, weights: &LayerWeights) {
        let config = &self.model.config;
        let wide = self.layout.places.len() * config.intermediate_size;
        let s = &mut *self.scratch;
        let h = sized(&mut s.h, s.x.len());
        rms_norm(
            self.threads,
            &s.x,
            &weights.ffn_norm,
            config.rms_norm_eps,
            h,
        );
        let linear = Linear {
            layout: self.layout,
            threads: self.threads,
            index,
            weights,
        };
        let outputs = vec![
            (Target::Gate, sized(&mut s.gate, wide)),
            (Target::Up, sized(&mut s.up, wide)),
        ];
        linear.run(h, outputs, &mut s.low);
        let gated = sized(&mut s.gated, wide);
        silu_mul(self.threads, &s.gate, &s.up, gated);
        let branch = sized(&mut s.branch, s.x.len());
        linear.run(gated, vec![(Target::Down, branch)], &mut s.low);
        add_assign(self.threads, &mut s.x, &s.branch);
    }

    /// Final norm and output matrix of the wanted rows.
    fn logits(&mut self) -> Vec<Logits> {
        let (config, s) = (&self.model.config, &mut *self.scratch);
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let wanted = self.layout.wanted.len();
        let picked = sized(&mut s.branch, wanted * hidden);
        for (to, &row) in picked.chunks_exact_mut(hidden).zip(&self.layout.wanted) {
            to.copy_from_slice(&s.x[row * hidden..][..hidden]);
        }
        let h = sized(&mut s.h, wanted * hidden);
        rms_norm(
            self.threads,
            picked,
            &self.model.final_norm,
            config.rms_norm_eps,
            h,
        );
        let mut all = vec![0.0; wanted * vocab];
        gemm(self.threads, h, &self.model.output, &mut all, Store::Set);
        if let [rows] = self.layout.wanted_rows.as_slice() {
            return vec![Logits {
                rows: *rows,
                vocab,
                data: all,
            }];
        }
        let mut rest = all.as_slice();
        let split = |&rows: &usize| {
            let (mine, others) = rest.split_at(rows * vocab);
            rest = others;
            Logits {
                rows,
                vocab,
                data: mine.to_vec(),
            }
        };
        self.layout.wanted_rows.iter().map(split).collect()
    }
}

/// Linear layers of one transformer layer, with the adapters of the rows.
struct Linear<'a> {
    layout: &'a Layout<'a>,
    threads: &'a Threads,
    index: usize,
    weights: &'a LayerWeights,
}

impl Linear<'_> {
    /// `y = W x`, then `y = y + s * (B (A x))` on the rows that have an adapter.
    fn run(&self, x: &[f32], mut outputs: Vec<(Target, &mut [f32])>, low: &mut [Vec<f32>; 3]) {
        let products = outputs.iter_mut().map(|(target, y)| Product {
            weights: self.weights.linear(*target),
            y,
            store: Store::Set,
        });
        gemm_group(self.threads, x, products.collect());
        for run in &self.layout.runs {
            let rows = run.rows.len();
            let width = x.len() / self.layout.places.len();
            let x = &x[run.rows.start * width..][..rows * width];
            let mut products = Vec::with_capacity(outputs.len());
            for ((target, _), low) in outputs.iter().zip(&mut *low) {
                if let Some(pair) = run.adapter.pair(self.index, *target) {
                    let y = sized(low, rows * pair.a.n());
                    products.push(Product {
                        weights: &pair.a,
                        y,
                        store: Store::Set,
                    });
                }
            }
            gemm_group(self.threads, x, products);
            for ((target, y), low) in outputs.iter_mut().zip(&*low) {
                if let Some(pair) = run.adapter.pair(self.index, *target) {
                    let n = pair.b.n();
                    let y = &mut y[run.rows.start * n..][..rows * n];
                    gemm(
                        self.threads,
                        low,
                        &pair.b,
                        y,
                        Store::AddScaled(run.adapter.scale()),
                    );
                }
            }
        }
    }
}
