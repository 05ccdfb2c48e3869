//! The forward pass.

use std::ops::Range;
use std::sync::Arc;

use super::Model;
use super::layer::LayerPass;
use super::layout::{Layout, runs_among};
use super::scratch::Scratch;
use crate::adapter::Adapter;
use crate::buffers::sized;
use crate::cpu::threads::Threads;
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

/// Logits of one sequence of a batch. The sequences of a batch share one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    rows: Range<usize>,
    vocab: usize,
    all: Arc<Vec<f32>>,
}

impl Logits {
    /// Number of rows: 0, 1 or as many as there were tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The logits of a row, `[vocab]`.
    ///
    /// # Panics
    ///
    /// There is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data()[row * self.vocab..][..self.vocab]
    }

    /// All rows, `[rows, vocab]`.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        &self.all[self.rows.start * self.vocab..self.rows.end * self.vocab]
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
        let layout = Layout::new(batch, &self.config, self.compute)?;
        let Scratch {
            x,
            positions,
            layer: buffers,
            work,
            ..
        } = &mut *scratch;
        let hidden = self.config.hidden_size;
        let x = sized(x, layout.places.len() * hidden);
        let tokens = batch.iter().flat_map(|step| step.tokens);
        for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.embed(token, row);
        }
        positions.clear();
        positions.extend(layout.places.iter().map(|place| place.position));
        let pass = LayerPass {
            threads,
            model: self,
            places: &layout.places,
            positions,
            sequences: &layout.sequences,
            runs: &layout.runs,
            keep: false,
        };
        for index in 0..self.layers.len() {
            let caches = batch.iter_mut().map(|step| step.cache.layer_mut(index));
            let mut caches: Vec<&mut LayerCache> = caches.collect();
            pass.run(index, x, buffers, work, &mut caches);
        }
        let logits = self.logits(&layout, threads, scratch);
        for step in batch.iter_mut() {
            step.cache.advance(step.tokens.len());
        }
        Ok(logits)
    }

    /// The logits of the wanted rows.
    fn logits(&self, layout: &Layout<'_>, threads: &Threads, s: &mut Scratch) -> Vec<Logits> {
        let config = &self.config;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let wanted = layout.wanted.len();
        let picked = sized(&mut s.picked, wanted * hidden);
        for (to, &row) in picked.chunks_exact_mut(hidden).zip(&layout.wanted) {
            to.copy_from_slice(&s.x[row * hidden..][..hidden]);
        }
        let mut all = vec![0.0; wanted * vocab];
        let runs = runs_among(&layout.runs, &layout.wanted);
        self.unembed(threads, picked, &runs, &mut s.unembed, &mut all);
        let (all, mut end) = (Arc::new(all), 0);
        let logits = |&rows: &usize| {
            end += rows;
            Logits {
                rows: end - rows..end,
                vocab,
                all: Arc::clone(&all),
            }
        };
        layout.wanted_rows.iter().map(logits).collect()
    }
}
