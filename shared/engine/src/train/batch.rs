//! Data.

use crate::config::ModelConfig;
use crate::error::EngineError;

/// One sequence with what the loss needs to know about its tokens.
///
/// `logprob[t]` is that of `tokens[t + 1]` given everything before it, so every other array is one
/// shorter than `tokens`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Datum {
    /// `T + 1` tokens: the inputs and, shifted by one, the targets.
    pub tokens: Vec<u32>,
    /// `T` log-probabilities of the sampler, nats; not read where the weight is 0.
    pub sampled_logprobs: Vec<f32>,
    /// `T` advantages; not read where the weight is 0.
    pub advantages: Vec<f32>,
    /// `T` weights; 0 marks a target that is no loss token.
    pub weights: Vec<f32>,
}

impl Datum {
    /// Number of positions: one less than there are tokens.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// The tokens that a forward reads: all but the last.
    pub(super) fn inputs(&self) -> &[u32] {
        &self.tokens[..self.rows()]
    }

    /// Refuses what a forward cannot compute.
    pub(super) fn check(&self, model: &ModelConfig) -> Result<(), EngineError> {
        let Self {
            tokens,
            sampled_logprobs,
            advantages,
            weights,
        } = self;
        check_tokens(tokens, model)?;
        let rows = self.rows();
        for (name, length) in [
            ("sampled_logprobs", sampled_logprobs.len()),
            ("advantages", advantages.len()),
            ("weights", weights.len()),
        ] {
            if length != rows {
                let what = format!("{} tokens need {rows} {name}, not {length}", tokens.len());
                return Err(EngineError::InvalidArgument { what });
            }
        }
        Ok(())
    }
}

/// Refuses sequences that have no position, do not fit the context, or leave the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], model: &ModelConfig) -> Result<(), EngineError> {
    let vocab_size = model.vocab_size;
    let outside = tokens.iter().find(|token| **token as usize >= vocab_size);
    if let Some(&token) = outside {
        return Err(EngineError::TokenOutOfRange { token, vocab_size });
    }
    let (needed, max) = (
        tokens.len().saturating_sub(1),
        model.max_position_embeddings,
    );
    if needed == 0 {
        let what = format!("a sequence of {} tokens predicts nothing", tokens.len());
        return Err(EngineError::InvalidArgument { what });
    }
    if needed > max {
        return Err(EngineError::ContextExceeded { needed, max });
    }
    Ok(())
}
