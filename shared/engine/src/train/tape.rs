//! The learner's forward: the sampler's layers, the last ones keeping what the backward pass needs.
//!
//! The others keep their input, and are run again when the backward pass comes to them. It is the
//! same code with the same input, so what they leave behind is the same to the bit. A test compares
//! the log-probabilities with those of token-by-token decoding, to the bit.

use super::rows::Rows;
use crate::adapter::Adapter;
use crate::buffers::{copy, sized};
use crate::cpu::threads::Threads;
use crate::kv::LayerCache;
use crate::model::{AdapterRun, LayerBuffers, LayerPass, Model, Work};

/// What a forward leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct Tape {
    /// Of the last layers, in their order. The first of these serves the layers before, too.
    kept: Vec<LayerBuffers>,
    /// `[T, hidden]` of each layer before them.
    inputs: Vec<Vec<f32>>,
    /// `[T, hidden]`, before the final norm.
    pub(super) x: Vec<f32>,
    work: Work,
    /// Keys and values of the layer that runs, one per sequence.
    caches: Vec<LayerCache>,
}

impl Tape {
    /// Layers whose buffers exist.
    pub(super) const fn layers_kept(&self) -> usize {
        self.kept.len()
    }

    /// Frees what only this micro-batch needed.
    pub(super) fn finish(&mut self) {
        self.caches.clear();
    }
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
    /// Computes all layers for the rows' input tokens. The last `layers_kept` keep what the
    /// backward pass reads.
    pub(super) fn record(self, tape: &mut Tape, layers_kept: usize) {
        let config = self.model.config();
        let (hidden, layers) = (config.hidden_size, config.num_layers);
        debug_assert!((1..=layers).contains(&layers_kept), "one layer at least");
        let tokens = self.rows.tokens();
        let x = sized(&mut tape.x, tokens.len() * hidden);
        for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.model.embed(*token, row);
        }
        let first_kept = layers - layers_kept;
        tape.kept.resize_with(layers_kept, LayerBuffers::default);
        tape.inputs.resize_with(first_kept, Vec::new);
        tape.caches.clear();
        tape.caches.extend(self.rows.sequences().iter().map(|rows| {
            let tokens = rows.prefix.len() + rows.own.len();
            LayerCache::with_room(config.num_kv_heads, config.head_dim, tokens)
        }));
        for index in 0..layers {
            if let Some(input) = tape.inputs.get_mut(index) {
                copy(input, &tape.x);
            }
            let kept = index.checked_sub(first_kept);
            self.run(tape, index, kept.unwrap_or(0), kept.is_some());
        }
    }

    /// What a layer has left behind, after the layers behind it were asked for. Where it was not
    /// kept, the layer runs again.
    pub(super) fn layer(self, tape: &mut Tape, index: usize) -> &mut LayerBuffers {
        if let Some(kept) = index.checked_sub(tape.inputs.len()) {
            return &mut tape.kept[kept];
        }
        tape.x.copy_from_slice(&tape.inputs[index]);
        self.run(tape, index, 0, true);
        &mut tape.kept[0]
    }

    /// Replaces the tape's `x` by a layer's result.
    fn run(self, tape: &mut Tape, index: usize, buffers: usize, keep: bool) {
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
            keep,
        };
        let Tape {
            kept,
            x,
            work,
            caches,
            ..
        } = tape;
        let mut caches: Vec<&mut LayerCache> = caches.iter_mut().collect();
        pass.run(index, x, &mut kept[buffers], work, &mut caches);
    }
}
