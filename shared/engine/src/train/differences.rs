//! The whole backward pass against differences of the whole forward, on a model of odd shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Datum, Loss, Trainer};
use crate::adapter::{Adapter, LoraConfig, Target};
use crate::config::ModelConfig;
use crate::cpu::threads::Threads;
use crate::model::Model;
use crate::safetensors::{Dtype, TensorData, write};
use crate::score::score;

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "vocab_size": 53, "hidden_size": 26, "intermediate_size": 37, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": TIED}"#;

/// Numbers that look random and are the same everywhere.
fn noise(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn odd_model(tied: bool) -> Arc<Model> {
    let text = CONFIG.replace("TIED", &tied.to_string());
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("config.json");
    std::fs::write(&file, &text).expect("it is writable");
    let config = ModelConfig::parse(&file, text.as_bytes()).expect("it is valid");
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, hidden]),
        ("lm_head".to_owned(), vec![vocab, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..config.num_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for target in Target::ALL {
            let (rows, columns) = target.shape(&config);
            shapes.push((name(target.path()), vec![rows, columns]));
        }
        for part in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((name(part), vec![hidden]));
        }
        for part in ["self_attn.q_norm", "self_attn.k_norm"] {
            shapes.push((name(part), vec![config.head_dim]));
        }
    }
    let values = shapes.iter().zip(1..).map(|((_, shape), seed)| {
        let count = shape.iter().product();
        match shape.as_slice() {
            [_, columns] => noise(count, seed, 1.7 / (*columns as f32).sqrt()),
            _ => noise(count, seed, 0.3).iter().map(|v| 1.0 + v).collect(),
        }
    });
    let values: Vec<Vec<f32>> = values.collect();
    let tensors = shapes
        .into_iter()
        .zip(&values)
        .map(|((name, shape), data)| TensorData {
            name: format!("{name}.weight"),
            shape,
            dtype: Dtype::F32,
            data,
        });
    let tensors: Vec<_> = tensors.collect();
    let weights = dir.path().join("model.safetensors");
    write(&weights, &tensors, &BTreeMap::new()).expect("it is writable");
    Arc::new(Model::load(dir.path()).expect("it loads"))
}

fn adapter(model: &Model) -> Adapter {
    let config = LoraConfig {
        rank: 5,
        alpha: 7.0,
        rslora: true,
        targets: vec![
            Target::Q,
            Target::V,
            Target::O,
            Target::Gate,
            Target::Up,
            Target::Down,
        ],
        lm_head: true,
    };
    let mut adapter = Adapter::init(model.config(), &config, 3).expect("it is valid");
    for (values, seed) in adapter.values_mut().zip(100..) {
        let size = 0.3;
        values.copy_from_slice(&noise(values.len(), seed, size));
    }
    adapter
}

fn data() -> Vec<Datum> {
    let data = [23_usize, 2, 9]
        .into_iter()
        .zip(7..)
        .map(|(length, seed)| Datum {
            tokens: noise(length, seed, 26.0)
                .iter()
                .map(|v| (v + 26.0) as u32)
                .collect(),
            sampled_logprobs: vec![0.0; length - 1],
            advantages: vec![0.0; length - 1],
            weights: (1..length).map(|t| (t % 3) as f32).collect(),
        });
    data.collect()
}

/// The cross-entropy, from the scores of the sampler's forward.
fn loss(model: &Model, adapter: &Adapter, data: &[Datum]) -> f64 {
    let terms = data.iter().flat_map(|datum| {
        let scores = score(model, Some(adapter), &datum.tokens, &Threads::new(1));
        let scores = scores.expect("it fits");
        let terms = scores.into_iter().zip(&datum.weights);
        terms
            .map(|(lp, w)| -f64::from(lp) * f64::from(*w))
            .collect::<Vec<_>>()
    });
    terms.sum()
}

#[test]
fn every_tensor_descends_as_its_gradient_says() {
    for tied in [false, true] {
        check_every_tensor(&odd_model(tied));
    }
}

fn check_every_tensor(model: &Arc<Model>) {
    let start = adapter(model);
    let data = data();
    let trainer = Trainer::new(Arc::clone(model), start.clone(), Threads::new(2));
    let mut trainer = trainer.expect("they fit").with_micro_batch_rows(16);
    let output = trainer
        .forward_backward(&data, &Loss::CrossEntropy)
        .expect("it is finite");
    let expected = loss(model, &start, &data);
    assert!(
        (output.loss_sum - expected).abs() < 1e-4,
        "{} {expected}",
        output.loss_sum
    );

    for (index, grad) in trainer.grads().enumerate() {
        // Along a gradient the loss rises with the gradient's length.
        let squares = grad.values.iter().map(|v| f64::from(*v).powi(2));
        let length = squares.sum::<f64>().sqrt();
        assert!(length > 0.0, "{}", grad.name);
        let moved = |step: f64| {
            let mut adapter = start.clone();
            let values = adapter.values_mut().nth(index).expect("one per gradient");
            for (value, g) in values.iter_mut().zip(grad.values) {
                *value += (step * f64::from(*g) / length) as f32;
            }
            loss(model, &adapter, &data)
        };
        let step = 4e-3;
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let error = (slope - length).abs();
        assert!(
            error < 0.01 * length + 5e-3,
            "{}: {slope} against {length}",
            grad.name
        );
    }
}
