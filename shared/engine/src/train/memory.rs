//! How a batch is computed within a budget of memory.
//!
//! A layer leaves about 17 vectors per row for its backward pass. Where that is too much, only the
//! last layers keep them: they are what the backward pass reads first. The layers before keep
//! their input alone and are run again, by the same code, when the backward pass reaches them
//! (Chen et al. 2016, arXiv 1604.06174). So no plan changes a bit of a result; it costs at most
//! one more forward pass.
//!
//! Threads come first: with fewer micro-batches side by side, threads wait in every part that one
//! of them computes alone, and that costs more than the layers' second run.

use std::ops::Range;

use super::attention;
use super::backward;
use super::batch::Datum;
use super::cut::Cut;
use super::head;
use super::matmul::Packing;
use super::packing::Bundle;
use crate::adapter::{Adapter, Site, Target};
use crate::config::{Compute, ModelConfig};
use crate::cpu::attention::score_bytes;
use crate::error::EngineError;
use crate::kv::LayerCache;
use crate::model::{LayerBuffers, Model, PackedAdapter, Work};

/// The budget of a trainer that was given none. The engine does not ask the system what it has;
/// whoever starts a trainer does.
pub const MEMORY_UNLIMITED: u64 = u64::MAX;

/// Tables with an entry per position: tokens and places (16 bytes), loss tokens (48), pieces of
/// adapters (15), log-probabilities (4), all but the last in vectors that may double as they grow,
/// and are then there twice.
const TABLE_BYTES_PER_POSITION: u64 = 256;
/// Tables with an entry per sequence or datum: rows, caches, log-probabilities.
const TABLE_BYTES_PER_SEQUENCE: u64 = 512;
/// Tables with an entry per tensor or per block of the optimiser, and whatever has a few entries.
const TABLE_BYTES_PER_TENSOR: u64 = 512;
const TABLE_BYTES: u64 = 64 << 10;

/// What decides how large a micro-batch's buffers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Rows of its forward pass.
    pub(super) rows: usize,
    /// Positions of its data, which may share rows.
    positions: usize,
    /// Positions of the longest sequence.
    longest: usize,
    /// Sequences, shared prefixes among them.
    sequences: usize,
    /// Bytes of one layer's keys and values.
    cache_bytes: u64,
    /// Loss tokens.
    targets: usize,
}

impl Demand {
    /// The demand of some data, which are the members of `bundles`.
    pub(super) fn of(model: &ModelConfig, bundles: &[Bundle], data: &[Datum]) -> Self {
        let mut demand = Self::default();
        let mut data = data.iter();
        for bundle in bundles {
            demand.rows += bundle.rows;
            demand.sequence(model, bundle.prefix);
            for datum in data.by_ref().take(bundle.members) {
                demand.sequence(model, datum.rows());
                demand.positions += datum.rows();
                demand.targets += datum.weights.iter().filter(|w| **w != 0.0).count();
            }
        }
        demand
    }

    fn sequence(&mut self, model: &ModelConfig, positions: usize) {
        self.sequences += 1;
        self.longest = self.longest.max(positions);
        self.cache_bytes += LayerCache::bytes_of(model.num_kv_heads, model.head_dim, positions);
    }

    /// Buffers that were made for one and grown for the other serve both.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            positions: self.positions.max(other.positions),
            longest: self.longest.max(other.longest),
            sequences: self.sequences.max(other.sequences),
            cache_bytes: self.cache_bytes.max(other.cache_bytes),
            targets: self.targets.max(other.targets),
        }
    }
}

/// Sizes of model and adapter that the buffers follow.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    model: ModelConfig,
    compute: Compute,
    threads: usize,
    rank: usize,
    /// Rank of the output matrix's adapter, 0 without one.
    head_rank: usize,
    /// Adapted linear layers of the layer that has most.
    adapted: usize,
    adapter_values: u64,
    adapter_tensors: u64,
    packed_bytes: u64,
    /// Positions of the longest sequence so far: threads keep the scores' buffers.
    longest: usize,
}

