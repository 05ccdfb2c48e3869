//! The learner against numbers of an independent float64 implementation.

mod fixture;

use fixture::Fixture;
use serde_json::Value;
use volley_engine::cpu::threads::Threads;
use volley_engine::train::{AdamParams, Loss, Trainer};

fn trainer(fixture: Fixture, adapter: &str) -> Trainer {
    let model = fixture.model();
    let adapter = fixture.adapter(&model, adapter);
    Trainer::new(model, adapter, Threads::new(2)).expect("they fit")
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Fails unless the difference is at most `relative` of the expected norm, or `floor`.
fn close(name: &str, got: &[f32], expected: &[f32], relative: f64, floor: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let pairs = got.iter().zip(expected);
    let error = norm(pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let due = norm(expected.iter().copied().map(f64::from));
    assert!(
        error <= (relative * due).max(floor),
        "{name}: {error:e} of {due:e}"
    );
}

#[test]
fn gradients_of_every_loss_are_the_golden_ones() {
    for fixture in fixture::ALL {
        let golden = fixture.golden();
        let stored = golden["losses"].as_object().expect("a map");
        let losses = fixture::losses().into_iter();
        let losses: Vec<Loss> = losses
            .filter(|loss| stored.contains_key(loss.name()))
            .collect();
        assert_eq!(losses.len(), stored.len(), "{fixture:?}");
        for loss in losses {
            check_gradients(fixture, &loss, &stored[loss.name()]);
        }
    }
}

fn check_gradients(fixture: Fixture, loss: &Loss, expected: &Value) {
    let tensors = fixture.tensors("golden_grads.safetensors");
    let mut trainer = trainer(fixture, "adapter");
    let output = trainer.forward_backward(&fixture.data(loss), loss);
    let output = output.expect("it is finite");
    let loss_sum = expected["loss_sum"].as_f64().expect("a number");
    let error = (output.loss_sum - loss_sum).abs();
    let name = format!("{fixture:?} {}", loss.name());
    assert!(error < 1e-4 * loss_sum.abs().max(1.0), "{name}: {error:e}");
    let mut count = 0;
    for grad in trainer.grads() {
        let due = tensors.floats(&format!("{}/{}", loss.name(), grad.name));
        close(
            &format!("{name} {}", grad.name),
            grad.values,
            &due,
            1e-4,
            1e-7,
        );
        count += 1;
    }
    assert_eq!(count, tensors.names(&format!("{}/", loss.name())).len());
}

#[test]
fn logprobs_of_every_adapter_are_the_golden_ones() {
    let loss = Loss::ImportanceSampling;
    for fixture in fixture::ALL {
        let tensors = fixture.tensors("golden.safetensors");
        for name in fixture.adapters() {
            let mut trainer = trainer(fixture, &name);
            let output = trainer.forward_backward(&fixture.data(&loss), &loss);
            for (i, got) in output.expect("it is finite").logprobs.iter().enumerate() {
                let expected = tensors.floats(&format!("{name}.seq{i}.logprobs"));
                for (got, expected) in got.iter().zip(&expected) {
                    assert!(
                        (got - expected).abs() < 1e-4,
                        "{fixture:?} {name} {i}: {got} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn three_steps_of_adamw_end_at_the_golden_parameters() {
    for fixture in fixture::ALL {
        let golden = fixture.golden();
        for (variant, expected) in golden["adamw"].as_object().expect("a map") {
            check_adamw(fixture, variant, expected);
        }
    }
}

fn check_adamw(fixture: Fixture, variant: &str, expected: &Value) {
    let tensors = fixture.tensors("golden_adamw.safetensors");
    let loss = Loss::ImportanceSampling;
    let number = |key: &str| expected[key].as_f64().expect("a number");
    let params = AdamParams {
        lr: number("lr"),
        beta1: 0.9,
        beta2: 0.95,
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        grad_clip_norm: number("grad_clip_norm"),
    };
    let mut trainer = trainer(fixture, "adapter");
    for step in expected["steps"].as_array().expect("a list") {
        let output = trainer.forward_backward(&fixture.data(&loss), &loss);
        let loss_sum = step["loss_sum"].as_f64().expect("a number");
        let error = (output.expect("it is finite").loss_sum - loss_sum).abs();
        assert!(
            error < 1e-4 * loss_sum.abs().max(1.0),
            "{fixture:?} {variant}: {error:e}"
        );
        let report = trainer.optim_step(&params).expect("the settings are valid");
        for (got, key) in [
            (report.grad_norm, "grad_norm"),
            (report.clip_coef, "clip_coef"),
        ] {
            let due = step[key].as_f64().expect("a number");
            assert!(
                (got - due).abs() < 1e-4 * due,
                "{fixture:?} {variant} {key}: {got} {due}"
            );
        }
    }
    for tensor in trainer.published().tensors() {
        let name = format!("{variant}/{}", tensor.module_name());
        for (got, due) in tensor.values.iter().zip(tensors.floats(&name)) {
            assert!((got - due).abs() <= 1e-5, "{fixture:?} {name}: {got} {due}");
        }
    }
}
