//! `noop`: an episode that costs nothing but its way: for measuring the fan-out itself.
//!
//! One reply of any kind ends it. Its reward is one of eight, by the instance's number, so that
//! results can be told apart; with `sleep_ms` it takes that long, as a simulator would.

use std::thread;
use std::time::Duration;

use super::Phase;
use crate::catalog::{ConfigKey, EnvInfo, Yardstick};
use crate::environment::{Environment, Message, Observation, Transition};
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

/// Longest pause: a minute stands for any slow simulator.
const SLEEP_MS_MAX: u64 = 60_000;

const REPLY_TOKENS_MAX: u32 = 8;

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "noop",
    summary: "Nothing: one reply ends it. For measuring the way of a rollout without its work.",
    max_turns: 1,
    yardsticks: &[Yardstick {
        strategy: "any reply",
        reward: 0.4375,
    }],
    config_keys: &[ConfigKey {
        name: "sleep_ms",
        help: "how long an episode takes (default 0)",
    }],
    payload: Some("anything; it is not looked at"),
};

pub(crate) fn make(scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    let sleep_ms = scenario.whole_number(INFO.name, "sleep_ms", 0, 0..=SLEEP_MS_MAX)?;
    Ok(Box::new(Noop {
        sleep_ms,
        reward: (scenario.instance % 8) as f64 / 8.0,
        phase: Phase::New,
    }))
}

#[derive(Debug)]
struct Noop {
    sleep_ms: u64,
    reward: f64,
    phase: Phase,
}

impl Environment for Noop {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.phase = Phase::Asking;
        Ok(Observation {
            messages: vec![Message::user("Reply with anything.")],
            max_new_tokens: REPLY_TOKENS_MAX,
        })
    }

    fn step(&mut self, _: &str) -> Result<Transition, EnvError> {
        self.phase.expect_asking()?;
        self.phase = Phase::Over;
        if self.sleep_ms > 0 {
            thread::sleep(Duration::from_millis(self.sleep_ms));
        }
        Ok(Transition::Done {
            reward: Reward::new(self.reward, []),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Split;

    #[test]
    fn one_reply_ends_it_and_the_reward_tells_instances_apart() {
        for (instance, reward) in [(0, 0.0), (9, 0.125), (15, 0.875)] {
            let mut env = make(&Scenario::new(Split::Train, instance)).expect("no settings");
            assert!(env.step("x").is_err(), "before its reset");
            env.reset().expect("reset");
            let due = Transition::Done {
                reward: Reward::new(reward, []),
            };
            assert_eq!(env.step("").expect("step"), due);
        }
    }

    #[test]
    fn a_pause_has_a_bound() {
        let long = Scenario::new(Split::Train, 0).with("sleep_ms", "60001");
        assert!(make(&long).is_err());
    }
}
