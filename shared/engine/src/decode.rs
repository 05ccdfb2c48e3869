//! Continuous batching: sequences come and go, and every step is one forward over all of them.
//!
//! Some sequences prefill while others decode, each with the adapter it began with. What a
//! sequence says does not depend on its neighbours: neither on the batch, nor on the pieces its
//! prompt is computed in, nor on whether the keys and values of its beginning were computed for
//! somebody else. Between two steps sequences may be started, continued with further tokens, or
//! removed; a removed one is gone with the next step.

mod plan;
mod prefix;
mod sequence;

use std::sync::Arc;

use crate::adapter::Adapter;
use crate::cpu::softmax::{log_softmax_at, max_and_ln_sum};
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;
use crate::error::EngineError;
use crate::model::{Logits, Model, Scratch, SequenceStep};
use crate::sampler::{Sampled, SamplingParams, sample, top_tokens};

use plan::plan;
use prefix::PrefixCache;
pub use sequence::Request;
use sequence::Sequence;

/// Logits from which the draws of a step are made on all threads, about 20 µs of work.
const PARALLEL_DRAWS_MIN: usize = 1 << 15;

/// The caller's name for a sequence.
pub type SequenceId = u64;

/// A token's log-probability, and those of the likeliest tokens in its place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability, untempered and unfiltered.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a turn is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// The token is one of the request's stop tokens.
    StopToken,
    /// There are as many tokens as the turn may have.
    Length,
}

/// A token that a sequence drew.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Whose it is.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprobs: TokenLogprobs,
    /// Set with the last token of a turn. The sequence then waits to be continued or removed.
    pub end: Option<TurnEnd>,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// At most one token per sequence, in order of arrival.
    pub drawn: Vec<Drawn>,
    /// Tokens that entered a cache without a draw after them.
    pub prefilled: usize,
}

/// The sequences of one batch.
#[derive(Debug, Default)]
pub struct Decoder {
    /// In order of arrival.
    sequences: Vec<Sequence>,
    prefixes: PrefixCache,
    scratch: Scratch,
}

impl Decoder {
    /// No sequences yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sequences that were started and not removed.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Adds a sequence.
    ///
    /// # Errors
    ///
    /// The prompt is empty, does not fit the context with what may follow it, or leaves the
    /// vocabulary; the adapter does not fit; there is such a sequence already.
    pub fn start(
        &mut self,
        model: &Model,
        id: SequenceId,
        request: Request,
    ) -> Result<(), EngineError> {
        if self.find(id).is_ok() {
            return Err(invalid(format!("there is a sequence {id} already")));
        }
        self.sequences.push(Sequence::new(model, id, request)?);
        Ok(())
    }

    /// Begins another turn of a sequence: tokens that others contributed, then up to `max_tokens`
    /// of its own. Nothing that was computed before is computed again.
    ///
    /// # Errors
    ///
    /// There is no such sequence, or it is in the middle of a turn; the tokens do not fit.
    pub fn go_on(
        &mut self,
        model: &Model,
        id: SequenceId,
        tokens: &[u32],
        max_tokens: usize,
    ) -> Result<(), EngineError> {
        let index = self.find(id)?;
        self.sequences[index].go_on(model, tokens, max_tokens)
    }

    /// Ends a turn before its length, as after a stop string.
    ///
    /// # Errors
    ///
    /// There is no such sequence.
    pub fn end_turn(&mut self, id: SequenceId) -> Result<(), EngineError> {
        let index = self.find(id)?;
        self.sequences[index].turn_left = 0;
        Ok(())
    }

