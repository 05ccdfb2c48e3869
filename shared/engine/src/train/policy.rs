//! The policy as a caller without a worker sees it: log-probabilities of a text, and texts.
//!
//! Both give, to the bit, the log-probabilities that a trainer's forward computes.

use super::batch::check_tokens;
use crate::adapter::Adapter;
use crate::cpu::softmax::log_softmax_at;
use crate::cpu::threads::Threads;
use crate::error::EngineError;
use crate::kv::KvCache;
use crate::model::{LogitsWanted, Model, Scratch, SequenceStep};
use crate::sampler::{Sampled, SamplingParams, sample};

/// Logits computed at a time by [`score`]: 2^18 are 1 MiB …
const CHUNK_VALUES: usize = 1 << 18;
/// … but never fewer rows than this, or the output matrix would be read too often.
const CHUNK_ROWS_MIN: usize = 64;

/// [`score`] of many sequences, short ones computed together.
///
/// # Errors
///
/// Those of [`score`], for the first sequence that has one.
pub fn score_all(
    model: &Model,
    adapter: Option<&Adapter>,
    sequences: &[&[u32]],
    threads: &Threads,
) -> Result<Vec<Vec<f32>>, EngineError> {
    for tokens in sequences {
        check_tokens(tokens, model.config())?;
    }
    let rows_max = (CHUNK_VALUES / model.config().vocab_size).max(CHUNK_ROWS_MIN);
    let mut scores = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = rest.iter().take_while(|tokens| {
            rows += tokens.len() - 1;
            rows <= rows_max
        });
        let (some, after) = rest.split_at(fits.count());
        match some {
            [] => scores.push(score(model, adapter, rest[0], threads)?),
            some => score_together(model, adapter, some, threads, &mut scores)?,
        }
        rest = if some.is_empty() { &rest[1..] } else { after };
    }
    Ok(scores)
}

/// Scores sequences in one forward pass.
fn score_together(
    model: &Model,
    adapter: Option<&Adapter>,
    sequences: &[&[u32]],
    threads: &Threads,
    scores: &mut Vec<Vec<f32>>,
) -> Result<(), EngineError> {
    let mut caches: Vec<KvCache> = (sequences.iter())
        .map(|_| KvCache::new(model.config()))
        .collect();
    let steps = sequences.iter().zip(&mut caches);
    let steps = steps.map(|(tokens, cache)| SequenceStep {
        tokens: &tokens[..tokens.len() - 1],
        cache,
        adapter,
        logits: LogitsWanted::All,
    });
    let mut steps: Vec<SequenceStep<'_>> = steps.collect();
    let logits = model.forward(&mut steps, threads, &mut Scratch::new())?;
    for (tokens, logits) in sequences.iter().zip(&logits) {
        let targets = tokens[1..].iter().enumerate();
        scores.push(
            targets
                .map(|(t, token)| log_softmax_at(logits.row(t), *token))
                .collect(),
        );
    }
    Ok(())
}

/// A sampled continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// The tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Their log-probabilities under the policy, untempered, nats.
    pub logprobs: Vec<f32>,
    /// Whether the last token is a stop token.
    pub stopped: bool,
}

/// Log-probabilities, nats, of all tokens but the first, each given those before it.
///
/// # Errors
///
/// The sequence is shorter than two tokens, too long, or leaves the vocabulary; the adapter does
/// not fit.
pub fn score(
    model: &Model,
    adapter: Option<&Adapter>,
    tokens: &[u32],
    threads: &Threads,
) -> Result<Vec<f32>, EngineError> {
    check_tokens(tokens, model.config())?;
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let rows_max = (CHUNK_VALUES / model.config().vocab_size).max(CHUNK_ROWS_MIN);
    let (mut cache, mut scratch) = (KvCache::new(model.config()), Scratch::new());
    let mut logprobs = Vec::with_capacity(targets.len());
    for (inputs, targets) in inputs.chunks(rows_max).zip(targets.chunks(rows_max)) {
        let step = SequenceStep {
            tokens: inputs,
            cache: &mut cache,
            adapter,
            logits: LogitsWanted::All,
        };
        let logits = model.forward(&mut [step], threads, &mut scratch)?;
        for (row, target) in targets.iter().enumerate() {
            logprobs.push(log_softmax_at(logits[0].row(row), *target));
        }
    }
    Ok(logprobs)
}

/// Samples up to `max_tokens` tokens after a prompt, ending early with a token of `stop`.
///
/// The draw of a token is a function of the seed and the token's position in the sequence.
///
/// # Errors
///
/// The prompt is empty, prompt and answer do not fit the context, a token leaves the vocabulary;
/// the adapter does not fit.
#[expect(
    clippy::too_many_arguments,
    reason = "the parameters of sampling have no common noun"
)]
pub fn generate(
    model: &Model,
    adapter: Option<&Adapter>,
    prompt: &[u32],
    max_tokens: usize,
    params: &SamplingParams,
    seed: u64,
    stop: &[u32],
    threads: &Threads,
) -> Result<Generated, EngineError> {
    if prompt.is_empty() {
        let what = "an empty prompt says nothing about the next token".to_owned();
        return Err(EngineError::InvalidArgument { what });
    }
    // The last token is sampled and never read.
    let needed = (prompt.len() + max_tokens).saturating_sub(1);
    let max = model.config().max_position_embeddings;
    if needed > max {
        return Err(EngineError::ContextExceeded { needed, max });
    }
    let (mut cache, mut scratch) = (KvCache::new(model.config()), Scratch::new());
    let mut generated = Generated::default();
    let mut next = prompt.to_vec();
    for index in 0..max_tokens {
        let step = SequenceStep {
            tokens: &next,
            cache: &mut cache,
            adapter,
            logits: LogitsWanted::Last,
        };
        let logits = model.forward(&mut [step], threads, &mut scratch)?;
        let position = (prompt.len() + index) as u64;
        let Sampled { token, logprob } = sample(logits[0].row(0), params, seed, position);
        generated.tokens.push(token);
        generated.logprobs.push(logprob);
        if stop.contains(&token) {
            generated.stopped = true;
            break;
        }
        next.clear();
        next.push(token);
    }
    Ok(generated)
}
