//! The learner's engine: gradients accumulate over `forward_backward`, `optim_step` uses them up.
//!
//! Forward and backward read the *published* adapter, the very values that samplers hold; only
//! the optimiser knows the masters. A batch is cut into micro-batches of whole sequences; each is
//! computed from zero, by one thread or by all, and their gradients are added in the order of the
//! batch. So the number of threads changes no bit of a gradient.

use std::sync::Arc;

use super::adamw::AdamParams;
use super::arena::{Arena, Moments, flatten, norm};
use super::batch::Datum;
use super::loss::{Loss, LossMetrics, LossSums};
use super::packing::{bundles, micro_batches};
use super::state;
use super::weights::Frozen;
use super::worker::{Shared, Worker, loss_token, sequence_gap};
use crate::adapter::Adapter;
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;
use crate::error::EngineError;
use crate::model::Model;

/// Positions of one micro-batch. Large enough for whole tiles of every product, small enough that
/// what the layers leave behind (about 17 vectors of their width per position) stays bounded.
const MICRO_BATCH_ROWS: usize = 1024;

/// What a forward and backward pass reports.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// The loss, summed over all loss tokens.
    pub loss_sum: f64,
    /// The learner's log-probabilities, nats: `T` per datum, 0 where the weight is 0.
    pub logprobs: Vec<Vec<f32>>,
    /// Ratios, clips, distance to the sampler, entropy.
    pub metrics: LossMetrics,
}

/// What an optimiser step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimOutput {
    /// Global L2 norm of the accumulated gradient, before the clip.
    pub grad_norm: f64,
    /// The factor that the clip applied, at most 1.
    pub clip_coef: f64,
    /// Steps taken so far, this one included.
    pub step: u64,
}

/// A gradient, by the name of what it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NamedGrad<'a> {
    /// The module's path and the factor, as in `model.layers.0.self_attn.q_proj.lora_A`.
    pub name: &'a str,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row-major values.
    pub values: &'a [f32],
}

/// Trains one adapter on one model.
#[derive(Debug)]
pub struct Trainer {
    model: Arc<Model>,
    frozen: Frozen,
    threads: Threads,
    arena: Arena,
    names: Vec<(String, [usize; 2])>,
    moments: Moments,
    grads: Vec<f32>,
    published: Arc<Adapter>,
    workers: Vec<Worker>,
    micro_batch_rows: usize,
}

impl Trainer {
    /// A trainer whose masters start at the values of `adapter`.
    ///
    /// # Errors
    ///
    /// The adapter does not fit the model or is not finite.
    pub fn new(model: Arc<Model>, adapter: Adapter, threads: Threads) -> Result<Self, EngineError> {
        adapter.check_fits(model.config())?;
        adapter.check_finite()?;
        let arena = Arena::of(&adapter);
        let names = adapter.tensors().map(|t| (t.module_name(), t.shape));
        Ok(Self {
            frozen: Frozen::of(&model),
            arena,
            names: names.collect(),
            grads: vec![0.0; adapter.num_values()],
            moments: Moments::new(flatten(&adapter)),
            published: Arc::new(adapter),
            workers: (0..threads.count()).map(|_| Worker::default()).collect(),
            model,
            threads,
            micro_batch_rows: MICRO_BATCH_ROWS,
        })
    }

