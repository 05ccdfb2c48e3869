//! The learner's forward: the sampler's layers, each keeping what the backward pass needs.
//!
//! A test compares its log-probabilities with those of token-by-token decoding, to the bit.

use super::rows::Rows;
use crate::adapter::Adapter;
use crate::cpu::threads::Threads;
use crate::kv::LayerCache;
use crate::model::{AdapterRun, LayerBuffers, LayerPass, Model, Work};

/// All layers, and the last one's result.
#[derive(Debug, Default)]
pub(super) struct Tape {
    pub(super) layers: Vec<LayerBuffers>,
    /// `[T, hidden]`, before the final norm.
    pub(super) x: Vec<f32>,
    work: Work,
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
    /// Computes all layers for the rows' input tokens.
    pub(super) fn record(self, tape: &mut Tape) {
        let config = self.model.config();
        let hidden = config.hidden_size;
        tape.x.resize(self.rows.len() * hidden, 0.0);
        let tokens = self.rows.tokens();
        for (row, token) in tape.x.chunks_exact_mut(hidden).zip(tokens) {
            self.model.embed(*token, row);
        }
        let run = AdapterRun {
            rows: 0..self.rows.len(),
            adapter: self.adapter.packed(self.model.compute()),
        };
        let pass = LayerPass {
            threads: self.threads,
            model: self.model,
            places: self.rows.places(),
            positions: self.rows.positions(),
            sequences: self.rows.sequences(),
            runs: &[run],
            keep: true,
        };
        let empty = LayerCache::new(config.num_kv_heads, config.head_dim);
        let mut caches = vec![empty; self.rows.sequences().len()];
        let mut caches: Vec<&mut LayerCache> = caches.iter_mut().collect();
        tape.layers
            .resize_with(config.num_layers, LayerBuffers::default);
        for (index, layer) in tape.layers.iter_mut().enumerate() {
            pass.run(index, &mut tape.x, layer, &mut tape.work, &mut caches);
        }
    }
}
