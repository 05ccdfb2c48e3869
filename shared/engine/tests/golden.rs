//! The forward pass against the golden numbers of `tests/fixtures/qwen3-tiny`, which an
//! independent implementation computed in float64.

mod fixture;

use fixture::{Tensors, adapter, golden, model, sequences};
use volley_engine::adapter::Adapter;
use volley_engine::cpu::softmax::log_softmax_at;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::sampler::{SamplingParams, sample};

/// Another f32 implementation deviates by 1.5e-5 at most.
const TOLERANCE: f32 = 1e-4;
const ADAPTERS: [&str; 3] = ["adapter", "adapter_r4_qv", "adapter_r16_rslora"];

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
    let (model, tensors) = (model(), Tensors::open("golden.safetensors"));
    let vocab = model.config().vocab_size;
    let cases = std::iter::once(None).chain(ADAPTERS.map(Some));
    for name in cases {
        let loaded = name.map(|name| adapter(&model, name));
        let prefix = name.map(|name| format!("{name}.")).unwrap_or_default();
        for (i, tokens) in sequences().iter().enumerate() {
            let inputs = &tokens[..tokens.len() - 1];
            let logits = prefill(&model, inputs, loaded.as_ref());
            if prefix.len() <= "adapter.".len() {
                let truth = tensors.floats(&format!("{prefix}seq{i}.logits"));
                let error = largest_difference(&logits, &truth);
                assert!(error <= TOLERANCE, "{prefix}seq{i}: {error}");
            }
            let rows = logits.chunks_exact(vocab).zip(&tokens[1..]);
            let logprobs: Vec<f32> = rows
                .map(|(row, token)| log_softmax_at(row, *token))
                .collect();
            let truth = tensors.floats(&format!("{prefix}seq{i}.logprobs"));
            let error = largest_difference(&logprobs, &truth);
            assert!(error <= TOLERANCE, "{prefix}seq{i}: {error}");
        }
    }
}

#[test]
fn greedy_generations_are_identical() {
    let (model, golden) = (model(), golden());
    let lora = adapter(&model, "adapter");
    for (i, case) in golden["generations"]
        .as_array()
        .expect("a list")
        .iter()
        .enumerate()
    {
        let ids = |key: &str| -> Vec<u32> {
            let list = case[key].as_array().expect("a list");
            list.iter()
                .map(|id| id.as_u64().expect("an id") as u32)
                .collect()
        };
        let adapter = (case["adapter"] == "adapter").then_some(&lora);
        let (threads, mut scratch) = (Threads::new(1), Scratch::new());
        let mut cache = KvCache::new(model.config());
        let (mut next, mut drawn, mut logprobs) = (ids("prompt"), Vec::new(), Vec::new());
        for position in 0..32 {
            let logits = LogitsWanted::Last;
            let step = SequenceStep {
                tokens: &next,
                cache: &mut cache,
                adapter,
                logits,
            };
            let out = model
                .forward(&mut [step], &threads, &mut scratch)
                .expect("valid tokens");
            let got = sample(out[0].row(0), &SamplingParams::greedy(), 0, position);
            drawn.push(got.token);
            logprobs.push(got.logprob);
            next = vec![got.token];
        }
        assert_eq!(drawn, ids("tokens"), "generation {i}");
        for (got, truth) in logprobs
            .iter()
            .zip(case["logprobs"].as_array().expect("a list"))
        {
            let error = f64::from(*got) - truth.as_f64().expect("a number");
            assert!(error.abs() < 1e-4, "generation {i}: {error}");
        }
    }
}
