//! What the learner promises to the bit, and what only differences can check.

mod fixture;
mod random_model;

use std::sync::Arc;

use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::decode::generate;
use volley_engine::model::Model;
use volley_engine::sampler::SamplingParams;
use volley_engine::score::{score, score_all};
use volley_engine::train::{AdamParams, Datum, Loss, NamedGrad, Trainer};

const LOSS: Loss = Loss::ImportanceSampling;

fn trainer(threads: usize) -> Trainer {
    let model = fixture::model();
    let adapter = fixture::adapter(&model, "adapter");
    Trainer::new(model, adapter, Threads::new(threads)).expect("they fit")
}

/// A trainer of the same model whose adapter is on the output matrix, too.
fn trainer_with_head(threads: usize) -> Trainer {
    let model = fixture::model();
    let config = LoraConfig {
        lm_head: true,
        ..LoraConfig::all_linear(5, 7.0)
    };
    let adapter = random_model::adapter(&model, &config, 4);
    Trainer::new(model, adapter, Threads::new(threads)).expect("they fit")
}

fn all_grads(trainer: &Trainer) -> Vec<f32> {
    trainer
        .grads()
        .flat_map(|grad| grad.values)
        .copied()
        .collect()
}

/// Sampled sequences as a learner gets them, with the sampler's own log-probabilities.
fn rollouts(trainer: &Trainer, count: u64) -> Vec<Datum> {
    let (model, adapter) = (trainer.model(), trainer.published());
    let params = SamplingParams::default();
    let rollout = |seed: u64| {
        let prompt: Vec<u32> = (0..3 + seed as u32 * 5 % 17)
            .map(|i| (i * 37 + 11) % 500)
            .collect();
        let length = 5 + seed as usize % 9;
        let threads = Threads::new(1);
        let got = generate(
            model,
            Some(&adapter),
            &prompt,
            length,
            &params,
            seed,
            &[],
            &threads,
        );
        let got = got.expect("it fits");
        let masked = prompt.len() - 1;
        let with_prompt = |values: &[f32]| [&vec![0.0; masked][..], values].concat();
        let advantage = if seed.is_multiple_of(2) { 0.7 } else { -0.4 };
        Datum {
            tokens: [prompt.as_slice(), &got.tokens].concat(),
            sampled_logprobs: with_prompt(&got.logprobs),
            advantages: with_prompt(&vec![advantage; got.tokens.len()]),
            weights: with_prompt(&vec![1.0; got.tokens.len()]),
        }
    };
    (0..count).map(rollout).collect()
}

#[test]
fn the_learner_computes_the_samplers_logprobs_to_the_bit() {
    for fixture in fixture::ALL {
        for compute in [Compute::F32, Compute::Bf16] {
            let model = Model::load_as(&fixture.dir(), compute).expect("it loads");
            for name in fixture.adapters() {
                let adapter = fixture.adapter(&model, &name);
                let model = Model::load_as(&fixture.dir(), compute).expect("it loads");
                let trainer = Trainer::new(Arc::new(model), adapter, Threads::new(2));
                check_logprobs(trainer.expect("they fit").with_micro_batch_rows(64));
            }
        }
    }
}

fn check_logprobs(mut trainer: Trainer) {
    let data = rollouts(&trainer, 12);
    let output = trainer
        .forward_backward(&data, &LOSS)
        .expect("it is finite");
    for (datum, logprobs) in data.iter().zip(&output.logprobs) {
        assert_eq!(&datum.sampled_logprobs, logprobs);
    }
    assert_eq!(output.metrics.drift_kl, 0.0);
    assert_eq!(output.metrics.logprob_gap_max, 0.0);
    assert_eq!(
        (output.metrics.ratio_min, output.metrics.ratio_max),
        (1.0, 1.0)
    );
}

#[test]
fn scores_of_many_are_the_scores_of_each() {
    let trainer = trainer(2);
    let data = rollouts(&trainer, 30);
    let long: Vec<u32> = (0..700).map(|i| i * 31 % 500).collect();
    let mut sequences: Vec<&[u32]> = data.iter().map(|datum| datum.tokens.as_slice()).collect();
    sequences.insert(7, &long);
    let (model, threads) = (trainer.model(), Threads::new(2));
    let together = score_all(model, None, &sequences, &threads).expect("they fit");
    assert_eq!(together.len(), sequences.len());
    for (tokens, scores) in sequences.iter().zip(together) {
        assert_eq!(
            scores,
            score(model, None, tokens, &Threads::new(1)).expect("it fits")
        );
    }
    sequences.push(&[1]);
    assert!(score_all(model, None, &sequences, &threads).is_err());
}

