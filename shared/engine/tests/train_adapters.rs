//! The learner's promises for any adapter: every choice of sites and ranks, on odd shapes.

mod random_model;

use std::sync::Arc;

use random_model::{Noise, ODD_SHAPES, Shape, models};
use volley_engine::adapter::{Adapter, LoraConfig, Target};
use volley_engine::cpu::Isa;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::score::score;
use volley_engine::train::{Datum, Loss, Trainer};

const LOSS: Loss = Loss::ImportanceSampling;

/// Settings of an adapter that is somewhere, of a rank from 1 to 256.
fn any_settings(noise: &mut Noise) -> LoraConfig {
    let rank = [1, 2, 5, 7, 16, 31, 64, 256][noise.below(8)];
    let targets = Target::ALL.into_iter().filter(|_| noise.below(2) == 0);
    let targets: Vec<Target> = targets.collect();
    LoraConfig {
        rank,
        alpha: 1.0 + noise.below(2 * rank) as f32,
        rslora: noise.below(2) == 0,
        lm_head: targets.is_empty() || noise.below(3) > 0,
        targets,
    }
}

/// Sequences of any tokens with the sampler's log-probabilities, in groups with common prompts.
fn any_data(model: &Model, adapter: &Adapter, noise: &mut Noise) -> Vec<Datum> {
    let vocab = model.config().vocab_size;
    let mut data = Vec::new();
    for _ in 0..3 {
        let prompt = noise.tokens(1 + data.len() * 4, vocab);
        for length in [5, 1, 14] {
            let tokens = [prompt.as_slice(), &noise.tokens(length, vocab)].concat();
            let scores = score(model, Some(adapter), &tokens, &Threads::new(1));
            let targets = prompt.len()..tokens.len();
            let weights = (1..tokens.len()).map(|t| f32::from(u8::from(targets.contains(&t))));
            data.push(Datum {
                sampled_logprobs: scores.expect("it fits"),
                advantages: (1..tokens.len()).map(|_| noise.symmetric()).collect(),
                weights: weights.collect(),
                tokens,
            });
        }
    }
    data
}

#[test]
fn any_adapter_on_odd_shapes_keeps_the_contract() {
    let gspo = Loss::Gspo {
        clip_low_threshold: 0.9,
        clip_high_threshold: 1.1,
    };
    let mut noise = Noise::new(77);
    let mut heads = 0;
    for (name, _, model) in models() {
        let (model, config) = (Arc::new(model), any_settings(&mut noise));
        heads += usize::from(config.lm_head);
        let adapter = random_model::adapter(&model, &config, noise.next());
        let data = any_data(&model, &adapter, &mut noise);
        for loss in [LOSS, gspo] {
            let mut expected = None;
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let threads = Threads::with_isa(threads, isa);
                    let trainer = Trainer::new(Arc::clone(&model), adapter.clone(), threads);
                    let trainer = trainer.expect("they fit").with_micro_batch_rows(40);
                    let grads = grads_of_equal_logprobs(trainer, &data, &loss);
                    let expected = expected.get_or_insert_with(|| grads.clone());
                    assert!(grads == *expected, "{name} {config:?} {}", isa.name());
                }
            }
        }
    }
    assert!((8..16).contains(&heads), "{heads} of 16");
}

/// The bits of all gradients, after a look at the log-probabilities.
fn grads_of_equal_logprobs(mut trainer: Trainer, data: &[Datum], loss: &Loss) -> Vec<u32> {
    let output = trainer.forward_backward(data, loss);
    for (datum, logprobs) in data.iter().zip(&output.expect("it is finite").logprobs) {
        let pairs = logprobs.iter().zip(&datum.sampled_logprobs);
        for ((got, due), weight) in pairs.zip(&datum.weights) {
            assert!(*weight == 0.0 || got.to_bits() == due.to_bits());
        }
    }
    let grads = trainer.grads().flat_map(|grad| grad.values);
    grads.map(|g| g.to_bits()).collect()
}

#[test]
fn gradients_of_the_output_matrix_go_on_from_chunk_to_chunk() {
    // Logits of so large a vocabulary are computed 64 rows at a time.
    let shape = Shape {
        vocab: 5003,
        ..ODD_SHAPES[0]
    };
    let model = Arc::new(shape.model(3));
    let config = LoraConfig {
        lm_head: true,
        ..LoraConfig::all_linear(7, 9.0)
    };
    let adapter = random_model::adapter(&model, &config, 5);
    let mut noise = Noise::new(8);
    let data: Vec<Datum> = (0..10)
        .flat_map(|_| any_data(&model, &adapter, &mut noise))
        .collect();
    let trainer = |threads| {
        let trainer = Trainer::new(Arc::clone(&model), adapter.clone(), Threads::new(threads));
        trainer.expect("they fit").with_micro_batch_rows(4096)
    };
    let whole = grads_of_equal_logprobs(trainer(1), &data, &LOSS);
    assert_eq!(whole, grads_of_equal_logprobs(trainer(3), &data, &LOSS));
    let mut apart = trainer(2);
    for datum in &data {
        let output = apart.forward_backward(std::slice::from_ref(datum), &LOSS);
        output.expect("it is finite");
    }
    let mut whole = whole.iter().map(|bits| f32::from_bits(*bits));
    let names: Vec<&str> = apart.grads().map(|grad| grad.name).collect();
    assert_eq!(
        names[names.len() - 2..],
        ["lm_head.lora_A", "lm_head.lora_B"]
    );
    for grad in apart.grads() {
        let together: Vec<f32> = whole.by_ref().take(grad.values.len()).collect();
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
        };
        let error = norm(&mut together.iter().zip(grad.values).map(|(a, b)| a - b));
        let due = norm(&mut grad.values.iter().copied());
        assert!(error <= 2e-5 * due, "{}: {error:e} of {due:e}", grad.name);
    }
}
