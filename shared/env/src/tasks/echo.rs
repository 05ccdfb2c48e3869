//! `echo`: the policy is told a text and says it again. The text is the episode's payload.
//!
//! Without a payload: `n = below(1_000_000)`, and the text is `n` in decimal. Reward 1 if the
//! stripped reply equals the stripped text, else 0.

use super::{Phase, stripped};
use crate::catalog::{EnvInfo, Yardstick};
use crate::draw;
use crate::environment::{Environment, Message, Observation, Transition};
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

/// Longest reply in tokens. A token is at least a byte, so a text of as many bytes can be said
/// again in full; of a longer one only the beginning.
const REPLY_TOKENS_MAX: usize = 4096;

/// Tokens beyond the text's bytes: white space that a policy adds costs nothing.
const SPARE_TOKENS: usize = 8;

const SYSTEM: &str = "Task: echo. Reply with the same text.";

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "echo",
    summary: "Say a text again; reward 1 for the same text. The text is what was put.",
    max_turns: 1,
    yardsticks: &[Yardstick {
        strategy: "always right",
        reward: 1.0,
    }],
    config_keys: &[],
    payload: Some("the text, in UTF-8"),
};

pub(crate) fn make(scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    let text = if scenario.payload.is_empty() {
        let draw_text = |rng: &mut draw::SplitMix64| rng.below(1_000_000).to_string();
        draw::instance(INFO.name, scenario, draw_text, String::clone)?
    } else {
        String::from_utf8(scenario.payload.clone()).map_err(|error| EnvError::Payload {
            env: INFO.name,
            reason: format!("it is no UTF-8 text: {error}"),
        })?
    };
    let phase = Phase::New;
    Ok(Box::new(Echo { text, phase }))
}

#[derive(Debug)]
struct Echo {
    text: String,
    phase: Phase,
}

impl Environment for Echo {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.phase = Phase::Asking;
        let tokens = (self.text.len() + SPARE_TOKENS).min(REPLY_TOKENS_MAX);
        Ok(Observation {
            messages: vec![Message::system(SYSTEM), Message::user(self.text.as_str())],
            max_new_tokens: tokens as u32,
        })
    }

    fn step(&mut self, reply: &str) -> Result<Transition, EnvError> {
        self.phase.expect_asking()?;
        self.phase = Phase::Over;
        let same = f64::from(u8::from(stripped(reply) == stripped(&self.text)));
        Ok(Transition::Done {
            reward: Reward::new(same, [("same", same)]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Split;

    fn with(payload: &[u8]) -> Scenario {
        Scenario {
            payload: payload.to_vec(),
            ..Scenario::new(Split::Train, 3)
        }
    }

    fn reward(scenario: &Scenario, reply: &str) -> f64 {
        let mut env = make(scenario).expect("made");
        env.reset().expect("reset");
        match env.step(reply).expect("step") {
            Transition::Done { reward } => reward.validate().expect("sound").value(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_payload_is_the_question_and_the_answer() {
        let scenario = with("Grüße\n".as_bytes());
        let told = make(&scenario).expect("made").reset().expect("reset");
        assert_eq!(told.messages[1], Message::user("Grüße\n"));
        assert_eq!(told.max_new_tokens, 16);
        assert_eq!(
            (reward(&scenario, " Grüße "), reward(&scenario, "Grüße!")),
            (1.0, 0.0)
        );
        let long = make(&with(&[b'x'; 65_536])).expect("made").reset();
        assert_eq!(long.map(|told| told.max_new_tokens), Ok(4_096));
    }

    #[test]
    fn without_a_payload_instances_differ() {
        let text = |instance| {
            let scenario = Scenario::new(Split::Eval, instance);
            make(&scenario)
                .expect("made")
                .reset()
                .expect("reset")
                .messages[1]
                .clone()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let error = make(&with(b"a\xff")).err().expect("refused");
        assert_eq!(error.code(), "INVALID_REQUEST");
        assert!(error.to_string().contains("no UTF-8 text"), "{error}");
    }
}
