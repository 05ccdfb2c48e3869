//! Whatever the memory, a step has the same bits.

mod random_model;

use std::sync::Arc;

use random_model::{Noise, Shape, models};
use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig, Target};
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::train::{AdamParams, Datum, Loss, MEMORY_UNLIMITED, Trainer};

/// Groups with a common prompt, and sequences of very different lengths, one of them longer than a
/// micro-batch.
fn data(shape: &Shape) -> Vec<Datum> {
    let mut noise = Noise::new(7);
    let prompt = noise.tokens(20, shape.vocab);
    let lengths = [3, 5, 2, 9, 30, 14, 170, 40, 21, 55];
    let datum = |(i, length): (usize, &usize)| {
        let own = noise.tokens(*length, shape.vocab);
        let tokens = if i < 4 {
            [prompt.as_slice(), &own].concat()
        } else {
            own
        };
        let rows = tokens.len() - 1;
        Datum {
            sampled_logprobs: (0..rows).map(|_| noise.symmetric() - 3.0).collect(),
            advantages: (0..rows).map(|_| noise.symmetric()).collect(),
            weights: (0..rows).map(|t| f32::from(t % 3 != 0)).collect(),
            tokens,
        }
    };
    lengths.iter().enumerate().map(datum).collect()
}

/// An adapter whose factors are both not zero.
fn adapter(model: &Model, rank: usize, targets: &[Target]) -> Adapter {
    let config = LoraConfig {
        targets: targets.to_vec(),
        ..LoraConfig::all_linear(rank, 8.0)
    };
    let mut noise = Noise::new(3);
    let fresh = Adapter::init(model.config(), &config, 5).expect("the settings are valid");
    let moved = |a: f32, noise: &mut Noise| a + 0.1 * noise.symmetric();
    let bytes = random_model::with_values(&fresh.to_bytes(), |a| moved(a, &mut noise));
    Adapter::from_bytes(model.config(), &bytes).expect("its own format")
}

/// Log-probabilities, gradients and the adapter after two steps.
fn steps(trainer: &mut Trainer, data: &[Datum]) -> (Vec<Vec<f32>>, Vec<u32>, [u8; 32]) {
    let loss = Loss::Ppo {
        clip_low_threshold: 0.5,
        clip_high_threshold: 1.6,
    };
    let mut logprobs = Vec::new();
    for _ in 0..2 {
        let output = trainer.forward_backward(data, &loss).expect("finite");
        logprobs.extend(output.logprobs);
    }
    let grads = trainer.grads().flat_map(|grad| grad.values.iter());
    let grads = grads.map(|value| value.to_bits()).collect();
    trainer.optim_step(&AdamParams::default()).expect("valid");
    (logprobs, grads, trainer.published().digest())
}

fn least(trainer: Trainer, data: &[Datum]) -> u64 {
    let mut trainer = trainer.with_memory_budget(0);
    let before = trainer.save_state();
    let error = trainer.forward_backward(data, &Loss::CrossEntropy);
    assert_eq!(trainer.save_state(), before);
    match error {
        Err(EngineError::MemoryBudget { needed_bytes, .. }) => needed_bytes,
        other => panic!("nothing fits 0 bytes: {other:?}"),
    }
}

#[test]
fn no_budget_changes_a_bit_of_a_step() {
    for (name, shape, model) in models() {
        let (model, data) = (Arc::new(model), data(&shape));
        for (rank, targets) in [(3, &Target::ALL[..]), (1, &[Target::V, Target::Down])] {
            let adapter = adapter(&model, rank, targets);
            let trainer = |threads| {
                Trainer::new(Arc::clone(&model), adapter.clone(), Threads::new(threads))
                    .expect("they fit")
                    .with_micro_batch_rows(64)
            };
            let due = steps(&mut trainer(1), &data);
            let least = least(trainer(1), &data);
            let mut kept = Vec::new();
            for (threads, budget) in [
                (1, least),
                (2, least),
                (1, least + least / 10),
                (2, least + least / 4),
                (3, 2 * least),
                (2, MEMORY_UNLIMITED),
            ] {
                let mut trainer = trainer(threads).with_memory_budget(budget);
                if budget == least && threads > 1 {
                    // Threads have buffers of their own, if small ones.
                    let error = trainer.forward_backward(&data, &Loss::CrossEntropy);
                    let Err(EngineError::MemoryBudget { needed_bytes, .. }) = error else {
                        continue;
                    };
                    trainer = trainer.with_memory_budget(needed_bytes);
                }
                assert_eq!(steps(&mut trainer, &data), due, "{name} {threads} {budget}");
                let plan = trainer.memory_plan().expect("a batch was computed");
                assert!(plan.bytes <= plan.budget_bytes, "{plan:?}");
                kept.push(plan.layers_kept);
            }
            assert_eq!((kept[0], kept.last()), (1, Some(&shape.layers)), "{name}");
        }
    }
}

