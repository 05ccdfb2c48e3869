//! Log-probabilities of given texts: to the bit those that a trainer's forward computes, and those
//! that were recorded when a text was drawn.

use crate::adapter::Adapter;
use crate::cpu::softmax::log_softmax_at;
use crate::cpu::threads::Threads;
use crate::error::EngineError;
use crate::kv::KvCache;
use crate::model::{LogitsWanted, Model, Scratch, SequenceStep};
use crate::train::check_tokens;

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
