//! The forward pass against the golden numbers of `tests/fixtures`, which an independent
//! implementation computed in float64.

mod fixture;

use fixture::Fixture;
use volley_engine::adapter::Adapter;
use volley_engine::config::Compute;
use volley_engine::cpu::softmax::log_softmax_at;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::sampler::{SamplingParams, sample};

/// Another f32 implementation deviates by 1.9e-5 at most.
const TOLERANCE: f32 = 1e-4;

/// Logits of every token, `[len, vocab]`, computed at once.
fn prefill(model: &Model, tokens: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    let mut cache = KvCache::new(model.config());
    let step = SequenceStep {
        tokens,
        cache: &mut cache,
        adapter,
        logits: LogitsWanted::All,
    };
    let logits = model.forward(&mut [step], &Threads::new(1), &mut Scratch::new());
    logits.expect("the tokens are valid")[0].data().to_vec()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn logits_and_logprobs_match_the_truth() {
    for fixture in fixture::ALL {
        let model = fixture.model();
        check_logits(fixture, &model, None);
        for name in fixture.adapters() {
            check_logits(fixture, &model, Some(&name));
        }
    }
}

fn check_logits(fixture: Fixture, model: &Model, name: Option<&str>) {
    let tensors = fixture.tensors("golden.safetensors");
    let vocab = model.config().vocab_size;
    let adapter = name.map(|name| fixture.adapter(model, name));
    let prefix = name.map(|name| format!("{name}.")).unwrap_or_default();
    for (i, tokens) in fixture.sequences().iter().enumerate() {
        let logits = prefill(model, &tokens[..tokens.len() - 1], adapter.as_ref());
        // The further adapters' logits are not stored, only what follows from them.
        if matches!(name, None | Some("adapter")) {
            let truth = tensors.floats(&format!("{prefix}seq{i}.logits"));
            let error = largest_difference(&logits, &truth);
            assert!(error <= TOLERANCE, "{fixture:?} {prefix}seq{i}: {error}");
        }
        let rows = logits.chunks_exact(vocab).zip(&tokens[1..]);
        let logprobs: Vec<f32> = rows
            .map(|(row, token)| log_softmax_at(row, *token))
            .collect();
        let truth = tensors.floats(&format!("{prefix}seq{i}.logprobs"));
        let error = largest_difference(&logprobs, &truth);
        assert!(error <= TOLERANCE, "{fixture:?} {prefix}seq{i}: {error}");
    }
}

/// transformers in bfloat16 is 0.8 to 1.7 % away from the truth on these models.
const BF16_TOLERANCE: f64 = 0.02;

#[test]
fn bfloat16_is_as_close_as_bfloat16_can_be() {
    for fixture in fixture::ALL {
        let model = Model::load_as(&fixture.dir(), Compute::Bf16).expect("it loads");
        let lora = fixture.adapter(&model, "adapter");
        let tensors = fixture.tensors("golden.safetensors");
        for (prefix, adapter) in [("", None), ("adapter.", Some(&lora))] {
            let (mut error, mut size) = (0.0, 0.0);
            for (i, tokens) in fixture.sequences().iter().enumerate() {
                let logits = prefill(&model, &tokens[..tokens.len() - 1], adapter);
                let truth = tensors.floats(&format!("{prefix}seq{i}.logits"));
                for (got, truth) in logits.iter().zip(&truth) {
                    error += f64::from(got - truth).powi(2);
                    size += f64::from(*truth).powi(2);
                }
            }
            let relative = (error / size).sqrt();
            assert!(
                relative < BF16_TOLERANCE,
                "{fixture:?} {prefix}: {relative:.4}"
            );
            // Rounding that had no effect would mean that nothing was rounded.
            assert!(relative > 1e-4, "{fixture:?} {prefix}: {relative:.6}");
        }
    }
}

#[test]
fn greedy_generations_are_identical() {
    for fixture in fixture::ALL {
        let (model, golden) = (fixture.model(), fixture.golden());
        let lora = fixture.adapter(&model, "adapter");
        let cases = golden["generations"].as_array().expect("a list");
        assert_eq!(cases.len(), 8);
        for (i, case) in cases.iter().enumerate() {
            let ids = |key: &str| -> Vec<u32> {
                serde_json::from_value(case[key].clone()).expect("a list of ids")
            };
            let adapter = (case["adapter"] == "adapter").then_some(&lora);
            let (drawn, logprobs) = generate(&model, adapter, ids("prompt"));
            assert_eq!(drawn, ids("tokens"), "{fixture:?} generation {i}");
            let truth = case["logprobs"].as_array().expect("a list");
            for (got, truth) in logprobs.iter().zip(truth) {
                let error = f64::from(*got) - truth.as_f64().expect("a number");
                assert!(error.abs() < 1e-4, "{fixture:?} generation {i}: {error}");
            }
        }
    }
}

/// 32 greedy tokens and their log-probabilities.
fn generate(model: &Model, adapter: Option<&Adapter>, prompt: Vec<u32>) -> (Vec<u32>, Vec<f32>) {
    let (threads, mut scratch) = (Threads::new(1), Scratch::new());
    let mut cache = KvCache::new(model.config());
    let (mut next, mut drawn, mut logprobs) = (prompt, Vec::new(), Vec::new());
    for position in 0..32 {
        let step = SequenceStep {
            tokens: &next,
            cache: &mut cache,
            adapter,
            logits: LogitsWanted::Last,
        };
        let out = model.forward(&mut [step], &threads, &mut scratch);
        let out = out.expect("valid tokens");
        let got = sample(out[0].row(0), &SamplingParams::greedy(), 0, position);
        drawn.push(got.token);
        logprobs.push(got.logprob);
        next = vec![got.token];
    }
    (drawn, logprobs)
}
