//! The end of the forward and the beginning of the backward: final norm, output matrix, loss.
//!
//! Only loss tokens come here. Their logits exist for a chunk of rows at a time: the chunk's
//! log-probabilities, loss terms and derivatives are computed before the next chunk begins. The
//! gradient of the output matrix's adapter goes on, chunk after chunk, as one chain.

use super::backward::Context;
use super::linear;
use super::loss::{Loss, LossToken};
use super::matmul::{Packing, Start};
use super::ops::{log_softmax, rms_norm_add};
use super::worker::sequence_gap;
use crate::adapter::Site;
use crate::buffers::sized;
use crate::config::{Compute, ModelConfig};
use crate::cpu::softmax::{log_softmax_at, max_and_ln_sum};
use crate::error::EngineError;
use crate::model::{AdapterRun, UnembedBuffers, logit_rows};

/// A loss token: where it is predicted and what the loss needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Its datum in the micro-batch; targets of one datum stand together.
    pub(super) datum: usize,
    /// Row of the micro-batch that predicts it.
    pub(super) row: usize,
    /// The token.
    pub(super) token: u32,
    /// Sampler's log-probability, advantage, weight; what the forward knows is filled in here.
    pub(super) loss: LossToken,
}

/// Buffers that every chunk uses again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Vec<f32>,
    unembed: UnembedBuffers,
    logits: Vec<f32>,
    dnormed: Vec<f32>,
    dx: Vec<f32>,
    linear: linear::Scratch,
}

impl Scratch {
    /// Bytes for a micro-batch with so many loss tokens; `rank` is that of the output matrix's
    /// adapter, 0 without one.
    pub(super) fn bytes(
        config: &ModelConfig,
        compute: Compute,
        rank: usize,
        targets: usize,
    ) -> u64 {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let low = 3 * rank + compute.pairs(rank);
        let row = 4 * hidden + vocab + compute.pairs(hidden) + compute.pairs(vocab) + low;
        let rows = targets.min(logit_rows(vocab)) * row * size_of::<f32>();
        (rows + Packing::BYTES) as u64
    }
}

/// Computes the log-probability of every target from the last layer's result `x[T, hidden]`, and
/// writes the derivative of the loss by `x` to `dx` (0 where nothing is predicted). The gradients
/// of the output matrix's adapter are added to `grads`.
pub(super) fn forward_backward(
    context: Context<'_>,
    loss: &Loss,
    targets: &mut [Target],
    x: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), EngineError> {
    dx.fill(0.0);
    let rows_max = logit_rows(context.model.config().vocab_size);
    if loss.reads_sequence() {
        for targets in targets.chunks_mut(rows_max) {
            logprobs(context, targets, x, scratch);
        }
        for sequence in targets.chunk_by_mut(|a, b| a.datum == b.datum) {
            let tokens = sequence
                .iter()
                .map(|t| (t.loss.logprob, t.loss.sampled_logprob));
            let gap = sequence_gap(tokens);
            sequence
                .iter_mut()
                .for_each(|target| target.loss.sequence_gap = gap);
        }
    }
    for targets in targets.chunks_mut(rows_max) {
        logits(context, targets, x, scratch);
        let vocab = context.model.config().vocab_size;
        for (target, logits) in targets
            .iter_mut()
            .zip(scratch.logits.chunks_exact_mut(vocab))
        {
            let token = target.token as usize;
            let (max, ln_sum) = max_and_ln_sum(logits);
            target.loss.logprob = (logits[token] - max) - ln_sum;
            let term = loss.term(target.loss);
            if !term.is_finite() {
                let LossToken {
                    logprob,
                    sampled_logprob,
                    advantage,
                    ..
                } = target.loss;
                let what = format!(
                    "the {} loss of a token (log-probability {logprob}, sampler's \
                     {sampled_logprob}, advantage {advantage})",
                    loss.name()
                );
                return Err(EngineError::LossNonfinite { what });
            }
            log_softmax(
                context.threads.isa(),
                logits,
                (max, ln_sum),
                token,
                term.dlogprob,
            );
        }
        derivative(context, targets, dx, grads, scratch);
    }
    Ok(())
}

/// Fills in the log-probabilities of some targets.
fn logprobs(context: Context<'_>, targets: &mut [Target], x: &[f32], scratch: &mut Scratch) {
    logits(context, targets, x, scratch);
    let vocab = context.model.config().vocab_size;
    for (target, logits) in targets.iter_mut().zip(scratch.logits.chunks_exact(vocab)) {
        target.loss.logprob = log_softmax_at(logits, target.token);
    }
}

/// Gathers the targets' rows and computes their logits.
fn logits(context: Context<'_>, targets: &[Target], x: &[f32], scratch: &mut Scratch) {
    let model = context.model;
    let config = model.config();
    let hidden = config.hidden_size;
    let picked = sized(&mut scratch.x, targets.len() * hidden);
    for (target, to) in targets.iter().zip(picked.chunks_exact_mut(hidden)) {
        to.copy_from_slice(&x[target.row * hidden..][..hidden]);
    }
    sized(&mut scratch.logits, targets.len() * config.vocab_size);
    let run = AdapterRun {
        rows: 0..targets.len(),
        adapter: context.adapter.packed(model.compute()),
    };
    let Scratch {
        x, unembed, logits, ..
    } = scratch;
    model.unembed(context.threads, x, &[run], unembed, logits);
}

/// Adds the derivative by `x` to the targets' rows, and the adapter's to `grads`, from the
/// derivative by the logits, which is what the logits have become.
fn derivative(
    context: Context<'_>,
    targets: &[Target],
    dx: &mut [f32],
    grads: &mut [f32],
    scratch: &mut Scratch,
) {
    let Scratch {
        x,
        unembed,
        logits: dlogits,
        dnormed,
        dx: gathered,
        linear,
    } = scratch;
    let dnormed = sized(dnormed, x.len());
    let UnembedBuffers { normed, wide, .. } = unembed;
    let output = context.linear(Site::LmHead, normed, dlogits, &wide.low);
    output.backward(context.threads, linear, grads, Some((dnormed, Start::Zero)));
    let gathered = sized(gathered, x.len());
    gathered.fill(0.0);
    let config = context.model.config();
    let (isa, eps) = (context.threads.isa(), config.rms_norm_eps);
    rms_norm_add(isa, gathered, dnormed, x, context.model.final_norm(), eps);
    let hidden = config.hidden_size;
    for (target, values) in targets.iter().zip(gathered.chunks_exact(hidden)) {
        // Several sequences may go on differently after the same row.
        let dx = &mut dx[target.row * hidden..][..hidden];
        dx.iter_mut()
            .zip(values)
            .for_each(|(dx, value)| *dx += value);
    }
}
