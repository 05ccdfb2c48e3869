//! `routing`: a contact centre sends each message to a department, and to a human if need be.
//!
//! Draws: intent; one of its sentences; opener; tone (`below(20)`: 0–13 neutral, 14–16 angry,
//! 17–19 asks for a person); ending of that tone; then the slots of opener + sentence + ending
//! from left to right. Reward: the mean of `route_correct` and `send_to_human_correct`, both 0
//! where the reply is not exactly the two lines `route: DEPARTMENT` and `human: yes|no`.

use super::routing_data::{
    ANGRY, DEPARTMENTS, HUMAN_DEPARTMENTS, INTENTS, MERCHANTS, MONTHS, NAMES, NEUTRAL, OPENERS,
    PERSON,
};
use super::single_turn::{Question, SingleTurn};
use super::stripped;
use crate::catalog::{EnvInfo, Yardstick};
use crate::draw::{self, SplitMix64};
use crate::environment::Environment;
use crate::error::EnvError;
use crate::reward::Reward;
use crate::scenario::Scenario;

pub(crate) const INFO: EnvInfo = EnvInfo {
    name: "routing",
    summary: "Send a customer's message to a department, and to a human where needed; \
              half a point for each.",
    max_turns: 1,
    yardsticks: &[
        Yardstick {
            strategy: "department and human at random",
            reward: 0.3125,
        },
        Yardstick {
            strategy: "always 'disputes' and 'yes'",
            reward: 0.361,
        },
        Yardstick {
            strategy: "tiny-base at temperature 1",
            reward: 0.644,
        },
        Yardstick {
            strategy: "tiny-base, greedy",
            reward: 0.856,
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
    Ok(Box::new(SingleTurn::new(request(scenario)?)))
}

/// What a customer wants, and the sentences that say so.
#[derive(Debug)]
pub(super) struct Intent {
    /// Who takes care of it.
    pub(super) department: &'static str,
    /// Sentences with `{slots}`.
    pub(super) cores: &'static [&'static str],
}

#[derive(Debug)]
struct Request {
    text: String,
    department: &'static str,
    human: bool,
}

fn request(scenario: &Scenario) -> Result<Request, EnvError> {
    draw::instance(INFO.name, scenario, draw_request, |request| {
        request.text.clone()
    })
}

fn draw_request(rng: &mut SplitMix64) -> Request {
    let intent = rng.pick(&INTENTS);
    let core = rng.pick(intent.cores);
    let opener = rng.pick(&OPENERS);
    let (endings, calm) = match rng.below(20) {
        0..=13 => (&NEUTRAL, true),
        14..=16 => (&ANGRY, false),
        _ => (&PERSON, false),
    };
    let template = format!("{opener}{core}{}", rng.pick(endings));
    Request {
        text: filled(&template, rng),
        department: intent.department,
        human: !calm || HUMAN_DEPARTMENTS.contains(&intent.department),
    }
}

/// The template with its slots drawn from left to right.
fn filled(template: &str, rng: &mut SplitMix64) -> String {
    let mut text = String::with_capacity(template.len() + 16);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap_or((after, ""));
        text.push_str(before);
        text.push_str(&draw_slot(slot, rng));
        rest = after;
    }
    text.push_str(rest);
    text
}

fn draw_slot(slot: &str, rng: &mut SplitMix64) -> String {
    match slot {
        "amt" => (5 + rng.below(945)).to_string(),
        "date" => format!("{} {}", rng.pick(&MONTHS), 1 + rng.below(28)),
        "last4" => (1000 + rng.below(9000)).to_string(),
        "merchant" => (*rng.pick(&MERCHANTS)).to_owned(),
        "name" => (*rng.pick(&NAMES)).to_owned(),
        "points" => (500 * (1 + rng.below(40))).to_string(),
        _ => unreachable!("a test draws every slot of every sentence"),
    }
}

/// The department and the human flag of a well-formed reply.
fn parsed(reply: &str) -> Option<(&str, bool)> {
    let (first, second) = stripped(reply).split_once('\n')?;
    let department = first.strip_prefix("route: ")?;
    let human = match second {
        "human: yes" => true,
        "human: no" => false,
        _ => return None,
    };
    DEPARTMENTS
        .contains(&department)
        .then_some((department, human))
}

impl Question for Request {
    const SYSTEM: &'static str =
        "Task: routing. Reply with the route and whether a human is needed.";

    fn text(&self) -> &str {
        &self.text
    }

