//! A training step allocates no more than its plan says, and the plan keeps the budget.
#![allow(unsafe_code, reason = "an allocator that counts")]

mod random_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use random_model::{Noise, Shape};
use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::{Architecture, Compute};
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::safetensors::Dtype;
use volley_engine::train::{AdamParams, Datum, Loss, MEMORY_UNLIMITED, Trainer};

/// Bytes that are allocated, and the most there have been.
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came; the provided `realloc`
// and `alloc_zeroed` are made of these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that is due here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Sizes are multiples of sixteen: packed weights are as large as the matrices.
const SHAPE: Shape = Shape {
    architecture: Architecture::Gemma3,
    vocab: 1024,
    hidden: 96,
    ffn: 256,
    layers: 9,
    heads: 6,
    kv_heads: 2,
    head_dim: 32,
    tied: true,
    dtype: Dtype::F32,
};

/// The trainer's transposed copy of the weights, which no budget covers.
fn transposed_bytes(compute: Compute) -> usize {
    let (q, kv) = (
        SHAPE.heads * SHAPE.head_dim,
        SHAPE.kv_heads * SHAPE.head_dim,
    );
    let layer = SHAPE.hidden * (2 * q + 2 * kv + 3 * SHAPE.ffn);
    let values = SHAPE.layers * layer + SHAPE.vocab * SHAPE.hidden;
    match compute {
        Compute::F32 => 4 * values,
        Compute::Bf16 => 2 * values,
    }
}

fn data(lengths: &[usize]) -> Vec<Datum> {
    let mut noise = Noise::new(2);
    let datum = |length: &usize| Datum {
        tokens: noise.tokens(length + 1, SHAPE.vocab),
        sampled_logprobs: vec![-5.0; *length],
        advantages: vec![0.3; *length],
        weights: vec![1.0; *length],
    };
    lengths.iter().map(datum).collect()
}

/// Peak of a step and what was planned, without what is there in any case.
fn step(trainer: &mut Trainer, data: &[Datum], fixed: usize) -> (u64, u64) {
    PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
    let output = trainer.forward_backward(data, &Loss::CrossEntropy);
    drop(output.expect("finite"));
    // While somebody else reads the last version, the next one is written beside it.
    let read_elsewhere = trainer.published();
    trainer.optim_step(&AdamParams::default()).expect("valid");
    drop(read_elsewhere);
    let plan = trainer.memory_plan().expect("a batch was computed");
    assert!(plan.bytes <= plan.budget_bytes, "{plan:?}");
    let peak = (PEAK.load(Ordering::Relaxed) - fixed) as u64;
    assert!(peak <= plan.bytes, "{peak} bytes, {plan:?}");
    (peak, plan.bytes)
}

/// One test alone: others would allocate beside it.
#[test]
fn a_step_stays_within_its_budget() {
    let batches = [
        data(&[150, 140, 125, 155, 20, 20]),
        data(&[295; 3]),
        data(&[50; 9]),
    ];
    for compute in [Compute::F32, Compute::Bf16] {
        let model = Arc::new(SHAPE.model_as(4, compute));
        for (threads, lm_head) in [(1, false), (1, true), (2, false), (2, true)] {
            let lora = LoraConfig {
                lm_head,
                ..LoraConfig::all_linear(8, 16.0)
            };
            let trainer = || -> Trainer {
                let adapter = Adapter::init(model.config(), &lora, 1).expect("valid");
                let model: Arc<Model> = Arc::clone(&model);
                let threads = Threads::new(threads);
                let trainer = Trainer::new(model, adapter, threads).expect("they fit");
                trainer.with_micro_batch_rows(150)
            };
            let mut leasts = batches.iter().map(|data| {
                let mut trainer = trainer().with_memory_budget(0);
                match trainer.forward_backward(data, &Loss::CrossEntropy) {
                    Err(EngineError::MemoryBudget { needed_bytes, .. }) => needed_bytes,
                    other => panic!("nothing fits 0 bytes: {other:?}"),
                }
            });
            let least = leasts.by_ref().fold(0, u64::max);
            drop(leasts);
            let mut peaks = Vec::new();
            for budget in [least, least * 5 / 4, least * 2, MEMORY_UNLIMITED] {
                let before = NOW.load(Ordering::Relaxed);
                let mut trainer = trainer().with_memory_budget(budget);
                let fixed = before + transposed_bytes(compute);
                let mut most = 0;
                for data in batches.iter().chain(&batches[..1]) {
                    let (peak, planned) = step(&mut trainer, data, fixed);
                    // A prediction that is far too high would be kept, too, and be of no use.
                    assert!(peak * 2 > planned, "{peak} of {planned}");
                    most = most.max(peak);
                }
                peaks.push(most);
            }
            assert!(peaks.is_sorted() && peaks[0] * 2 < peaks[3], "{peaks:?}");
        }
    }
}
