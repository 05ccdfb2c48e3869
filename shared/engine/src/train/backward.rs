//! Backward through the transformer's layers, last to first, for one micro-batch.
//!
//! `dx` is the derivative of the loss by the residual stream, `[T, hidden]`. Each half of a layer
//! reads it as the derivative of its own result, and adds what flows back through its norm:
//! `d(x + f(norm(x))) = dx + norm'(f'(dx))`, where f may end with a norm of its own. Results of
//! cheap operators (norms, the gated product) are computed again instead of kept.

use super::arena::Arena;
use super::attention::{self, Inputs, Outputs};
use super::linear::{self, Linear, Low};
use super::matmul::Start;
use super::ops::{gate_mul, rms_norm_add, rms_norm_in_place, unrotate};
use super::rows::Rows;
use super::tape::{Forward, Tape};
use super::weights::Frozen;
use crate::adapter::{Adapter, Site, Target};
use crate::buffers::{copy, sized};
use crate::config::{Compute, ModelConfig};
use crate::cpu::ops;
use crate::cpu::threads::Threads;
use crate::model::{LayerBuffers, LayerWeights, LowRank, Model};

/// Everything that stays the same during a backward pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) threads: &'a Threads,
    pub(super) model: &'a Model,
    pub(super) frozen: &'a Frozen,
    /// The published copy that the forward read.
    pub(super) adapter: &'a Adapter,
    pub(super) arena: &'a Arena,
}

impl<'a> Context<'a> {
    /// A matrix with its adapter, if it has one; then `h` is the forward's `x A^T`.
    pub(super) fn linear(
        self,
        site: Site,
        x: &'a [f32],
        dy: &'a [f32],
        h: &'a [f32],
    ) -> Linear<'a> {
        let Self {
            model,
            frozen,
            adapter,
            arena,
            ..
        } = self;
        let low = adapter.pair(site).zip(arena.place(site));
        Linear {
            weights: frozen.matrix(site),
            x,
            dy,
            low: low.map(|(pair, place)| Low {
                pair,
                place,
                h,
                rank: adapter.rank(),
                scale: adapter.scale(),
            }),
            compute: model.compute(),
        }
    }
}

/// Buffers of one worker, kept between micro-batches.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    linear: linear::Scratch,
    attention: attention::Scratch,
    /// The input of a group of linear layers, and the derivative by it.
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    /// The derivative by a branch before its norm.
    dbranch: Vec<f32>,
    inner: Vec<f32>,
    dinner: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Scratch {
    /// Values per row, but for the attention's: they follow the longest sequence.
    pub(super) fn values_per_row(config: &ModelConfig, compute: Compute, rank: usize) -> usize {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let norms = if config.branch_norms { 3 } else { 2 };
        let (q, kv) = (config.q_size(), config.kv_size());
        norms * hidden
            + wide
            + wide.max(q)
            + (q + 2 * kv)
            + 2 * rank
            + compute.pairs(wide.max(hidden).max(q).max(kv))
    }
}

/// Adds the gradients of all layers to `grads`, from the derivative `dx` by the last layer's
/// result. Gate and up become their own derivatives; `dx` ends up meaningless.
pub(super) fn backward(
    context: Context<'_>,
    forward: Forward<'_>,
    tape: &mut Tape,
    dx: &mut [f32],
    grads: &mut [f32],
    scratch: &mut Scratch,
) {
    for index in (0..context.model.layers().len()).rev() {
        let layer = Layer {
            context,
            index,
            rows: forward.rows,
        };
        let tape = forward.layer(tape, index);
        layer.feed_forward(tape, dx, grads, scratch);
        layer.attention(tape, dx, grads, scratch);
    }
}

#[derive(Clone, Copy)]
struct Layer<'a> {
    context: Context<'a>,
    index: usize,
    rows: &'a Rows,
}