    /// Forgets a sequence. Says whether there was one.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let index = self.find(id);
        index.map(|index| self.sequences.remove(index)).is_ok()
    }

    /// All tokens of a sequence so far.
    ///
    /// # Errors
    ///
    /// There is no such sequence.
    pub fn tokens(&self, id: SequenceId) -> Result<&[u32], EngineError> {
        Ok(&self.sequences[self.find(id)?].tokens)
    }

    /// Log-probabilities of the prompt's tokens but the first, as far as they are computed. Empty
    /// unless the request asked for them.
    ///
    /// # Errors
    ///
    /// There is no such sequence.
    pub fn prompt_logprobs(&self, id: SequenceId) -> Result<&[TokenLogprobs], EngineError> {
        Ok(&self.sequences[self.find(id)?].prompt_logprobs)
    }

    /// Bytes of keys and values; what sequences share counts once for each.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.sequences.iter().map(|s| s.cache.bytes()).sum()
    }

    /// Lets go of what was computed with adapters that nobody holds any more.
    pub fn sweep(&mut self) {
        self.prefixes.sweep();
    }

    /// Computes what is due: every sequence in the middle of a turn draws a token, and prompts
    /// are computed piece by piece beside them. Where the logits of all would take too much
    /// memory, the youngest wait.
    ///
    /// # Errors
    ///
    /// The forward pass failed; no sequence has changed.
    pub fn step(&mut self, model: &Model, threads: &Threads) -> Result<Step, EngineError> {
        let vocab = model.config().vocab_size;
        let shares = plan(&mut self.sequences, &mut self.prefixes, vocab);
        let due = self.sequences.iter_mut().zip(&shares);
        let mut batch: Vec<SequenceStep<'_>> = due
            .filter(|(_, work)| work.tokens > 0)
            .map(|(sequence, work)| sequence.step(*work))
            .collect();
        if batch.is_empty() {
            return Ok(Step::default());
        }
        let logits = model.forward(&mut batch, threads, &mut self.scratch)?;
        drop(batch);

        let mut draws = Vec::new();
        let mut prefilled = 0;
        let due = self.sequences.iter_mut().zip(shares);
        let due = due.filter(|(_, work)| work.tokens > 0);
        for ((sequence, work), logits) in due.zip(&logits) {
            sequence.computed(work, logits);
            if sequence.is_prefilled() {
                self.prefixes.put(sequence);
            }
            let wants_token = sequence.wants_token();
            prefilled += work.tokens - usize::from(wants_token);
            if wants_token {
                draws.push(Draw::new(sequence, logits));
            }
        }
        let parallel = draws.len() > 1 && draws.len() * vocab >= PARALLEL_DRAWS_MIN;
        for_each_mut(threads, parallel, &mut draws, |_, draw| draw.make());
        let drawn = draws.into_iter().map(Draw::finish).collect();
        Ok(Step { drawn, prefilled })
    }

    fn find(&self, id: SequenceId) -> Result<usize, EngineError> {
        let index = self.sequences.iter().position(|s| s.id == id);
        index.ok_or_else(|| invalid(format!("there is no sequence {id}")))
    }
}

/// A token about to be drawn.
struct Draw<'a> {
    sequence: &'a mut Sequence,
    logits: &'a [f32],
    sampled: Sampled,
    top: Vec<(u32, f32)>,
}

impl<'a> Draw<'a> {
    fn new(sequence: &'a mut Sequence, logits: &'a Logits) -> Self {
        Self {
            sequence,
            logits: logits.row(logits.rows() - 1),
            sampled: Sampled {
                token: 0,
                logprob: 0.0,
            },
            top: Vec::new(),
        }
    }

    fn make(&mut self) {
        let Sequence {
            sampling,
            seed,
            tokens,
            top_logprobs,
            ..
        } = &*self.sequence;
        self.sampled = sample(self.logits, sampling, *seed, tokens.len() as u64);
        self.top = top_logprobs_of(self.logits, *top_logprobs);
    }

    fn finish(self) -> Drawn {
        let Sampled { token, logprob } = self.sampled;
        Drawn {
            sequence: self.sequence.id,
            token,
            logprobs: TokenLogprobs {
                logprob,
                top: self.top,
            },
            end: self.sequence.drew(token),
        }
    }
}

/// The log-probability of a token in a row of logits, with those of the likeliest.
fn token_logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    TokenLogprobs {
        logprob: log_softmax_at(logits, token),
        top: top_logprobs_of(logits, top),
    }
}

fn top_logprobs_of(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let (max, ln_sum) = max_and_ln_sum(logits);
    let logprob = |token: u32| (token, (logits[token as usize] - max) - ln_sum);
    let tokens = top_tokens(logits, count).into_iter();
    tokens.map(logprob).collect()
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

/// Samples up to `max_tokens` tokens after a prompt, ending early with a token of `stop`.
///
/// The draw of a token is a function of the seed and the token's position in the sequence.
///
/// # Errors
///
/// Those of [`Decoder::start`].
#[expect(
    clippy::too_many_arguments,
    reason = "the parameters of sampling have no common noun"
)]
pub fn generate(
    model: &Model,
    adapter: Option<&Arc<Adapter>>,
    prompt: &[u32],
    max_tokens: usize,
    sampling: &SamplingParams,
    seed: u64,
    stop: &[u32],
    threads: &Threads,
) -> Result<Generated, EngineError> {
    let mut decoder = Decoder::new();
    let request = Request {
        adapter: adapter.cloned(),
        sampling: *sampling,
        seed,
        stop_tokens: stop.into(),
        ..Request::new(prompt.to_vec(), max_tokens)
    };
    decoder.start(model, 0, request)?;
    let mut generated = Generated::default();
    let mut going = max_tokens > 0;
    while going {
        for drawn in decoder.step(model, threads)?.drawn {
            generated.tokens.push(drawn.token);
            generated.logprobs.push(drawn.logprobs.logprob);
            generated.stopped = drawn.end == Some(TurnEnd::StopToken);
            going = drawn.end.is_none();
        }
    }
    Ok(generated)
}

fn invalid(what: String) -> EngineError {
    EngineError::InvalidArgument { what }
}

#[cfg(test)]
mod tests;