impl Sizes {
    pub(super) fn of(model: &Model, adapter: &Adapter, threads: usize) -> Self {
        let adapted = |layer| {
            let all = Target::ALL.iter();
            all.filter(|target| adapter.pair(Site::Layer(layer, **target)).is_some())
                .count()
        };
        Self {
            model: model.config().clone(),
            compute: model.compute(),
            threads,
            rank: adapter.rank(),
            head_rank: adapter.pair(Site::LmHead).map_or(0, |_| adapter.rank()),
            adapted: (0..adapter.num_layers()).map(adapted).max().unwrap_or(0),
            adapter_values: adapter.num_values() as u64,
            adapter_tensors: adapter.tensors().count() as u64,
            packed_bytes: PackedAdapter::bytes(adapter, model.compute()),
            longest: 0,
        }
    }

    /// Takes note of a batch that is to come.
    pub(super) fn expect(&mut self, batch: &[Demand]) {
        let longest = batch.iter().map(|demand| demand.longest);
        self.longest = longest.fold(self.longest, usize::max);
    }

    /// What a trainer has whatever it computes: masters, two moments, gradients, the published
    /// copy (twice while others still hold the last one), its packed form, the attention's scores;
    /// and what remains of a batch when its micro-batches are done.
    pub(super) fn common_bytes(&self, batch: &[Demand]) -> u64 {
        let result = |demand: &Demand| {
            size_of::<f32>() * demand.positions + size_of::<Vec<f32>>() * demand.sequences
        };
        let results = batch.iter().map(result).sum::<usize>();
        let scores = self.threads * score_bytes(self.longest);
        let arrays = 6 * size_of::<f32>() as u64 * self.adapter_values;
        let tables = TABLE_BYTES_PER_TENSOR * (self.adapter_tensors + self.adapter_values / 16_384);
        arrays + self.packed_bytes + (scores + results) as u64 + tables + TABLE_BYTES
    }

    /// What one micro-batch needs, its own gradients included.
    pub(super) fn worker_bytes(&self, demand: Demand, layers_kept: usize) -> u64 {
        let config = &self.model;
        debug_assert!(
            (1..=config.num_layers).contains(&layers_kept),
            "one layer at least"
        );
        let layer = LayerBuffers::values_per_row(config, self.adapted * self.rank);
        let inputs = (config.num_layers - layers_kept) * config.hidden_size;
        // The residual stream and the derivative by it.
        let streams = 2 * config.hidden_size;
        let values = layers_kept * layer
            + inputs
            + streams
            + Work::values_per_row(config, self.compute)
            + backward::Scratch::values_per_row(config, self.compute, self.rank);
        let rows = (demand.rows * values * size_of::<f32>()) as u64;
        let head = head::Scratch::bytes(config, self.compute, self.head_rank, demand.targets);
        let attention = attention::Scratch::bytes(config.head_dim, demand.longest);
        let tables = TABLE_BYTES_PER_POSITION * demand.rows.max(demand.positions) as u64
            + TABLE_BYTES_PER_SEQUENCE * demand.sequences as u64
            + (size_of::<LayerBuffers>() * config.num_layers + Packing::BYTES) as u64
            + TABLE_BYTES;
        let grads = size_of::<f32>() as u64 * self.adapter_values;
        grads + rows + demand.cache_bytes + head + attention + tables
    }
}

/// Micro-batches that are computed side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wave {
    pub(super) micro_batches: Range<usize>,
    /// Layers, from the last, that keep what their backward pass reads; at least one.
    pub(super) layers_kept: usize,
}

