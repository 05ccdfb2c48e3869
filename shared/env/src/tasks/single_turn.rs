//! Tasks of one question and one answer.

use super::Phase;
use crate::environment::{Environment, Message, Observation, Transition};
use crate::error::EnvError;
use crate::reward::Reward;

/// Length limit of an answer in tokens; the longest right answer of these tasks has 17.
const ANSWER_TOKENS_MAX: u32 = 48;

/// A question that knows its answer.
pub(super) trait Question: Send {
    /// The system line.
    const SYSTEM: &'static str;

    /// The user message.
    fn text(&self) -> &str;

    /// What a reply is worth.
    fn score(&self, reply: &str) -> Reward;
}

/// The episode around one question.
#[derive(Debug)]
pub(super) struct SingleTurn<Q> {
    question: Q,
    phase: Phase,
}

impl<Q> SingleTurn<Q> {
    /// An episode that asks this question.
    pub(super) const fn new(question: Q) -> Self {
        Self {
            question,
            phase: Phase::New,
        }
    }
}

impl<Q: Question> Environment for SingleTurn<Q> {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.phase = Phase::Asking;
        Ok(Observation {
            messages: vec![
                Message::system(Q::SYSTEM),
                Message::user(self.question.text()),
            ],
            max_new_tokens: ANSWER_TOKENS_MAX,
        })
    }

    fn step(&mut self, reply: &str) -> Result<Transition, EnvError> {
        self.phase.expect_asking()?;
        self.phase = Phase::Over;
        let reward = self.question.score(reply);
        Ok(Transition::Done { reward })
    }
}
