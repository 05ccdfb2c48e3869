//! `arithmetic`: one sum or difference of numbers below 100.
//!
//! Draws: `a = below(100)`, `b = below(100)`, `minus = below(10) < 2`; for minus the larger
//! number comes first. Reward 1 if the stripped reply equals the result in decimal, else 0.

use super::single_turn::{Question, SingleTurn};
use super::stripped;
use crate::catalog::{EnvInfo, Yardstick};
use crate::draw::{self, SplitMix64};
use crate::environment::Environment;
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "arithmetic",
    summary: "One sum or difference of numbers below 100; reward 1 for the exact result.",
    max_turns: 1,
    yardsticks: &[
        Yardstick {
            strategy: "tiny-base at temperature 1",
            reward: 0.424,
        },
        Yardstick {
            strategy: "tiny-base, greedy",
            reward: 0.932,
        },
        Yardstick {
            strategy: "always right",
            reward: 1.0,
        },
    ],
    config_keys: &[],
    payload: None,
};

pub(crate) fn make(scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    Ok(Box::new(SingleTurn::new(sum(scenario)?)))
}

#[derive(Debug)]
struct Sum {
    text: String,
    answer: String,
}

fn sum(scenario: &Scenario) -> Result<Sum, EnvError> {
    draw::instance(INFO.name, scenario, draw_sum, |sum| sum.text.clone())
}

fn draw_sum(rng: &mut SplitMix64) -> Sum {
    let (mut a, mut b, minus) = (rng.below(100), rng.below(100), rng.below(10) < 2);
    if minus && a < b {
        (a, b) = (b, a);
    }
    let (sign, result) = if minus { ('-', a - b) } else { ('+', a + b) };
    Sum {
        text: format!("{a}{sign}{b}="),
        answer: result.to_string(),
    }
}

impl Question for Sum {
    const SYSTEM: &'static str = "Task: arithmetic. Reply with the result.";

    fn text(&self) -> &str {
        &self.text
    }

    fn score(&self, reply: &str) -> Reward {
        let correct = f64::from(u8::from(stripped(reply) == self.answer));
        Reward::new(correct, [("correct", correct)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::fnv1a64;
    use crate::scenario::Split::{Eval, Train};

    #[test]
    fn golden_instances() {
        for (split, instance, text, answer) in [
            (Train, 0, "22+6=", "28"),
            (Train, 1, "92-54=", "38"),
            (Train, 2, "43+37=", "80"),
            (Train, 3, "67+30=", "97"),
            (Eval, 0, "73-52=", "21"),
            (Eval, 1, "18+15=", "33"),
        ] {
            let sum = sum(&Scenario::new(split, instance)).expect("drawn");
            assert_eq!((&*sum.text, &*sum.answer), (text, answer));
        }
    }

    /// Hashes of a thousand instances each, made by the tasks' reference implementation.
    #[test]
    fn golden_thousands() {
        for (split, first, hash) in [
            (Train, 0, 2_303_079_354_291_543_484),
            (Train, 1_000_000, 8_362_508_059_384_045_760),
            (Eval, 0, 12_147_905_615_781_372_202),
            (Eval, 1_000_000, 10_603_799_787_252_239_523),
        ] {
            let all: String = (first..first + 1000)
                .map(|i| sum(&Scenario::new(split, i)).expect("drawn"))
                .map(|sum| format!("{}\n{}\n", sum.text, sum.answer))
                .collect();
            assert_eq!(fnv1a64(&all), hash, "{split:?} from {first}");
        }
    }

    #[test]
    fn only_the_exact_number_is_rewarded() {
        let sum = sum(&Scenario::new(Train, 0)).expect("drawn");
        for (reply, reward) in [
            ("28", 1.0),
            (" 28\n", 1.0),
            ("028", 0.0),
            ("28.", 0.0),
            ("2 8", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(sum.score(reply), Reward::new(reward, [("correct", reward)]));
        }
    }
}