#[test]
fn a_score_is_the_samplers_logprob_to_the_bit() {
    let trainer = trainer(1);
    let adapter = trainer.published();
    for datum in rollouts(&trainer, 3) {
        let scores = score(
            trainer.model(),
            Some(&adapter),
            &datum.tokens,
            &Threads::new(2),
        );
        let scores = scores.expect("it fits");
        for ((got, due), weight) in scores
            .iter()
            .zip(&datum.sampled_logprobs)
            .zip(&datum.weights)
        {
            assert!(*weight == 0.0 || got == due, "{got} {due}");
        }
    }
}

/// Every rollout again with other tokens after its prompt, beside it: groups of three.
fn in_groups(data: &[Datum], model: &Model) -> Vec<Datum> {
    let policy = |datum: &Datum, shift: u32| {
        let mut other = datum.clone();
        let first = datum.weights.iter().position(|weight| *weight != 0.0);
        for token in &mut other.tokens[first.expect("a loss token") + 1..] {
            *token = (*token + shift) % 500;
        }
        let scores = score(model, None, &other.tokens, &Threads::new(1)).expect("it fits");
        other.sampled_logprobs = scores;
        other
            .advantages
            .iter_mut()
            .for_each(|a| *a *= 1.0 - shift as f32);
        other
    };
    (data.iter())
        .flat_map(|datum| [datum.clone(), policy(datum, 1), policy(datum, 3)])
        .collect()
}

#[test]
fn a_shared_prompt_changes_no_logprob_and_no_gradient() {
    for fixture in fixture::ALL {
        let model = fixture.model();
        let adapter = fixture.adapter(&model, "adapter");
        let trainer = || {
            Trainer::new(Arc::clone(&model), adapter.clone(), Threads::new(2)).expect("they fit")
        };
        let data = in_groups(&rollouts(&trainer(), 5), &model);
        let mut together = trainer();
        let whole = together
            .forward_backward(&data, &LOSS)
            .expect("it is finite");
        let mut apart = trainer();
        let mut logprobs = Vec::new();
        for datum in &data {
            let output = apart.forward_backward(std::slice::from_ref(datum), &LOSS);
            logprobs.extend(output.expect("it is finite").logprobs);
        }
        assert_eq!(whole.logprobs, logprobs, "{fixture:?}");
        for (a, b) in together.grads().zip(apart.grads()) {
            let error: f64 = (a.values.iter().zip(b.values))
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum();
            let due: f64 = b.values.iter().map(|b| f64::from(*b).powi(2)).sum();
            let (error, due) = (error.sqrt(), due.sqrt());
            assert!(
                error <= 2e-5 * due,
                "{fixture:?} {}: {error:e} of {due:e}",
                a.name
            );
        }
    }
}

