//! The learner's engine: gradients accumulate over `forward_backward`, `optim_step` uses them up.
//!
//! Forward and backward read the *published* adapter, the very values that samplers hold; only
//! the optimiser knows the masters. A batch is cut into micro-batches of whole sequences; each is
//! computed from zero, by one thread or by all, and their gradients are added in the order of the
//! batch. So the number of threads changes no bit of a gradient.

use std::sync::Arc;

use super::adamw::AdamParams;
use super::arena::{Arena, Moments, flatten};
use super::batch::Datum;
use super::cut::Cut;
use super::gradients::Gradients;
use super::loss::{Loss, LossMetrics, LossSums};
use super::memory::{MEMORY_UNLIMITED, MemoryPlan, Sizes, Wave, plan};
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
    grads: Gradients,
    published: Arc<Adapter>,
    workers: Vec<Worker>,
    micro_batch_rows: usize,
    sizes: Sizes,
    memory_budget: u64,
    /// Whether a batch that needs more than the budget raises it.
    budget_yields: bool,
    /// Whether one has.
    budget_raised: bool,
    plan: Option<MemoryPlan>,
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
        let sizes = Sizes::of(&model, &adapter, threads.count());
        let names = adapter.tensors().map(|t| (t.module_name(), t.shape));
        Ok(Self {
            frozen: Frozen::of(&model),
            arena,
            names: names.collect(),
            grads: Gradients::new(adapter.num_values()),
            moments: Moments::new(flatten(&adapter)),
            published: Arc::new(adapter),
            workers: (0..threads.count()).map(|_| Worker::default()).collect(),
            sizes,
            model,
            threads,
            micro_batch_rows: MICRO_BATCH_ROWS,
            memory_budget: MEMORY_UNLIMITED,
            budget_yields: false,
            budget_raised: false,
            plan: None,
        })
    }

    /// The same with micro-batches of at most `rows` positions. Gradients of different sizes differ
    /// by roundings: keep the size within a run.
    #[must_use]
    pub fn with_micro_batch_rows(mut self, rows: usize) -> Self {
        self.micro_batch_rows = rows;
        self
    }

    /// The same with a bound of what training may use beside the model's weights: adapter,
    /// optimiser and activations. Where they need more, fewer micro-batches are computed side by
    /// side and layers are computed twice; no bit of a result depends on it. Without this,
    /// [`MEMORY_UNLIMITED`].
    #[must_use]
    pub fn with_memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = bytes;
        (self.budget_yields, self.budget_raised) = (false, false);
        // What they hold was made under another budget.
        self.workers.fill_with(Worker::default);
        self
    }

    /// The same with a bound that is an estimate, not a promise to anybody: a batch that does not
    /// fit is computed by the tightest plan instead of being refused. What that needs is the bound
    /// from then on, and [`MemoryPlan::budget_raised`] tells.
    #[must_use]
    pub fn with_memory_estimate(self, bytes: u64) -> Self {
        Self {
            budget_yields: true,
            ..self.with_memory_budget(bytes)
        }
    }

    /// How the last batch was computed; `None` before the first one.
    #[must_use]
    pub const fn memory_plan(&self) -> Option<MemoryPlan> {
        self.plan
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
    /// A datum is malformed, or the memory does not suffice (nothing changed), or the loss or a
    /// gradient is not finite (`LOSS_NONFINITE`: all accumulated gradients are dropped).
    pub fn forward_backward(
        &mut self,
        data: &[Datum],
        loss: &Loss,
    ) -> Result<StepOutput, EngineError> {
        for datum in data {
            datum.check(self.model.config())?;
        }
        let mut cut = Cut::of(self.model.config(), data, self.micro_batch_rows);
        self.plan_waves(&mut cut)?;
        // Until the first wave makes room, there is what the last batch left.
        let held = self.workers.iter().map(|worker| worker.bytes(&self.sizes));
        let held_bytes = self.sizes.common_bytes(&cut.demands) + held.sum::<u64>();
        self.plan = MemoryPlan::of(&self.sizes, &cut, self.memory_budget, held_bytes);
        if let Some(plan) = &mut self.plan {
            plan.budget_raised = self.budget_raised;
        }
        let computed = self.accumulate(data, loss, &cut);
        if computed.is_err() {
            self.grads.clear();
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

    /// Plans how a batch is computed. One that is refused leaves no trace: its longest sequence
    /// would weigh on all that come after it.
    fn plan_waves(&mut self, cut: &mut Cut) -> Result<(), EngineError> {
        let mut sizes = self.sizes.clone();
        sizes.expect(&cut.demands);
        let mut planned = plan(&sizes, &cut.demands, self.memory_budget);
        if let (Err(EngineError::MemoryBudget { needed_bytes, .. }), true) =
            (&planned, self.budget_yields)
        {
            (self.memory_budget, self.budget_raised) = (*needed_bytes, true);
            planned = plan(&sizes, &cut.demands, self.memory_budget);
        }
        cut.waves = planned?;
        self.sizes = sizes;
        Ok(())
    }

    /// Frees the buffers of earlier micro-batches if they would not leave enough for a wave.
    fn make_room(&mut self, cut: &Cut, wave: &Wave) {
        let demands = &cut.demands[wave.micro_batches.clone()];
        let common = self.sizes.common_bytes(&cut.demands);
        let bytes = |workers: &[Worker]| {
            let workers = workers.iter().enumerate().map(|(i, worker)| {
                demands.get(i).map_or_else(
                    || worker.bytes(&self.sizes),
                    |demand| {
                        let demand = worker.demand_with(*demand);
                        self.sizes.worker_bytes(demand, wave.layers_kept)
                    },
                )
            });
            common + workers.sum::<u64>()
        };
        let mut needed = bytes(&self.workers);
        if needed > self.memory_budget {
            self.workers.fill_with(Worker::default);
            needed = bytes(&self.workers);
        }
        debug_assert!(needed <= self.memory_budget, "the plan keeps the budget");
        if let Some(plan) = &mut self.plan {
            plan.bytes = plan.bytes.max(needed);
        }
    }

    /// Runs all micro-batches; returns the log-probabilities per datum.
    fn accumulate(
        &mut self,
        data: &[Datum],
        loss: &Loss,
        cut: &Cut,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut logprobs = Vec::with_capacity(data.len());
        for (index, wave) in cut.waves.iter().enumerate() {
            self.make_room(cut, wave);
            self.run(data, loss, cut, wave)?;
            let workers = &mut self.workers[..wave.micro_batches.len()];
            for worker in &mut *workers {
                logprobs.append(&mut worker.logprobs);
            }
            let parts: Vec<&[f32]> = workers.iter().map(|w| w.grads.as_slice()).collect();
            let last = index + 1 == cut.waves.len();
            self.grads.add(&self.threads, &parts, last);
        }
        if self.grads.norm().is_finite() {
            Ok(logprobs)
        } else {
            let what = "the gradient".to_owned();
            Err(EngineError::LossNonfinite { what })
        }
    }

    /// Runs the micro-batches of a wave: each on a thread, or a single one on all of them.
    fn run(
        &mut self,
        data: &[Datum],
        loss: &Loss,
        cut: &Cut,
        wave: &Wave,
    ) -> Result<(), EngineError> {
        let shared = Shared {
            threads: &self.threads,
            model: &self.model,
            frozen: &self.frozen,
            adapter: &self.published,
            arena: &self.arena,
            loss,
        };
        let workers = &mut self.workers[..wave.micro_batches.len()];
        let parallel = workers.len() > 1;
        let work = workers.iter_mut().zip(wave.micro_batches.clone());
        let mut work: Vec<_> = work.map(|(worker, i)| (worker, i, Ok(()))).collect();
        for_each_mut(
            &self.threads,
            parallel,
            &mut work,
            |_, (worker, i, result)| {
                let (bundles, data) = cut.micro_batch(*i, data);
                let allowed = (cut.demands[*i], wave.layers_kept);
                *result = worker.run(shared, bundles, data, allowed);
            },
        );
        work.into_iter().try_for_each(|(_, _, result)| result)
    }

    /// Updates the masters with the accumulated gradients, publishes the result and clears the
    /// gradients.
    ///
    /// # Errors
    ///
    /// A setting makes no sense; nothing changed.
    pub fn optim_step(&mut self, params: &AdamParams) -> Result<OptimOutput, EngineError> {
        params.check()?;
        let grad_norm = self.grads.norm();
        let clip_coef = params.clip_coef(grad_norm);
        // Nobody else holds the old copy in a loop without samplers: it is then written in place.
        let published = Arc::make_mut(&mut self.published);
        let (threads, grads) = (&self.threads, self.grads.values());
        self.moments
            .apply(threads, params, clip_coef, grads, published);
        self.grads.clear();
        Ok(OptimOutput {
            grad_norm,
            clip_coef,
            step: self.moments.step,
        })
    }

    /// The accumulated gradients, in the adapter's order of tensors; zeros after a step.
    pub fn grads(&self) -> impl Iterator<Item = NamedGrad<'_>> {
        let lengths = self.names.iter().map(|(_, shape)| shape[0] * shape[1]);
        let named = self.names.iter().zip(self.grads.slices(lengths));
        named.map(|((name, shape), values)| NamedGrad {
            name,
            shape: *shape,
            values,
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
        self.grads.clear();
        let mut rest = self.moments.master.as_slice();
        for tensor in Arc::make_mut(&mut self.published).values_mut() {
            let (values, after) = rest.split_at(tensor.len());
            tensor.copy_from_slice(values);
            rest = after;
        }
        Ok(())
    }
}
