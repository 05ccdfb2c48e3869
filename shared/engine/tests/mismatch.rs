//! Ten thousand sampled tokens, in whatever company, have the learner's log-probabilities to the
//! bit: random prompts, adapters, seeds, lengths, batches that members join and leave, thread
//! counts, all architectures, both number formats.

mod fixture;
mod random_model;

use std::sync::Arc;

use fixture::Fixture;
use random_model::Noise;
use volley_engine::adapter::Adapter;
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::sampler::{SamplingParams, sample};
use volley_engine::train::{Datum, Loss, Trainer};

/// Sampled tokens in all.
const TOKENS: usize = 10_000;
/// Members of a batch at most.
const SLOTS: usize = 24;
/// Prompts that members of a group share.
const PROMPTS: usize = 6;

/// An episode under way, or over.
struct Episode {
    adapter: usize,
    tokens: Vec<u32>,
    prompt: usize,
    logprobs: Vec<f32>,
    left: usize,
    seed: u64,
    cache: KvCache,
}

/// Plays episodes until `tokens` were sampled.
fn play(model: &Model, adapters: &[Adapter], tokens: usize, noise: &mut Noise) -> Vec<Episode> {
    let vocab = model.config().vocab_size;
    let prompts: Vec<Vec<u32>> = (0..PROMPTS)
        .map(|_| {
            let length = 1 + noise.below(40);
            noise.tokens(length, vocab)
        })
        .collect();
    let (mut playing, mut over) = (Vec::<Episode>::new(), Vec::new());
    let (mut sampled, mut scratch) = (0, Scratch::new());
    while sampled < tokens {
        for _ in 0..noise.below(4) {
            if playing.len() < SLOTS {
                let prompt = &prompts[noise.below(PROMPTS)];
                playing.push(Episode {
                    adapter: noise.below(adapters.len()),
                    tokens: prompt.clone(),
                    prompt: prompt.len(),
                    logprobs: Vec::new(),
                    left: 1 + noise.below(30),
                    seed: noise.next(),
                    cache: KvCache::new(model.config()),
                });
            }
        }
        let steps = playing.iter_mut().map(|episode| SequenceStep {
            tokens: &episode.tokens[episode.cache.len()..],
            cache: &mut episode.cache,
            adapter: Some(&adapters[episode.adapter]),
            logits: LogitsWanted::Last,
        });
        let mut steps: Vec<SequenceStep<'_>> = steps.collect();
        let threads = Threads::new(1 + noise.below(3));
        let rows = model
            .forward(&mut steps, &threads, &mut scratch)
            .expect("valid tokens");
        for (episode, row) in playing.iter_mut().zip(&rows) {
            let position = episode.tokens.len() as u64;
            let drawn = sample(
                row.row(0),
                &SamplingParams::default(),
                episode.seed,
                position,
            );
            episode.tokens.push(drawn.token);
            episode.logprobs.push(drawn.logprob);
            episode.left -= 1;
            sampled += 1;
        }
        let (going, done) = playing.into_iter().partition(|episode| episode.left > 0);
        playing = going;
        over.extend::<Vec<Episode>>(done);
    }
    over.extend(playing);
    over
}

/// Tokens whose log-probability the learner of one adapter computes otherwise.
fn mismatches(
    model: &Arc<Model>,
    adapter: &Adapter,
    episodes: &[&Episode],
    threads: usize,
) -> usize {
    let data = episodes.iter().map(|episode| {
        let prompt = episode.prompt - 1;
        let after = |values: &[f32]| [&vec![0.0; prompt][..], values].concat();
        Datum {
            tokens: episode.tokens.clone(),
            sampled_logprobs: after(&episode.logprobs),
            advantages: after(&vec![1.0; episode.logprobs.len()]),
            weights: after(&vec![1.0; episode.logprobs.len()]),
        }
    });
    let data: Vec<Datum> = data.collect();
    let trainer = Trainer::new(Arc::clone(model), adapter.clone(), Threads::new(threads));
    let output = trainer
        .expect("they fit")
        .forward_backward(&data, &Loss::ImportanceSampling);
    let output = output.expect("it is finite");
    let pairs = data.iter().zip(&output.logprobs);
    pairs
        .flat_map(|(datum, logprobs)| logprobs.iter().zip(&datum.sampled_logprobs))
        .filter(|(learned, sampled)| learned.to_bits() != sampled.to_bits())
        .count()
}

#[test]
fn ten_thousand_sampled_tokens_have_the_learners_logprobs() {
    let mut noise = Noise::new(2026);
    let cases = fixture::ALL.len() * 2;
    let mut sampled = 0;
    for (fixture, compute) in fixture::ALL
        .into_iter()
        .flat_map(|fixture| [(fixture, Compute::F32), (fixture, Compute::Bf16)])
    {
        let model = Arc::new(Model::load_as(&fixture.dir(), compute).expect("it loads"));
        let adapters = adapters(fixture, &model);
        let mut episodes = play(&model, &adapters, TOKENS.div_ceil(cases), &mut noise);
        // Groups stand together, as in a learner's batch.
        episodes.sort_by(|a, b| a.tokens[..a.prompt].cmp(&b.tokens[..b.prompt]));
        for (index, adapter) in adapters.iter().enumerate() {
            let mine = episodes.iter().filter(|episode| episode.adapter == index);
            let mine: Vec<&Episode> = mine.collect();
            sampled += mine
                .iter()
                .map(|episode| episode.logprobs.len())
                .sum::<usize>();
            let wrong = mismatches(&model, adapter, &mine, 1 + index % 3);
            assert_eq!(wrong, 0, "{fixture:?} {compute:?} adapter {index}");
        }
    }
    assert!(sampled >= TOKENS, "{sampled}");
}

/// The fixture's adapters, and one of a rank that fills no vector.
fn adapters(fixture: Fixture, model: &Model) -> Vec<Adapter> {
    let mut adapters: Vec<Adapter> = (fixture.adapters().iter())
        .map(|name| fixture.adapter(model, name))
        .collect();
    let config = volley_engine::adapter::LoraConfig::all_linear(5, 7.0);
    adapters.push(Adapter::init(model.config(), &config, 9).expect("valid settings"));
    adapters
}