/// What the error of a refused batch asks for.
fn refused(trainer: &mut Trainer, data: &[Datum]) -> u64 {
    match trainer.forward_backward(data, &Loss::CrossEntropy) {
        Err(EngineError::MemoryBudget { needed_bytes, .. }) => needed_bytes,
        other => panic!("it does not fit: {other:?}"),
    }
}

#[test]
fn a_refused_batch_leaves_no_trace() {
    let (_, shape, model) = models().swap_remove(2);
    let (model, data) = (Arc::new(model), data(&shape));
    let adapter = adapter(&model, 3, &Target::ALL);
    let trainer = Trainer::new(model, adapter, Threads::new(2)).expect("they fit");
    let mut trainer = trainer.with_memory_budget(0);
    let short = &data[..2];
    let due = refused(&mut trainer, short);
    assert!(refused(&mut trainer, &data) > due);
    assert_eq!(refused(&mut trainer, short), due);
    assert_eq!(trainer.memory_plan(), None);
}

#[test]
fn an_estimate_that_is_too_small_gives_the_tightest_plan() {
    let (_, shape, model) = models().swap_remove(2);
    let (model, data) = (Arc::new(model), data(&shape));
    let adapter = adapter(&model, 3, &Target::ALL);
    let fresh =
        || Trainer::new(Arc::clone(&model), adapter.clone(), Threads::new(2)).expect("they fit");
    let due = steps(&mut fresh(), &data);
    let least = least(fresh(), &data);
    let mut trainer = fresh().with_memory_estimate(1000);
    assert_eq!(steps(&mut trainer, &data), due);
    let plan = trainer.memory_plan().expect("a batch was computed");
    assert!(plan.budget_raised && plan.bytes <= least, "{plan:?}");
    assert_eq!((plan.budget_bytes, plan.layers_kept), (least, 1));

    let mut trainer = fresh().with_memory_estimate(least);
    assert_eq!(steps(&mut trainer, &data), due);
    let plan = trainer.memory_plan().expect("a batch was computed");
    assert!(!plan.budget_raised && plan.budget_bytes == least);
    // A budget is a promise again.
    refused(&mut trainer.with_memory_budget(1000), &data);
}

#[test]
fn a_trainer_may_change_its_budget_between_batches() {
    let (_, shape, model) = models().swap_remove(2);
    let (model, data) = (Arc::new(model), data(&shape));
    let adapter = adapter(&model, 3, &Target::ALL);
    let fresh =
        || Trainer::new(Arc::clone(&model), adapter.clone(), Threads::new(2)).expect("they fit");
    let mut free = fresh();
    let mut tight = fresh();
    let parts = [&data[..], &data[5..], &data[..2]];
    let budget = parts.map(|part| least(fresh(), part)).into_iter().max();
    let budget = budget.expect("there are parts");
    for (part, budget) in [
        (parts[0], MEMORY_UNLIMITED),
        (parts[1], budget),
        (parts[0], budget),
        (parts[2], budget),
    ] {
        let loss = Loss::CrossEntropy;
        tight = tight.with_memory_budget(budget);
        let due = free.forward_backward(part, &loss).expect("finite");
        let got = tight.forward_backward(part, &loss).expect("finite");
        assert_eq!(got, due);
        let plan = tight.memory_plan().expect("a batch was computed");
        assert!(plan.bytes <= budget, "{plan:?}");
        assert!(free.grads().eq(tight.grads()));
    }
}
