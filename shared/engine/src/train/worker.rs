//! One micro-batch from tokens to gradients.

use super::arena::Arena;
use super::backward::{self, Context};
use super::batch::Datum;
use super::head;
use super::loss::{Loss, LossToken};
use super::memory::{Demand, Sizes};
use super::packing::Bundle;
use super::rows::Rows;
use super::tape::{Forward, Tape};
use super::weights::Frozen;
use crate::adapter::Adapter;
use crate::buffers::sized;
use crate::cpu::threads::Threads;
use crate::error::EngineError;
use crate::model::Model;

/// What every micro-batch of a batch reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    pub(super) threads: &'a Threads,
    pub(super) model: &'a Model,
    pub(super) frozen: &'a Frozen,
    pub(super) adapter: &'a Adapter,
    pub(super) arena: &'a Arena,
    pub(super) loss: &'a Loss,
}

/// Buffers for one micro-batch at a time, and what came out of the last one.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// Gradients of the last micro-batch alone, in the arena's order.
    pub(super) grads: Vec<f32>,
    /// Log-probabilities of its loss tokens, `T` per datum; 0 elsewhere.
    pub(super) logprobs: Vec<Vec<f32>>,
    tape: Tape,
    dx: Vec<f32>,
    head: head::Scratch,
    backward: backward::Scratch,
    /// What the buffers have grown to.
    held: Demand,
}

impl Worker {
    /// What the buffers grow to with a further micro-batch.
    pub(super) fn demand_with(&self, demand: Demand) -> Demand {
        self.held.union(demand)
    }

    /// What the buffers hold; nothing before the first micro-batch.
    pub(super) fn bytes(&self, sizes: &Sizes) -> u64 {
        if self.held == Demand::default() {
            return 0;
        }
        sizes.worker_bytes(self.held, self.tape.layers_kept().max(1))
    }

    /// Computes log-probabilities and gradients of `data`, which are the members of `bundles` and
    /// need `demand`.
    pub(super) fn run(
        &mut self,
        shared: Shared<'_>,
        bundles: &[Bundle],
        data: &[Datum],
        (demand, layers_kept): (Demand, usize),
    ) -> Result<(), EngineError> {
        self.held = self.held.union(demand);
        let Shared {
            threads,
            model,
            frozen,
            adapter,
            arena,
            loss,
        } = shared;
        let rows = Rows::of(bundles, data.iter().map(Datum::inputs));
        sized(&mut self.grads, arena.len()).fill(0.0);
        let mut targets = targets(data, &rows);
        self.logprobs = data.iter().map(|datum| vec![0.0; datum.rows()]).collect();
        if targets.is_empty() {
            return Ok(());
        }

        let tape = &mut self.tape;
        let forward = Forward {
            threads,
            model,
            adapter,
            rows: &rows,
        };
        forward.record(tape, layers_kept);

        let context = Context {
            threads,
            model,
            frozen,
            adapter,
            arena,
        };
        let dx = sized(&mut self.dx, tape.x.len());
        let (grads, head) = (&mut self.grads, &mut self.head);
        head::forward_backward(context, loss, &mut targets, &tape.x, dx, grads, head)?;
        let scratch = &mut self.backward;
        backward::backward(context, forward, tape, dx, &mut self.grads, scratch);
        tape.finish();

        let mut targets = targets.iter();
        for (logprobs, datum) in self.logprobs.iter_mut().zip(data) {
            for (logprob, weight) in logprobs.iter_mut().zip(&datum.weights) {
                if *weight != 0.0 {
                    let target = targets.next().expect("one target per loss token");
                    *logprob = target.loss.logprob;
                }
            }
        }
        Ok(())
    }
}

/// The loss tokens of a micro-batch, in order.
fn targets(data: &[Datum], rows: &Rows) -> Vec<head::Target> {
    let mut targets = Vec::new();
    for (index, datum) in data.iter().enumerate() {
        for t in 0..datum.rows() {
            let loss = loss_token(datum, t, 0.0, 0.0);
            if loss.weight != 0.0 {
                targets.push(head::Target {
                    datum: index,
                    row: rows.row_of(index, t),
                    token: datum.tokens[t + 1],
                    loss,
                });
            }
        }
    }
    targets
}

/// Token `t` of a datum as the loss sees it.
pub(super) fn loss_token(datum: &Datum, t: usize, logprob: f32, sequence_gap: f32) -> LossToken {
    LossToken {
        logprob,
        sampled_logprob: datum.sampled_logprobs[t],
        advantage: datum.advantages[t],
        weight: datum.weights[t],
        sequence_gap,
    }
}

/// Mean of `lp - q` over the loss tokens of a sequence, given as pairs; summed in f64, in order.
pub(super) fn sequence_gap(tokens: impl Iterator<Item = (f32, f32)>) -> f32 {
    let (mut sum, mut count) = (0.0, 0u32);
    for (logprob, sampled) in tokens {
        sum += f64::from(logprob) - f64::from(sampled);
        count += 1;
    }
    (sum / f64::from(count.max(1))) as f32
}