#[test]
fn threads_change_no_bit_of_gradients_and_steps() {
    let mut results = Vec::new();
    for threads in [1, 2, 3] {
        let mut trainer = trainer(threads).with_micro_batch_rows(64);
        let data = rollouts(&trainer, 10);
        for _ in 0..2 {
            trainer
                .forward_backward(&data, &LOSS)
                .expect("it is finite");
        }
        let grads = all_grads(&trainer);
        trainer
            .optim_step(&AdamParams::default())
            .expect("the settings are valid");
        results.push((grads, trainer.published().digest()));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn gradients_begin_at_zero_after_a_step() {
    let params = AdamParams::default();
    let mut used = trainer(2);
    let data = rollouts(&used, 6);
    used.forward_backward(&data, &LOSS).expect("it is finite");
    assert!(all_grads(&used).iter().any(|grad| *grad != 0.0));
    used.optim_step(&params).expect("the settings are valid");
    assert!(all_grads(&used).iter().all(|grad| grad.to_bits() == 0));

    // A step without gradients is one with zeros, and a batch after a step is a first batch.
    let mut restored = trainer(2);
    restored.restore_state(&used.save_state()).expect("it fits");
    for trainer in [&mut used, &mut restored] {
        let step = trainer.optim_step(&params).expect("the settings are valid");
        assert_eq!(step.grad_norm, 0.0);
        trainer
            .forward_backward(&data, &LOSS)
            .expect("it is finite");
    }
    assert_eq!(all_grads(&used), all_grads(&restored));
    assert_eq!(used.save_state(), restored.save_state());
}

#[test]
fn a_restored_state_goes_on_to_the_bit() {
    let params = AdamParams {
        lr: 1e-3,
        weight_decay: 0.01,
        grad_clip_norm: 1.0,
        ..AdamParams::default()
    };
    for mut first in [trainer(2), trainer_with_head(2)] {
        check_restored(&mut first, &params);
    }
}

fn check_restored(first: &mut Trainer, params: &AdamParams) {
    let data = rollouts(first, 4);
    let step = |trainer: &mut Trainer| {
        trainer
            .forward_backward(&data, &LOSS)
            .expect("it is finite");
        trainer.optim_step(params).expect("the settings are valid")
    };
    step(first);
    step(first);
    let state = first.save_state();

    let fresh = Adapter::init(first.model().config(), first.published().config(), 9);
    let fresh = fresh.expect("the settings are valid");
    let mut second = Trainer::new(fixture::model(), fresh, Threads::new(1)).expect("it fits");
    second.forward_backward(&data, &LOSS).expect("it is finite");
    second.restore_state(&state).expect("it fits");
    assert_eq!(second.published(), first.published());
    assert!(all_grads(&second).iter().all(|grad| *grad == 0.0));
    for _ in 0..2 {
        assert_eq!(step(first), step(&mut second));
        assert_eq!(first.published().digest(), second.published().digest());
    }
    assert_eq!(first.save_state(), second.save_state());
}

#[test]
fn damaged_and_foreign_states_are_refused_and_change_nothing() {
    let mut trainer = trainer(1);
    let before = trainer.save_state();
    for length in (0..before.len()).step_by(before.len() / 23) {
        let error = trainer
            .restore_state(&before[..length])
            .expect_err("it is cut");
        assert_eq!(error.code(), "CHECKPOINT_INVALID");
    }
    let config = trainer.model().config();
    let other = Adapter::init(config, &LoraConfig::all_linear(4, 16.0), 1);
    let other = Trainer::new(fixture::model(), other.expect("valid"), Threads::new(1));
    let foreign = other.expect("it fits").save_state();
    assert!(trainer.restore_state(&foreign).is_err());
    let with_head = LoraConfig {
        lm_head: true,
        ..trainer.published().config().clone()
    };
    let with_head = Adapter::init(trainer.model().config(), &with_head, 1).expect("valid");
    let other = Trainer::new(fixture::model(), with_head, Threads::new(1));
    let foreign = other.expect("it fits").save_state();
    assert!(trainer.restore_state(&foreign).is_err());
    assert_eq!(trainer.save_state(), before);
}

#[test]
fn a_loss_that_is_not_finite_leaves_no_trace() {
    let mut trainer = trainer(2);
    let good = rollouts(&trainer, 3);
    let before = trainer.save_state();
    for (ratio, advantage) in [(-200.0, 1.0), (-1.0, f32::NAN), (-1.0, f32::INFINITY)] {
        let mut bad = good.clone();
        let last = bad[1].tokens.len() - 2;
        bad[1].sampled_logprobs[last] = ratio;
        bad[1].advantages[last] = advantage;
        trainer
            .forward_backward(&good, &LOSS)
            .expect("it is finite");
        let error = trainer
            .forward_backward(&bad, &LOSS)
            .expect_err("it is not finite");
        assert_eq!(error.code(), "LOSS_NONFINITE");
        assert!(all_grads(&trainer).iter().all(|grad| *grad == 0.0));
        assert_eq!(trainer.save_state(), before);
    }
    trainer
        .forward_backward(&good, &LOSS)
        .expect("the trainer goes on");
}

#[test]
fn malformed_data_are_refused() {
    let mut trainer = trainer(1);
    let good = rollouts(&trainer, 1).remove(0);
    let short = Datum {
        weights: Vec::new(),
        ..good.clone()
    };
    let lonely = Datum {
        tokens: vec![1],
        ..Datum::default()
    };
    let mut foreign = good;
    foreign.tokens[0] = 512;
    let long = Datum {
        tokens: vec![1; 2050],
        sampled_logprobs: vec![0.0; 2049],
        advantages: vec![0.0; 2049],
        weights: vec![0.0; 2049],
    };
    for (datum, code) in [
        (short, "INVALID_ARGUMENT"),
        (lonely, "INVALID_ARGUMENT"),
        (foreign, "TOKEN_OUT_OF_RANGE"),
        (long, "CONTEXT_EXCEEDED"),
    ] {
        let error = trainer
            .forward_backward(&[datum], &LOSS)
            .expect_err("it is malformed");
        assert_eq!(error.code(), code);
    }
    assert_eq!(
        trainer
            .forward_backward(&[], &LOSS)
            .expect("nothing to do")
            .loss_sum,
        0.0
    );
}

#[test]
fn a_few_steps_raise_what_is_rewarded() {
    let model = fixture::model();
    let fresh = Adapter::init(model.config(), &LoraConfig::all_linear(8, 16.0), 3);
    let fresh = fresh.expect("the settings are valid");
    let mut trainer = Trainer::new(model, fresh, Threads::new(2)).expect("it fits");
    let mut data = rollouts(&trainer, 4);
    for datum in &mut data {
        datum.advantages.iter_mut().for_each(|a| *a = 1.0);
    }
    let params = AdamParams {
        lr: 1e-2,
        grad_clip_norm: 1.0,
        ..AdamParams::default()
    };
    let mut entropies = Vec::new();
    for _ in 0..8 {
        let output = trainer
            .forward_backward(&data, &Loss::CrossEntropy)
            .expect("it is finite");
        entropies.push(output.metrics.entropy);
        trainer.optim_step(&params).expect("the settings are valid");
    }
    assert!(entropies[7] < 0.7 * entropies[0], "{entropies:?}");
}

/// The GSPO loss of a batch in f64, from the scores of the sampler's forward.
fn gspo(model: &Model, adapter: &Adapter, data: &[Datum], bounds: [f64; 2]) -> f64 {
    let mut sum = 0.0;
    for datum in data {
        let scores = score(model, Some(adapter), &datum.tokens, &Threads::new(1));
        let scores = scores.expect("it fits");
        let gaps: Vec<f64> = (scores
            .iter()
            .zip(&datum.sampled_logprobs)
            .zip(&datum.weights))
        .filter(|(_, weight)| **weight != 0.0)
        .map(|((lp, q), _)| f64::from(*lp) - f64::from(*q))
        .collect();
        let ratio = (gaps.iter().sum::<f64>() / gaps.len() as f64).exp();
        for (advantage, weight) in datum.advantages.iter().zip(&datum.weights) {
            if *weight != 0.0 {
                let a = f64::from(*advantage);
                sum -= (ratio * a).min(ratio.clamp(bounds[0], bounds[1]) * a);
            }
        }
    }
    sum
}

#[test]
fn gspo_has_one_ratio_per_sequence() {
    for trainer in [trainer(2), trainer_with_head(2)] {
        check_gspo(trainer);
    }
}

fn check_gspo(mut trainer: Trainer) {
    let loss = Loss::Gspo {
        clip_low_threshold: 0.9,
        clip_high_threshold: 1.05,
    };
    let mut data = rollouts(&trainer, 6);
    for (i, datum) in data.iter_mut().enumerate() {
        let shift = [0.0, 0.02, -0.3, 0.3, -0.02, 0.01][i];
        datum.sampled_logprobs.iter_mut().for_each(|q| *q += shift);
    }
    let output = trainer
        .forward_backward(&data, &loss)
        .expect("it is finite");
    let expected = gspo(trainer.model(), &trainer.published(), &data, [0.9, 1.05]);
    assert!(
        (output.loss_sum - expected).abs() < 1e-4,
        "{} {expected}",
        output.loss_sum
    );
    assert!(output.metrics.clip_fraction > 0.0 && output.metrics.clip_fraction < 1.0);
    // Of an unclipped sequence every token has the derivative of its mean, times its length: the
    // gradient of the whole is that of the loss, as the ratio is shared by as many tokens.
    let model = Arc::clone(trainer.model());
    let start = (*trainer.published()).clone();
    let some = |(index, grad): &(usize, NamedGrad<'_>)| {
        index.is_multiple_of(9) || grad.name.starts_with("lm_head")
    };
    for (_, grad) in trainer.grads().enumerate().filter(some) {
        let squares = grad.values.iter().map(|v| f64::from(*v).powi(2));
        let length = squares.sum::<f64>().sqrt();
        let moved = |step: f64| {
            let adapter = random_model::changed(&model, &start, |name, values| {
                if name.contains(grad.name) {
                    for (value, g) in values.iter_mut().zip(grad.values) {
                        *value += (step / length * f64::from(*g)) as f32;
                    }
                }
            });
            gspo(&model, &adapter, &data, [0.9, 1.05])
        };
        let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!(
            (slope - length).abs() < 0.02 * length,
            "{}: {slope} {length}",
            grad.name
        );
    }
}