    /// The same with micro-batches of at most `rows` positions. Gradients of different sizes differ
    /// by roundings: keep the size within a run.
    #[must_use]
    pub fn with_micro_batch_rows(mut self, rows: usize) -> Self {
        self.micro_batch_rows = rows;
        self
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The threads.
    #[must_use]
    pub const fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The adapter that forward and backward read: the start values, or the last step's.
    #[must_use]
    pub fn published(&self) -> Arc<Adapter> {
        Arc::clone(&self.published)
    }

    /// Steps taken.
    #[must_use]
    pub const fn step(&self) -> u64 {
        self.moments.step
    }

    /// Computes the loss of a batch and adds its gradients to the accumulated ones.
    ///
    /// # Errors
    ///
    /// A datum is malformed (nothing changed), or the loss or a gradient is not finite
    /// (`LOSS_NONFINITE`: all accumulated gradients are dropped).
    pub fn forward_backward(
        &mut self,
        data: &[Datum],
        loss: &Loss,
    ) -> Result<StepOutput, EngineError> {
        for datum in data {
            datum.check(self.model.config())?;
        }
        let computed = self.accumulate(data, loss);
        if computed.is_err() {
            self.grads.fill(0.0);
        }
        let logprobs = computed?;
        let mut sums = LossSums::default();
        for (datum, logprobs) in data.iter().zip(&logprobs) {
            let pairs = logprobs.iter().zip(&datum.sampled_logprobs);
            let masked = pairs
                .zip(&datum.weights)
                .filter(|(_, weight)| **weight != 0.0);
            let gap = sequence_gap(masked.map(|((lp, q), _)| (*lp, *q)));
            for (t, logprob) in logprobs.iter().enumerate() {
                let token = loss_token(datum, t, *logprob, gap);
                if token.weight != 0.0 {
                    sums.add(loss, token, loss.term(token));
                }
            }
        }
        Ok(StepOutput {
            loss_sum: sums.loss(),
            logprobs,
            metrics: sums.metrics(),
        })
    }

    /// Runs all micro-batches; returns the log-probabilities per datum.
    fn accumulate(&mut self, data: &[Datum], loss: &Loss) -> Result<Vec<Vec<f32>>, EngineError> {
        let bundles = bundles(data.iter().map(Datum::inputs), self.micro_batch_rows);
        // First datum of each bundle, and the end.
        let mut firsts = vec![0];
        firsts.extend(bundles.iter().scan(0, |sum, bundle| {
            *sum += bundle.members;
            Some(*sum)
        }));
        let runs = micro_batches(&bundles, self.micro_batch_rows);
        let shared = Shared {
            threads: &self.threads,
            model: &self.model,
            frozen: &self.frozen,
            adapter: &self.published,
            arena: &self.arena,
            loss,
        };
        let mut logprobs = Vec::with_capacity(data.len());
        let count = self.workers.len();
        let (waves, rest) = runs.split_at(runs.len() / count * count);
        // Whole waves give each thread a micro-batch; what is left is shared by all threads, one
        // micro-batch after the other.
        for wave in waves.chunks(count).chain(rest.chunks(1)) {
            let workers = &mut self.workers[..wave.len()];
            let parallel = workers.len() > 1;
            let mut work: Vec<_> = workers.iter_mut().zip(wave).map(|w| (w, Ok(()))).collect();
            for_each_mut(
                &self.threads,
                parallel,
                &mut work,
                |_, ((worker, run), result)| {
                    let data = &data[firsts[run.start]..firsts[run.end]];
                    *result = worker.run(shared, &bundles[(*run).clone()], data);
                },
            );
            for ((worker, _), result) in work {
                result?;
                logprobs.append(&mut worker.logprobs);
                for (sum, grad) in self.grads.iter_mut().zip(&worker.grads) {
                    *sum += grad;
                }
            }
        }
        if norm(&self.threads, &self.grads).is_finite() {
            Ok(logprobs)
        } else {
            let what = "the gradient".to_owned();
            Err(EngineError::LossNonfinite { what })
        }
    }

    /// Updates the masters with the accumulated gradients, publishes the result and clears the
    /// gradients.
    ///
    /// # Errors
    ///
    /// A setting makes no sense; nothing changed.
    pub fn optim_step(&mut self, params: &AdamParams) -> Result<OptimOutput, EngineError> {
        params.check()?;
        let grad_norm = norm(&self.threads, &self.grads);
        let clip_coef = params.clip_coef(grad_norm);
        // Nobody else holds the old copy in a loop without samplers: it is then written in place.
        let published = Arc::make_mut(&mut self.published);
        let (threads, grads) = (&self.threads, &mut self.grads);
        self.moments
            .apply(threads, params, clip_coef, grads, published);
        Ok(OptimOutput {
            grad_norm,
            clip_coef,
            step: self.moments.step,
        })
    }

    /// The accumulated gradients, in the adapter's order of tensors.
    pub fn grads(&self) -> impl Iterator<Item = NamedGrad<'_>> {
        let mut rest = self.grads.as_slice();
        self.names.iter().map(move |(name, shape)| {
            let (values, after) = rest.split_at(shape[0] * shape[1]);
            rest = after;
            NamedGrad {
                name,
                shape: *shape,
                values,
            }
        })
    }

    /// Masters, moments and step count as bytes. Accumulated gradients are not part of it: save
    /// after a step.
    #[must_use]
    pub fn save_state(&self) -> Vec<u8> {
        state::save(&self.moments, &self.published)
    }

    /// Goes on, to the bit, from what [`Self::save_state`] returned. Accumulated gradients are
    /// dropped, and the published copy becomes the restored masters'.
    ///
    /// # Errors
    ///
    /// The bytes are damaged or belong to an adapter of other settings; nothing changed.
    pub fn restore_state(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.moments = state::restore(bytes, &self.published)?;
        self.grads.fill(0.0);
        let mut rest = self.moments.master.as_slice();
        for tensor in Arc::make_mut(&mut self.published).values_mut() {
            let (values, after) = rest.split_at(tensor.len());
            tensor.copy_from_slice(values);
            rest = after;
        }
        Ok(())
    }
}