/// How a batch was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What was allowed.
    pub budget_bytes: u64,
    /// Whether that is more than was given, because this batch or one before did not fit: see
    /// [`Trainer::with_memory_estimate`](super::Trainer::with_memory_estimate).
    pub budget_raised: bool,
    /// What training needs beside the model's weights, at most: adapter, optimiser, activations.
    pub bytes: u64,
    /// Layers of the model.
    pub layers: usize,
    /// Fewest layers that kept what their backward pass reads; the others were computed twice.
    pub layers_kept: usize,
    /// Micro-batches.
    pub micro_batches: usize,
    /// Most micro-batches that were computed at the same time.
    pub side_by_side: usize,
    /// Rows of the largest micro-batch.
    pub rows: usize,
}

/// Cuts the micro-batches of a batch into waves that keep within `budget_bytes`: as many side by
/// side as there are threads, and as many layers kept as then fit. Micro-batches that are fewer
/// than the threads are computed one after the other, each by all threads.
///
/// # Errors
///
/// Not even one micro-batch with one layer at a time fits.
pub(super) fn plan(
    sizes: &Sizes,
    batch: &[Demand],
    budget_bytes: u64,
) -> Result<Vec<Wave>, EngineError> {
    let common = sizes.common_bytes(batch);
    let bytes = |wave: &[Demand], layers_kept| {
        let workers = wave.iter();
        let workers = workers.map(|demand| sizes.worker_bytes(*demand, layers_kept));
        common + workers.sum::<u64>()
    };
    let alone = |demand: &Demand| bytes(std::slice::from_ref(demand), 1);
    let needed_bytes = batch.iter().map(alone).max().unwrap_or(0);
    if needed_bytes > budget_bytes {
        return Err(EngineError::MemoryBudget {
            budget_bytes,
            needed_bytes,
            rows: batch.iter().map(|demand| demand.rows).max().unwrap_or(0),
        });
    }
    let mut waves = Vec::new();
    let mut first = 0;
    while first < batch.len() {
        let left = &batch[first..];
        let most = if left.len() < sizes.threads {
            1
        } else {
            sizes.threads
        };
        let fits = |count: &usize| bytes(&left[..*count], 1) <= budget_bytes;
        let count = (1..=most).rev().find(fits).unwrap_or(1);
        let fits = |layers_kept: &usize| bytes(&left[..count], *layers_kept) <= budget_bytes;
        let layers_kept = (1..=sizes.model.num_layers).rev().find(fits).unwrap_or(1);
        waves.push(Wave {
            micro_batches: first..first + count,
            layers_kept,
        });
        first += count;
    }
    Ok(waves)
}

