//! `faulty`: a diagnostic that breaks on demand, so that users see how failures surface.
//!
//! Two identical episodes break in the same way: whether an instance breaks depends on its
//! number alone. Where it does not break, any reply earns 1.

use std::thread;
use std::time::Duration;

use super::Phase;
use crate::catalog::{ConfigKey, EnvInfo, Yardstick};
use crate::environment::{Environment, Message, Observation, Transition};
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

/// Longest pause of the mode `slow`: an hour outlives every time limit.
const SLEEP_MS_MAX: u64 = 3_600_000;

const SLEEP_MS_DEFAULT: u64 = 1_000;

const REPLY_TOKENS_MAX: u32 = 8;

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "faulty",
    summary: "A diagnostic: breaks on demand, to show how failures of environments surface.",
    max_turns: 1,
    yardsticks: &[Yardstick {
        strategy: "any reply, where it does not break",
        reward: 1.0,
    }],
    config_keys: &[
        ConfigKey {
            name: "mode",
            help: "how it breaks, needed: panic | nan | inf | no_reward | error | slow",
        },
        ConfigKey {
            name: "every",
            help: "break only on instances whose number is a multiple of this (default 1: all)",
        },
        ConfigKey {
            name: "sleep_ms",
            help: "pause of the mode 'slow' before its sound reward (default 1000)",
        },
    ],
    payload: None,
};

pub(crate) fn make(scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    let every = scenario.whole_number(INFO.name, "every", 1, 1..=u64::MAX)?;
    let sleep_ms =
        scenario.whole_number(INFO.name, "sleep_ms", SLEEP_MS_DEFAULT, 0..=SLEEP_MS_MAX)?;
    let fault = parsed(scenario, sleep_ms)?;
    Ok(Box::new(Faulty {
        fault: scenario.instance.is_multiple_of(every).then_some(fault),
        instance: scenario.instance,
        phase: Phase::New,
    }))
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Panic,
    Nan,
    Infinity,
    NoReward,
    Error,
    Slow { sleep_ms: u64 },
}

fn parsed(scenario: &Scenario, sleep_ms: u64) -> Result<Fault, EnvError> {
    let mode = scenario.config.get("mode").map_or("", String::as_str);
    Ok(match mode {
        "panic" => Fault::Panic,
        "nan" => Fault::Nan,
        "inf" => Fault::Infinity,
        "no_reward" => Fault::NoReward,
        "error" => Fault::Error,
        "slow" => Fault::Slow { sleep_ms },
        _ => {
            return Err(EnvError::Config {
                env: INFO.name,
                key: "mode".to_owned(),
                reason: format!(
                    "'{}' is none of panic, nan, inf, no_reward, error, slow",
                    crate::error::shortened(mode)
                ),
            });
        }
    })
}

#[derive(Debug)]
struct Faulty {
    /// `None` where this instance does not break.
    fault: Option<Fault>,
    instance: u64,
    phase: Phase,
}

impl Environment for Faulty {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.phase = Phase::Asking;
        Ok(Observation {
            messages: vec![
                Message::system("Task: faulty. Reply with anything."),
                Message::user(self.instance.to_string()),
            ],
            max_new_tokens: REPLY_TOKENS_MAX,
        })
    }

    fn step(&mut self, _reply: &str) -> Result<Transition, EnvError> {
        self.phase.expect_asking()?;
        self.phase = Phase::Over;
        let instance = self.instance;
        let value = match self.fault {
            None => Some(1.0),
            Some(Fault::Nan) => Some(f64::NAN),
            Some(Fault::Infinity) => Some(f64::INFINITY),
            Some(Fault::NoReward) => None,
            Some(Fault::Panic) => panic!("faulty: instance {instance} was asked to panic"),
            Some(Fault::Error) => {
                let message = format!("faulty: instance {instance} was asked to fail");
                return Err(EnvError::failed(&message));
            }
            Some(Fault::Slow { sleep_ms }) => {
                thread::sleep(Duration::from_millis(sleep_ms));
                Some(1.0)
            }
        };
        let reward = Reward {
            value,
            ..Reward::default()
        };
        Ok(Transition::Done { reward })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::{Guarded, quiet_guarded_panics};
    use crate::scenario::Split;

    fn scenario(mode: &str) -> Scenario {
        Scenario::new(Split::Train, 6).with("mode", mode)
    }

    /// What a worker would make of the episode: the reward, or the code and the message.
    fn outcome(scenario: &Scenario) -> Result<f64, (&'static str, String)> {
        let told = |error: EnvError| (error.code(), error.to_string());
        quiet_guarded_panics();
        let mut env = Guarded::create("faulty", scenario).map_err(told)?;
        env.reset().map_err(told)?;
        match env.step("anything").map_err(told)? {
            Transition::Done { reward } => reward.validate().map(|r| r.value()).map_err(told),
            Transition::Continue { .. } => panic!("one turn only"),
        }
    }

    #[test]
    fn every_mode_surfaces_as_its_code() {
        for (mode, code, part) in [
            ("panic", "ENV_PANIC", "instance 6 was asked to panic"),
            ("error", "ENV_FAILED", "instance 6 was asked to fail"),
            ("nan", "REWARD_INVALID", "NaN"),
            ("inf", "REWARD_INVALID", "inf"),
            ("no_reward", "REWARD_INVALID", "without one"),
            ("sloow", "INVALID_REQUEST", "none of panic, nan"),
            ("", "INVALID_REQUEST", "none of panic, nan"),
        ] {
            let (got, message) = outcome(&scenario(mode)).expect_err(mode);
            assert_eq!(got, code, "{mode}");
            assert!(message.contains(part), "{mode}: {message}");
        }
        let slow = scenario("slow").with("sleep_ms", "1");
        assert_eq!(outcome(&slow), Ok(1.0));
    }

    #[test]
    fn only_multiples_of_every_break() {
        for instance in 0..9 {
            let scenario = Scenario::new(Split::Eval, instance)
                .with("mode", "error")
                .with("every", "3");
            assert_eq!(outcome(&scenario).is_err(), instance % 3 == 0, "{instance}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (key, value) in [("every", "0"), ("every", "x"), ("sleep_ms", "3600001")] {
            let (code, message) = outcome(&scenario("slow").with(key, value)).expect_err(key);
            assert_eq!(code, "INVALID_REQUEST");
            assert!(message.contains("is not a whole number from"), "{message}");
        }
    }
}