impl Layer<'_> {
    fn feed_forward(
        self,
        tape: &mut LayerBuffers,
        dx: &mut [f32],
        grads: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let threads = self.context.threads;
        let activation = self.context.model.config().activation;
        let (weight, eps) = self.norm(|layer| &layer.ffn_norm);
        let branch_norm = self.weights().ffn_branch_norm.as_deref();
        let dy = self.branch(branch_norm, &tape.ffn_branch, dx, &mut scratch.dbranch);
        let Scratch {
            linear,
            normed,
            dnormed,
            inner: product,
            dinner: dproduct,
            ..
        } = scratch;
        let LayerBuffers {
            mid, gate, up, low, ..
        } = tape;
        let (product, dproduct) = (sized(product, gate.len()), sized(dproduct, gate.len()));
        let (normed, dnormed) = (sized(normed, mid.len()), sized(dnormed, mid.len()));

        ops::gate_mul(threads, activation, gate, up, product);
        let down = self.linear(Target::Down, product, dy, low);
        down.backward(threads, linear, grads, Some((dproduct, Start::Zero)));
        gate_mul(threads.isa(), activation, gate, up, dproduct);

        ops::rms_norm(threads, mid, weight, eps, normed);
        let into = Some((&mut *dnormed, Start::Zero));
        self.linear(Target::Gate, normed, gate, low)
            .backward(threads, linear, grads, into);
        let into = Some((&mut *dnormed, Start::Old));
        self.linear(Target::Up, normed, up, low)
            .backward(threads, linear, grads, into);
        rms_norm_add(threads.isa(), dx, dnormed, mid, weight, eps);
    }

    fn attention(
        self,
        tape: &LayerBuffers,
        dx: &mut [f32],
        grads: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let threads = self.context.threads;
        let (weight, eps) = self.norm(|layer| &layer.attn_norm);
        let LayerBuffers {
            x, attended, low, ..
        } = tape;
        sized(&mut scratch.dinner, attended.len());
        let branch_norm = self.weights().attn_branch_norm.as_deref();
        let dy = self.branch(branch_norm, &tape.attn_branch, dx, &mut scratch.dbranch);
        let output = self.linear(Target::O, attended, dy, low);
        let into = Some((scratch.dinner.as_mut_slice(), Start::Zero));
        output.backward(threads, &mut scratch.linear, grads, into);
        self.scores(tape, scratch);

        let Scratch {
            linear,
            normed,
            dnormed,
            dq,
            dk,
            dv,
            ..
        } = scratch;
        let (normed, dnormed) = (sized(normed, x.len()), sized(dnormed, x.len()));
        ops::rms_norm(threads, x, weight, eps, normed);
        let parts = [
            (Target::Q, dq, Start::Zero),
            (Target::K, dk, Start::Old),
            (Target::V, dv, Start::Old),
        ];
        for (target, dy, start) in parts {
            // Nothing below the first layer learns.
            let into = (self.index > 0).then_some((&mut *dnormed, start));
            self.linear(target, normed, dy, low)
                .backward(threads, linear, grads, into);
        }
        if self.index > 0 {
            rms_norm_add(threads.isa(), dx, dnormed, x, weight, eps);
        }
    }

    /// From the derivative by the attention's result (`scratch.dinner`) to those by queries, keys
    /// and values before norm and rotation.
    fn scores(self, tape: &LayerBuffers, scratch: &mut Scratch) {
        let Context { threads, model, .. } = self.context;
        let config = model.config();
        let isa = threads.isa();
        let Scratch {
            attention,
            dinner: dout,
            dq,
            dk,
            dv,
            ..
        } = scratch;
        for (derivative, length) in [
            (&mut *dq, tape.q.len()),
            (&mut *dk, tape.k.len()),
            (&mut *dv, tape.v.len()),
        ] {
            sized(derivative, length).fill(0.0);
        }
        let heads = model.heads(self.index);
        let inputs = Inputs {
            q: &tape.q,
            k: &tape.k,
            v: &tape.v,
            out: &tape.attended,
            dout,
        };
        let mut outputs = Outputs { dq, dk, dv };
        for sequence in self.rows.sequences() {
            attention::backward(isa, heads, sequence, inputs, &mut outputs, attention);
        }
        let Outputs { dq, dk, .. } = outputs;
        let weights = self.weights();
        for (derivative, raw, norm) in [
            (dq, &tape.q_raw, &weights.q_norm),
            (dk, &tape.k_raw, &weights.k_norm),
        ] {
            let width = derivative.len() / self.rows.len();
            let positions = self.rows.positions();
            for (row, position) in derivative.chunks_exact_mut(width).zip(positions) {
                let (cos, sin) = model.rope(self.index).at(*position as usize);
                for head in row.chunks_exact_mut(config.head_dim) {
                    unrotate(isa, head, cos, sin);
                }
            }
            if let Some(weight) = norm {
                rms_norm_in_place(isa, derivative, raw, weight, config.rms_norm_eps);
            }
        }
    }

    fn weights(&self) -> &LayerWeights {
        &self.context.model.layers()[self.index]
    }

    /// A norm of this layer with its epsilon.
    fn norm(&self, weight: impl Fn(&LayerWeights) -> &Vec<f32>) -> (&[f32], f32) {
        let eps = self.context.model.config().rms_norm_eps;
        (weight(self.weights()), eps)
    }

    /// From the derivative by what a branch adds to the residual stream to that by the branch's
    /// own result: the same, unless a norm stands between.
    fn branch<'a>(
        &self,
        norm: Option<&[f32]>,
        branch: &[f32],
        dx: &'a [f32],
        dbranch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let Some(weight) = norm else { return dx };
        let Context { threads, model, .. } = self.context;
        copy(dbranch, dx);
        let eps = model.config().rms_norm_eps;
        rms_norm_in_place(threads.isa(), dbranch, branch, weight, eps);
        dbranch
    }

    /// A linear layer of this layer with its adapter.
    fn linear<'a>(
        &'a self,
        target: Target,
        x: &'a [f32],
        dy: &'a [f32],
        low_rank: &'a LowRank,
    ) -> Linear<'a> {
        let site = Site::Layer(self.index, target);
        self.context.linear(site, x, dy, &low_rank[target.index()])
    }
}