impl MemoryPlan {
    /// Sums up a plan before anything of it is computed; none of an empty batch.
    pub(super) fn of(sizes: &Sizes, cut: &Cut, budget_bytes: u64, held_bytes: u64) -> Option<Self> {
        let Cut { demands, waves, .. } = cut;
        Some(Self {
            budget_bytes,
            budget_raised: false,
            bytes: held_bytes,
            layers: sizes.model.num_layers,
            layers_kept: waves.iter().map(|wave| wave.layers_kept).min()?,
            micro_batches: demands.len(),
            side_by_side: waves.iter().map(|wave| wave.micro_batches.len()).max()?,
            rows: demands.iter().map(|demand| demand.rows).max()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const MODEL: &str = r#"{
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 6, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 160, "vocab_size": 500, "tie_word_embeddings": true,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "hidden_act": "silu"
    }"#;

    fn sizes(threads: usize) -> Sizes {
        let config = ModelConfig::parse(Path::new("config.json"), MODEL.as_bytes());
        let model = Model::synthetic(config.expect("valid"), Compute::Bf16, 1).expect("small");
        let lora = crate::adapter::LoraConfig::all_linear(8, 16.0);
        let adapter = Adapter::init(model.config(), &lora, 1).expect("valid");
        Sizes::of(&model, &adapter, threads)
    }

    /// Single sequences of these rows.
    fn batch(sizes: &Sizes, rows: &[usize]) -> Vec<Demand> {
        let demand = |rows: &usize| {
            let bundle = Bundle {
                members: 1,
                prefix: 0,
                rows: *rows,
            };
            let datum = Datum {
                tokens: vec![0; rows + 1],
                weights: vec![1.0; *rows],
                ..Datum::default()
            };
            Demand::of(&sizes.model, &[bundle], &[datum])
        };
        rows.iter().map(demand).collect()
    }

    fn bytes(sizes: &Sizes, batch: &[Demand], wave: &Wave) -> u64 {
        let workers = batch[wave.micro_batches.clone()].iter();
        let workers = workers.map(|demand| sizes.worker_bytes(*demand, wave.layers_kept));
        sizes.common_bytes(batch) + workers.sum::<u64>()
    }

    fn needed(sizes: &Sizes, batch: &[Demand]) -> u64 {
        match plan(sizes, batch, 0) {
            Err(EngineError::MemoryBudget { needed_bytes, .. }) => needed_bytes,
            other => panic!("nothing fits 0 bytes: {other:?}"),
        }
    }

    #[test]
    fn without_a_bound_everything_is_kept_and_every_thread_is_busy() {
        let sizes = sizes(3);
        let waves = plan(&sizes, &batch(&sizes, &[100; 7]), MEMORY_UNLIMITED).expect("no bound");
        let sides = waves.iter().map(|wave| wave.micro_batches.clone());
        assert_eq!(sides.collect::<Vec<_>>(), [0..3, 3..6, 6..7]);
        assert!(waves.iter().all(|wave| wave.layers_kept == 6));
        assert!(plan(&sizes, &[], 1).is_ok_and(|waves| waves.is_empty()));
    }

    #[test]
    fn every_plan_keeps_the_budget_covers_the_batch_and_grows_with_it() {
        let sizes = sizes(3);
        for rows in [vec![900; 9], vec![1000, 30, 700, 2500, 40, 40, 999, 3]] {
            let batch = batch(&sizes, &rows);
            let least = needed(&sizes, &batch);
            let mut before = (0, 0);
            for percent in 100..=800 {
                let budget = least * percent / 100;
                let waves = plan(&sizes, &batch, budget).expect("at least the least");
                let flat: Vec<usize> = waves.iter().flat_map(|w| w.micro_batches.clone()).collect();
                assert_eq!(flat, (0..rows.len()).collect::<Vec<_>>());
                for wave in &waves {
                    assert!(bytes(&sizes, &batch, wave) <= budget, "{budget} {wave:?}");
                }
                let first = (waves[0].micro_batches.len(), waves[0].layers_kept);
                assert!(first >= before, "{budget}: {first:?} after {before:?}");
                before = first;
            }
            assert_eq!(before, (3, 6));
        }
    }

    #[test]
    fn what_the_error_asks_for_is_enough_and_no_more_than_that() {
        let sizes = sizes(2);
        let batch = batch(&sizes, &[64, 3000, 800]);
        let least = needed(&sizes, &batch);
        assert!(plan(&sizes, &batch, least).is_ok());
        let error = plan(&sizes, &batch, least - 1).expect_err("one byte is missing");
        assert_eq!(error.code(), "MEMORY_BUDGET");
        assert!(
            error.to_string().contains("training on 3000 rows"),
            "{error}"
        );
    }

    #[test]
    fn an_own_plan_is_made_for_each_wave() {
        let sizes = sizes(2);
        let batch = batch(&sizes, &[200, 200, 4000, 200, 200]);
        let budget = needed(&sizes, &batch);
        let waves = plan(&sizes, &batch, budget).expect("it fits");
        let of = |wave: &Wave| (wave.micro_batches.clone(), wave.layers_kept);
        let waves: Vec<_> = waves.iter().map(of).collect();
        assert_eq!(waves, [(0..2, 6), (2..3, 1), (3..5, 6)]);
    }
}
