//! Ten thousand sampled tokens, in whatever company, have the learner's log-probabilities to the
//! bit: random prompts (some with a common beginning), adapters, seeds, lengths and turns, batches
//! that members join and leave in the middle, thread counts, all architectures, both number
//! formats.

mod fixture;
mod random_model;

use std::sync::Arc;

use fixture::Fixture;
use random_model::Noise;
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::decode::{Decoder, Drawn, Request};
use volley_engine::model::Model;
use volley_engine::train::{Datum, Loss, Trainer};

/// Sampled tokens in all.
const TOKENS: usize = 10_000;
/// Members of a batch at most.
const SLOTS: usize = 24;
/// Prompts that members of a group share.
const PROMPTS: usize = 6;

/// An episode under way, or over.
#[derive(Clone)]
struct Episode {
    adapter: usize,
    prompt: usize,
    tokens: Vec<u32>,
    /// Of the drawn tokens; none of given ones.
    logprobs: Vec<Option<f32>>,
    turns_left: usize,
}

impl Episode {
    fn given(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.logprobs.resize(self.tokens.len(), None);
    }

    fn drew(&mut self, drawn: &Drawn) {
        self.tokens.push(drawn.token);
        self.logprobs.push(Some(drawn.logprobs.logprob));
    }
}

/// Sequences that come and go.
struct Table<'a> {
    model: &'a Model,
    adapters: &'a [Arc<Adapter>],
    prompts: Vec<Vec<u32>>,
    decoder: Decoder,
    /// By the decoder's name for them.
    episodes: Vec<Episode>,
    playing: Vec<usize>,
}

impl<'a> Table<'a> {
    fn new(model: &'a Model, adapters: &'a [Arc<Adapter>], noise: &mut Noise) -> Self {
        let vocab = model.config().vocab_size;
        let begin = noise.tokens(20, vocab);
        let prompts = (0..PROMPTS).map(|_| {
            let length = 1 + noise.below(40);
            let own = noise.tokens(length, vocab);
            let shared = if noise.below(2) == 0 { &begin[..] } else { &[] };
            [shared, &own].concat()
        });
        Self {
            prompts: prompts.collect(),
            model,
            adapters,
            decoder: Decoder::new(),
            episodes: Vec::new(),
            playing: Vec::new(),
        }
    }

    fn join(&mut self, noise: &mut Noise) {
        let prompt = self.prompts[noise.below(PROMPTS)].clone();
        let adapter = noise.below(self.adapters.len());
        let request = Request {
            adapter: Some(Arc::clone(&self.adapters[adapter])),
            seed: noise.next(),
            prompt_logprobs: noise.below(8) == 0,
            ..Request::new(prompt.clone(), 1 + noise.below(30))
        };
        let id = self.episodes.len();
        let started = self.decoder.start(self.model, id as u64, request);
        started.expect("a valid request");
        let mut episode = Episode {
            adapter,
            prompt: prompt.len(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            turns_left: noise.below(3),
        };
        episode.given(&prompt);
        self.episodes.push(episode);
        self.playing.push(id);
    }

    fn leave(&mut self, id: usize) {
        self.playing.retain(|other| *other != id);
        assert!(self.decoder.remove(id as u64), "it played");
    }

    /// One step; says how many tokens were drawn.
    fn step(&mut self, noise: &mut Noise) -> usize {
        let threads = Threads::new(1 + noise.below(3));
        let step = self.decoder.step(self.model, &threads);
        let drawn = step.expect("valid sequences").drawn;
        for one in &drawn {
            let id = one.sequence as usize;
            let episode = &mut self.episodes[id];
            episode.drew(one);
            if one.end.is_none() {
                continue;
            }
            if episode.turns_left == 0 {
                self.leave(id);
                continue;
            }
            episode.turns_left -= 1;
            let (given, length) = (1 + noise.below(12), 1 + noise.below(20));
            let given = noise.tokens(given, self.model.config().vocab_size);
            let next = self.decoder.go_on(self.model, one.sequence, &given, length);
            next.expect("the turn was over");
            episode.given(&given);
        }
        drawn.len()
    }
}

/// Plays episodes until `tokens` were sampled.
fn play(
    model: &Model,
    adapters: &[Arc<Adapter>],
    tokens: usize,
    noise: &mut Noise,
) -> Vec<Episode> {
    let mut table = Table::new(model, adapters, noise);
    let mut sampled = 0;
    while sampled < tokens {
        for _ in 0..noise.below(4) {
            if table.playing.len() < SLOTS {
                table.join(noise);
            }
        }
        if noise.below(20) == 0 && !table.playing.is_empty() {
            let id = table.playing[noise.below(table.playing.len())];
            table.leave(id);
        }
        sampled += table.step(noise);
    }
    table.episodes
}

/// Tokens whose log-probability the learner of one adapter computes otherwise.
fn mismatches(
    model: &Arc<Model>,
    adapter: &Adapter,
    episodes: &[&Episode],
    threads: usize,
) -> usize {
    let data = episodes.iter().map(|episode| {
        let of_target = |value: fn(f32) -> f32| -> Vec<f32> {
            let targets = episode.logprobs[1..].iter();
            targets.map(|drawn| drawn.map_or(0.0, value)).collect()
        };
        Datum {
            tokens: episode.tokens.clone(),
            sampled_logprobs: of_target(|logprob| logprob),
            advantages: of_target(|_| 1.0),
            weights: of_target(|_| 1.0),
        }
    });
    let data: Vec<Datum> = data.collect();
    let trainer = Trainer::new(Arc::clone(model), (*adapter).clone(), Threads::new(threads));
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
            let mine: Vec<&Episode> = mine.filter(|episode| episode.tokens.len() > 1).collect();
            let logprobs = mine.iter().flat_map(|episode| &episode.logprobs);
            sampled += logprobs.flatten().count();
            let wrong = mismatches(&model, adapter, &mine, 1 + index % 3);
            assert_eq!(wrong, 0, "{fixture:?} {compute:?} adapter {index}");
        }
    }
    assert!(sampled >= TOKENS, "{sampled}");
}

/// The fixture's adapters, one of a rank that fills no vector, and two on the output matrix.
fn adapters(fixture: Fixture, model: &Model) -> Vec<Arc<Adapter>> {
    let mut adapters: Vec<Adapter> = (fixture.adapters().iter())
        .map(|name| fixture.adapter(model, name))
        .collect();
    let all = LoraConfig::all_linear(5, 7.0);
    adapters.push(Adapter::init(model.config(), &all, 9).expect("valid settings"));
    let with_head = LoraConfig {
        lm_head: true,
        ..all
    };
    adapters.push(random_model::adapter(model, &with_head, 10));
    let head_alone = LoraConfig {
        rank: 37,
        targets: Vec::new(),
        ..with_head
    };
    adapters.push(random_model::adapter(model, &head_alone, 11));
    adapters.into_iter().map(Arc::new).collect()
}
