//! One sequence of a decoder.

use std::sync::Arc;

use super::plan::Work;
use super::{SequenceId, TokenLogprobs, TurnEnd, invalid, token_logprobs};
use crate::adapter::Adapter;
use crate::error::EngineError;
use crate::kv::KvCache;
use crate::model::{Logits, LogitsWanted, Model, SequenceStep};
use crate::sampler::SamplingParams;

/// What to play.
#[derive(Clone, Debug)]
pub struct Request {
    /// What comes before the first drawn token; not empty.
    pub prompt: Vec<u32>,
    /// The adapter, for all turns; none: the base model.
    pub adapter: Option<Arc<Adapter>>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Key of the draws: the same seed draws the same tokens.
    pub seed: u64,
    /// Tokens of the first turn, its stop token included. 0 only computes the prompt.
    pub max_tokens: usize,
    /// Tokens that end a turn.
    pub stop_tokens: Arc<[u32]>,
    /// Whether the prompt's own log-probabilities are wanted. Nothing is then taken from a prompt
    /// that was computed before.
    pub prompt_logprobs: bool,
    /// How many of the likeliest tokens are reported with each token.
    pub top_logprobs: usize,
}

impl Request {
    /// The model's own distribution after a prompt, without stop tokens.
    #[must_use]
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            adapter: None,
            sampling: SamplingParams::default(),
            seed: 0,
            max_tokens,
            stop_tokens: Arc::default(),
            prompt_logprobs: false,
            top_logprobs: 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// All tokens; those after the cache's are not computed yet.
    pub(super) tokens: Vec<u32>,
    pub(super) cache: KvCache,
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) sampling: SamplingParams,
    pub(super) seed: u64,
    stop_tokens: Arc<[u32]>,
    /// Tokens that the turn may still draw; 0 between turns.
    pub(super) turn_left: usize,
    /// Length of the prompt until it is computed, then 0.
    prompt_due: usize,
    /// Whether it has computed anything itself.
    pub(super) started: bool,
    /// Number of the first remembered prompt that it has not been compared with.
    pub(super) next_prefix: u64,
    wants_prompt_logprobs: bool,
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    pub(super) top_logprobs: usize,
}

impl Sequence {
    pub(super) fn new(
        model: &Model,
        id: SequenceId,
        request: Request,
    ) -> Result<Self, EngineError> {
        if request.prompt.is_empty() {
            let what = "an empty prompt says nothing about the next token".to_owned();
            return Err(invalid(what));
        }
        check(model, 0, &request.prompt, request.max_tokens)?;
        if let Some(adapter) = &request.adapter {
            adapter.check_fits(model.config())?;
        }
        Ok(Self {
            id,
            prompt_due: request.prompt.len(),
            tokens: request.prompt,
            cache: KvCache::new(model.config()),
            adapter: request.adapter,
            sampling: request.sampling,
            seed: request.seed,
            stop_tokens: request.stop_tokens,
            turn_left: request.max_tokens,
            started: false,
            next_prefix: 0,
            wants_prompt_logprobs: request.prompt_logprobs,
            prompt_logprobs: Vec::new(),
            top_logprobs: request.top_logprobs,
        })
    }

    pub(super) fn go_on(
        &mut self,
        model: &Model,
        tokens: &[u32],
        max_tokens: usize,
    ) -> Result<(), EngineError> {
        if self.turn_left > 0 {
            let what = format!("sequence {} is in the middle of a turn", self.id);
            return Err(invalid(what));
        }
        check(model, self.tokens.len(), tokens, max_tokens)?;
        self.tokens.extend_from_slice(tokens);
        self.turn_left = max_tokens;
        Ok(())
    }

    /// Tokens that are not computed yet. Between turns they wait for the next one's, except
    /// those of a prompt.
    pub(super) fn due(&self) -> usize {
        match self.turn_left > 0 || self.prompt_due > 0 {
            true => self.tokens.len() - self.cache.len(),
            false => 0,
        }
    }

    /// What it computes in this pass.
    pub(super) fn step(&mut self, work: Work) -> SequenceStep<'_> {
        let begin = self.cache.len();
        let logits = match (self.wants_logits_of_prompt(), work.all) {
            (true, _) => LogitsWanted::All,
            (false, true) if self.turn_left > 0 => LogitsWanted::Last,
            _ => LogitsWanted::None,
        };
        SequenceStep {
            tokens: &self.tokens[begin..begin + work.tokens],
            cache: &mut self.cache,
            adapter: self.adapter.as_deref(),
            logits,
        }
    }

    /// Takes in what a pass computed.
    pub(super) fn computed(&mut self, work: Work, logits: &Logits) {
        self.started = true;
        if !self.wants_logits_of_prompt() {
            return;
        }
        let begin = self.cache.len() - work.tokens;
        for row in 0..logits.rows() {
            // The row of the prompt's last token predicts what is drawn.
            if begin + row + 1 < self.prompt_due {
                let token = self.tokens[begin + row + 1];
                let logprobs = token_logprobs(logits.row(row), token, self.top_logprobs);
                self.prompt_logprobs.push(logprobs);
            }
        }
    }

    /// Whether the logits of all its rows are wanted.
    pub(super) const fn wants_logits_of_prompt(&self) -> bool {
        self.wants_prompt_logprobs && self.prompt_due > 0
    }

    /// Whether others may soon share what it computes.
    pub(super) const fn computes_prompt(&self) -> bool {
        self.prompt_due > 0
    }

    /// Whether the prompt has just become complete. Says so once.
    pub(super) fn is_prefilled(&mut self) -> bool {
        let prefilled = self.prompt_due > 0 && self.cache.len() >= self.prompt_due;
        if prefilled {
            self.prompt_due = 0;
        }
        prefilled
    }

    /// Whether it draws a token now: everything is computed and the turn is not over.
    pub(super) const fn wants_token(&self) -> bool {
        self.turn_left > 0 && self.cache.len() == self.tokens.len()
    }

    /// Appends a drawn token.
    pub(super) fn drew(&mut self, token: u32) -> Option<TurnEnd> {
        self.tokens.push(token);
        self.turn_left -= 1;
        if self.stop_tokens.contains(&token) {
            self.turn_left = 0;
            return Some(TurnEnd::StopToken);
        }
        (self.turn_left == 0).then_some(TurnEnd::Length)
    }

    /// Whether both compute with the same weights.
    pub(super) fn same_adapter(&self, other: &Self) -> bool {
        match (&self.adapter, &other.adapter) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Refuses tokens that a forward could not compute after `before` others.
fn check(
    model: &Model,
    before: usize,
    tokens: &[u32],
    max_tokens: usize,
) -> Result<(), EngineError> {
    let vocab_size = model.config().vocab_size;
    let outside = tokens.iter().find(|token| **token as usize >= vocab_size);
    if let Some(&token) = outside {
        return Err(EngineError::TokenOutOfRange { token, vocab_size });
    }
    // The last token of a turn is drawn and never read.
    let needed = (before + tokens.len()).saturating_add(max_tokens.saturating_sub(1));
    let max = model.config().max_position_embeddings;
    if needed > max {
        return Err(EngineError::ContextExceeded { needed, max });
    }
    Ok(())
}
