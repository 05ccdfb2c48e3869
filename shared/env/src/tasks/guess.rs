//! `guess`: find a number from 1 to 20 with the answers `higher` and `lower`.
//!
//! Draw: an episode seed; the secret is `1 + below(20)` of a stream with that seed. The episode
//! ends at `correct`, after six guesses, or at a reply that is no whole number from 1 to 20.
//! Reward 1 / guesses when found, else 0.

use super::{Phase, stripped};
use crate::catalog::{EnvInfo, Yardstick};
use crate::draw::{self, SplitMix64};
use crate::environment::{Environment, Message, Observation, Transition};
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

const GUESSES_MAX: u32 = 6;

/// Length limit of a guess in tokens; a digit is one token.
const GUESS_TOKENS_MAX: u32 = 4;

const SYSTEM: &str = "Task: guess. Reply with a number from 1 to 20.";
const OPENING: &str = "I am thinking of a number from 1 to 20.";

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "guess",
    summary: "Find a number from 1 to 20 in at most six guesses, told 'higher' or 'lower'; \
              reward 1 / guesses.",
    max_turns: GUESSES_MAX,
    yardsticks: &[
        Yardstick {
            strategy: "six different numbers at random",
            reward: 0.12,
        },
        Yardstick {
            strategy: "tiny-base at temperature 1",
            reward: 0.129,
        },
        Yardstick {
            strategy: "halving the interval",
            reward: 0.32,
        },
    ],
    config_keys: &[],
    payload: None,
};

pub(crate) fn make(scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    let episode = episode(scenario)?;
    Ok(Box::new(Guess {
        secret: secret(episode),
        guesses: 0,
        phase: Phase::New,
    }))
}

fn episode(scenario: &Scenario) -> Result<u64, EnvError> {
    draw::instance(INFO.name, scenario, SplitMix64::next_u64, u64::to_string)
}

const fn secret(episode: u64) -> u64 {
    1 + SplitMix64::new(episode).below(20)
}

#[derive(Debug)]
struct Guess {
    secret: u64,
    guesses: u32,
    phase: Phase,
}

impl Guess {
    fn end(&mut self, solved: bool) -> Transition {
        self.phase = Phase::Over;
        let guesses = f64::from(self.guesses);
        let value = if solved { 1.0 / guesses } else { 0.0 };
        let solved = f64::from(u8::from(solved));
        let reward = Reward::new(value, [("solved", solved), ("guesses", guesses)]);
        Transition::Done { reward }
    }
}

impl Environment for Guess {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.guesses = 0;
        self.phase = Phase::Asking;
        Ok(Observation {
            messages: vec![Message::system(SYSTEM), Message::user(OPENING)],
            max_new_tokens: GUESS_TOKENS_MAX,
        })
    }

    fn step(&mut self, reply: &str) -> Result<Transition, EnvError> {
        self.phase.expect_asking()?;
        let Some(guess) = parsed(reply) else {
            return Ok(self.end(false));
        };
        self.guesses += 1;
        assert!(self.guesses <= GUESSES_MAX, "the episode is over by then");
        let hint = match self.secret.cmp(&guess) {
            std::cmp::Ordering::Equal => return Ok(self.end(true)),
            _ if self.guesses == GUESSES_MAX => return Ok(self.end(false)),
            std::cmp::Ordering::Greater => "higher",
            std::cmp::Ordering::Less => "lower",
        };
        Ok(Transition::Continue {
            messages: vec![Message::user(hint)],
            max_new_tokens: GUESS_TOKENS_MAX,
        })
    }
}

/// One or two ASCII digits that make a number from 1 to 20.
fn parsed(reply: &str) -> Option<u64> {
    let text = stripped(reply);
    let digits = matches!(text.len(), 1 | 2) && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok())??;
    (1..=20).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::fnv1a64;
    use crate::scenario::Split::{Eval, Train};

    /// Plays a strategy from the known bounds to the end; the reward, and how often it was asked.
    fn play(secret: u64, mut strategy: impl FnMut(u64, u64) -> String) -> (Reward, u32) {
        let phase = Phase::New;
        let guesses = 3; // reset must forget these
        let mut game = Guess {
            secret,
            guesses,
            phase,
        };
        assert_eq!(game.reset().expect("reset").messages[1].content, OPENING);
        let (mut low, mut high, mut asked) = (1, 20, 0);
        loop {
            let reply = strategy(low, high);
            asked += 1;
            match game.step(&reply).expect("asking") {
                Transition::Done { reward } => return (reward, asked),
                Transition::Continue { messages, .. } => {
                    let guess = parsed(&reply).expect("else the game were over");
                    match &*messages[0].content {
                        "higher" => low = guess + 1,
                        "lower" => high = guess - 1,
                        other => panic!("unexpected hint {other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn golden_episodes() {
        for (instance, seed, number) in [
            (0, 5_034_174_372_205_296_937, 17),
            (1, 1_236_689_394_243_659_980, 9),
            (2, 899_204_897_177_321_708, 12),
            (3, 10_705_271_572_422_175_443, 5),
        ] {
            let drawn = episode(&Scenario::new(Train, instance)).expect("drawn");
            assert_eq!((drawn, secret(drawn)), (seed, number));
        }
    }

    /// Hashes of a thousand episodes each, made by the tasks' reference implementation.
    #[test]
    fn golden_thousands() {
        for (split, first, hash) in [
            (Train, 0, 13_899_921_075_544_394_641),
            (Train, 1_000_000, 17_608_365_261_238_823_792),
            (Eval, 0, 6_499_916_345_383_079_464),
            (Eval, 1_000_000, 17_101_709_101_945_043_542),
        ] {
            let all: String = (first..first + 1000)
                .map(|i| episode(&Scenario::new(split, i)).expect("drawn"))
                .map(|episode| format!("{episode} {}\n", secret(episode)))
                .collect();
            assert_eq!(fnv1a64(&all), hash, "{split:?} from {first}");
        }
    }

    #[test]
    fn halving_finds_every_secret_in_five_and_earns_its_yardstick() {
        let mut total = 0.0;
        for secret in 1..=20 {
            let (reward, asked) = play(secret, |low, high| u64::midpoint(low, high).to_string());
            assert!(asked <= 5);
            assert_eq!(reward.value, Some(1.0 / f64::from(asked)));
            assert_eq!(reward.metrics["solved"], 1.0);
            assert_eq!(reward.metrics["guesses"], f64::from(asked));
            total += reward.value.unwrap_or_default();
        }
        assert!((total / 20.0 - 0.32).abs() < 0.005, "{}", total / 20.0);
    }

    #[test]
    fn six_wrong_guesses_end_the_episode() {
        let (reward, asked) = play(20, |_, _| "1".to_owned());
        let expected = Reward::new(0.0, [("solved", 0.0), ("guesses", 6.0)]);
        assert_eq!((reward, asked), (expected, 6));
    }

    #[test]
    fn a_reply_that_is_no_number_of_the_range_ends_the_episode() {
        for reply in ["", "0", "21", "-1", "+5", "5.0", "five", "005", "1 2", "५"] {
            let (reward, asked) = play(5, |_, _| reply.to_owned());
            let expected = Reward::new(0.0, [("solved", 0.0), ("guesses", 0.0)]);
            assert_eq!((reward, asked), (expected, 1));
        }
        assert_eq!(play(5, |_, _| " 05\n".to_owned()).0.value, Some(1.0));
    }
}