    fn score(&self, reply: &str) -> Reward {
        let point = |earned: bool| f64::from(u8::from(earned));
        let answer = parsed(reply);
        let route = point(answer.is_some_and(|(department, _)| department == self.department));
        let human = point(answer.is_some_and(|(_, human)| human == self.human));
        Reward::new(
            f64::midpoint(route, human),
            [
                ("route_correct", route),
                ("send_to_human_correct", human),
                ("format_ok", point(answer.is_some())),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::fnv1a64;
    use crate::scenario::Split::{Eval, Train};

    fn answer(request: &Request) -> String {
        let human = if request.human { "yes" } else { "no" };
        format!("route: {}\nhuman: {human}", request.department)
    }

    #[test]
    fn golden_instances() {
        for (split, instance, text, right) in [
            (
                Train,
                0,
                "Ben Cohen here. I moved and need to change my address. Please let me know.",
                "route: general\nhuman: no",
            ),
            (
                Train,
                1,
                "I did not authorise the $34 payment to Acme Store. Thanks.",
                "route: fraud\nhuman: yes",
            ),
            (
                Train,
                2,
                "I did not authorise the $452 payment to Acme Store. This is unacceptable!",
                "route: fraud\nhuman: yes",
            ),
            (
                Train,
                3,
                "I want to turn 12000 points into cash. Thanks.",
                "route: rewards\nhuman: no",
            ),
            (
                Eval,
                0,
                "Elena Petrova here. Close everything I have with you. This is the third time \
                 I write and nobody helps!",
                "route: closures\nhuman: yes",
            ),
            (
                Eval,
                1,
                "Hi, My payment of $221 on September 16 did not go through.",
                "route: payments\nhuman: no",
            ),
        ] {
            let request = request(&Scenario::new(split, instance)).expect("drawn");
            assert_eq!((&*request.text, &*answer(&request)), (text, right));
        }
    }

    /// Hashes of a thousand instances each, made by the tasks' reference implementation.
    #[test]
    fn golden_thousands() {
        for (split, first, hash) in [
            (Train, 0, 219_510_246_652_374_041),
            (Train, 1_000_000, 9_974_947_612_562_787_367),
            (Eval, 0, 6_386_824_236_953_377_765),
            (Eval, 1_000_000, 5_832_760_749_914_897_406),
        ] {
            let all: String = (first..first + 1000)
                .map(|i| request(&Scenario::new(split, i)).expect("drawn"))
                .map(|request| format!("{}\n{}\n", request.text, answer(&request)))
                .collect();
            assert_eq!(fnv1a64(&all), hash, "{split:?} from {first}");
        }
    }

    #[test]
    fn every_sentence_has_only_slots_that_can_be_drawn() {
        let rng = &mut SplitMix64::new(1);
        let cores = INTENTS.iter().flat_map(|intent| intent.cores);
        for template in cores
            .chain(&OPENERS)
            .chain(&NEUTRAL)
            .chain(&ANGRY)
            .chain(&PERSON)
        {
            assert!(!filled(template, rng).contains(['{', '}']), "{template}");
        }
    }

    #[test]
    fn each_half_is_rewarded_by_itself_and_the_form_is_strict() {
        let request = Request {
            text: String::new(),
            department: "fraud",
            human: true,
        };
        for (reply, route, human, form) in [
            ("route: fraud\nhuman: yes", 1.0, 1.0, 1.0),
            ("\n route: fraud\nhuman: yes \n", 1.0, 1.0, 1.0),
            ("route: cards\nhuman: yes", 0.0, 1.0, 1.0),
            ("route: fraud\nhuman: no", 1.0, 0.0, 1.0),
            ("route: fraud\r\nhuman: yes", 0.0, 0.0, 0.0),
            ("route: fraud \nhuman: yes", 0.0, 0.0, 0.0),
            ("route: nowhere\nhuman: yes", 0.0, 0.0, 0.0),
            ("route: fraud\nhuman: maybe", 0.0, 0.0, 0.0),
            ("route: fraud\nhuman: yes\nthanks", 0.0, 0.0, 0.0),
            ("human: yes\nroute: fraud", 0.0, 0.0, 0.0),
            ("fraud", 0.0, 0.0, 0.0),
            ("", 0.0, 0.0, 0.0),
        ] {
            let reward = request.score(reply);
            assert_eq!(reward.value, Some((route + human) / 2.0), "{reply:?}");
            assert_eq!(reward.metrics["route_correct"], route, "{reply:?}");
            assert_eq!(reward.metrics["send_to_human_correct"], human, "{reply:?}");
            assert_eq!(reward.metrics["format_ok"], form, "{reply:?}");
        }
    }
}
