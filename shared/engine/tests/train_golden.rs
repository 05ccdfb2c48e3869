//! The learner against numbers of an independent float64 implementation.

mod fixture;

use fixture::Tensors;
use volley_engine::cpu::threads::Threads;
use volley_engine::train::{AdamParams, Loss, Trainer};

fn trainer(adapter: &str) -> Trainer {
    let model = fixture::model();
    let adapter = fixture::adapter(&model, adapter);
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
    let golden = fixture::golden();
    let tensors = Tensors::open("golden_grads.safetensors");
    for loss in fixture::losses() {
        let mut trainer = trainer("adapter");
        let output = trainer.forward_backward(&fixture::data(&loss), &loss);
        let output = output.expect("it is finite");
        let expected = &golden["losses"][loss.name()];
        let loss_sum = expected["loss_sum"].as_f64().expect("a number");
        let error = (output.loss_sum - loss_sum).abs();
        assert!(
            error < 1e-4 * loss_sum.abs().max(1.0),
            "{}: {error:e}",
            loss.name()
        );
        let mut count = 0;
        for grad in trainer.grads() {
            let name = format!("{}/{}", loss.name(), grad.name);
            close(&name, grad.values, &tensors.floats(&name), 1e-4, 1e-7);
            count += 1;
        }
        assert_eq!(count, tensors.names(&format!("{}/", loss.name())).len());
    }
}

#[test]
fn logprobs_of_every_adapter_are_the_golden_ones() {
    let tensors = Tensors::open("golden.safetensors");
    let loss = Loss::ImportanceSampling;
    for name in ["adapter", "adapter_r4_qv", "adapter_r16_rslora"] {
        let mut trainer = trainer(name);
        let output = trainer.forward_backward(&fixture::data(&loss), &loss);
        for (i, got) in output.expect("it is finite").logprobs.iter().enumerate() {
            let expected = tensors.floats(&format!("{name}.seq{i}.logprobs"));
            for (got, expected) in got.iter().zip(&expected) {
                assert!(
                    (got - expected).abs() < 1e-4,
                    "{name} {i}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn three_steps_of_adamw_end_at_the_golden_parameters() {
    let golden = fixture::golden();
    let tensors = Tensors::open("golden_adamw.safetensors");
    let loss = Loss::ImportanceSampling;
    for variant in ["wd0", "wd0_clip", "wd01", "wd01_clip"] {
        let expected = &golden["adamw"][variant];
        let number = |key: &str| expected[key].as_f64().expect("a number");
        let params = AdamParams {
            lr: number("lr"),
            beta1: 0.9,
            beta2: 0.95,
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            grad_clip_norm: number("grad_clip_norm"),
        };
        let mut trainer = trainer("adapter");
        for step in expected["steps"].as_array().expect("a list") {
            let data = fixture::data(&loss);
            let output = trainer
                .forward_backward(&data, &loss)
                .expect("it is finite");
            let loss_sum = step["loss_sum"].as_f64().expect("a number");
            let error = (output.loss_sum - loss_sum).abs();
            assert!(
                error < 1e-4 * loss_sum.abs().max(1.0),
                "{variant}: {error:e}"
            );
            let report = trainer.optim_step(&params).expect("the settings are valid");
            for (got, key) in [
                (report.grad_norm, "grad_norm"),
                (report.clip_coef, "clip_coef"),
            ] {
                let due = step[key].as_f64().expect("a number");
                assert!(
                    (got - due).abs() < 1e-4 * due,
                    "{variant} {key}: {got} {due}"
                );
            }
        }
        let published = trainer.published();
        for tensor in published.tensors() {
            let name = format!("{variant}/{}", tensor.module_name());
            for (got, due) in tensor.values.iter().zip(tensors.floats(&name)) {
                assert!((got - due).abs() <= 1e-5, "{name}: {got} {due}");
            }
        }
    }
}
