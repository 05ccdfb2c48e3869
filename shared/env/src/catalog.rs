//! The bundled environments by name.

use serde::Serialize;

use crate::environment::Environment;
use crate::error::EnvError;
use crate::scenario::Scenario;
use crate::tasks::{arithmetic, echo, faulty, guess, noop, routing};

/// What a bundled environment is, for lists and help.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EnvInfo {
    /// The name in `volley map NAME` and in recipes.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Most replies of one episode.
    pub max_turns: u32,
    /// What known strategies earn, to judge a policy by.
    pub yardsticks: &'static [Yardstick],
    /// Settings it takes.
    pub config_keys: &'static [ConfigKey],
    /// What its payload is; `None` where it takes none.
    pub payload: Option<&'static str>,
}

/// The mean reward of a known strategy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Yardstick {
    /// The strategy.
    pub strategy: &'static str,
    /// Its mean reward.
    pub reward: f64,
}

/// A setting of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigKey {
    /// The key.
    pub name: &'static str,
    /// What it does, with its values and default.
    pub help: &'static str,
}

type Maker = fn(&Scenario) -> Result<Box<dyn Environment>, EnvError>;

const CATALOG: [EnvInfo; 6] = [
    arithmetic::INFO,
    echo::INFO,
    faulty::INFO,
    guess::INFO,
    noop::INFO,
    routing::INFO,
];

const MAKERS: [Maker; CATALOG.len()] = [
    arithmetic::make,
    echo::make,
    faulty::make,
    guess::make,
    noop::make,
    routing::make,
];

/// All bundled environments, by name.
#[must_use]
pub const fn catalog() -> &'static [EnvInfo] {
    &CATALOG
}

/// Makes the environment of that name for a scenario.
///
/// An unknown name is `ENV_UNKNOWN`, with all names and the nearest one; a setting that the
/// environment does not take, or a payload for one that takes none, is `INVALID_REQUEST`.
pub fn create(name: &str, scenario: &Scenario) -> Result<Box<dyn Environment>, EnvError> {
    let found = CATALOG
        .iter()
        .zip(MAKERS)
        .find(|(info, _)| info.name == name);
    let Some((info, make)) = found else {
        let names = || CATALOG.iter().map(|info| info.name);
        return Err(EnvError::Unknown {
            name: crate::error::shortened(name),
            known: names().collect(),
            suggestion: nearest(name, names()),
        });
    };
    check_keys(info, scenario)?;
    if info.payload.is_none() && !scenario.payload.is_empty() {
        return Err(EnvError::Payload {
            env: info.name,
            reason: "it takes none".to_owned(),
        });
    }
    make(scenario)
}

fn check_keys(info: &EnvInfo, scenario: &Scenario) -> Result<(), EnvError> {
    let names = || info.config_keys.iter().map(|key| key.name);
    for key in scenario.config.keys() {
        if names().any(|name| name == key) {
            continue;
        }
        let known: Vec<_> = names().collect();
        let reason = match (known.is_empty(), nearest(key, names())) {
            (true, _) => "it takes no settings".to_owned(),
            (false, Some(name)) => format!("unknown, did you mean '{name}'?"),
            (false, None) => format!("unknown; known: {}", known.join(", ")),
        };
        let (env, key) = (info.name, crate::error::shortened(key));
        return Err(EnvError::Config { env, key, reason });
    }
    Ok(())
}

/// The known word with the smallest edit distance, if at most a third of its letters differ.
/// Very long input is not compared: it is no slip of the finger.
fn nearest(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    const WORD_BYTES_MAX: usize = 64;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    known
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Split;

    fn error(name: &str, scenario: &Scenario) -> EnvError {
        create(name, scenario).err().expect("must be refused")
    }

    #[test]
    fn catalog_is_sorted_and_every_entry_can_be_made() {
        assert!(CATALOG.is_sorted_by_key(|info| info.name));
        for info in catalog() {
            let scenario = match info.name {
                "faulty" => Scenario::new(Split::Train, 0).with("mode", "nan"),
                _ => Scenario::new(Split::Train, 0),
            };
            let mut env = create(info.name, &scenario).expect(info.name);
            assert!(!env.reset().expect(info.name).messages.is_empty());
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_a_suggestion_and_the_list() {
        let error = error("arithmatic", &Scenario::new(Split::Train, 0));
        assert_eq!(error.code(), "ENV_UNKNOWN");
        assert_eq!(
            error.to_string(),
            "there is no environment 'arithmatic', did you mean 'arithmetic'?; \
             known: arithmetic, echo, faulty, guess, noop, routing"
        );
    }

    #[test]
    fn a_name_far_from_all_gets_only_the_list() {
        let scenario = Scenario::new(Split::Train, 0);
        for name in ["chess", "", &"x".repeat(100_000)] {
            let EnvError::Unknown { suggestion, .. } = error(name, &scenario) else {
                panic!("{name}: wrong error");
            };
            assert_eq!(suggestion, None, "{name}");
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let scenario = Scenario::new(Split::Train, 0).with("evry", "2");
        assert_eq!(
            error("faulty", &scenario).to_string(),
            "environment 'faulty', config key 'evry': unknown, did you mean 'every'?"
        );
        assert_eq!(error("faulty", &scenario).code(), "INVALID_REQUEST");
        assert_eq!(
            error("guess", &scenario).to_string(),
            "environment 'guess', config key 'evry': it takes no settings"
        );
    }

    #[test]
    fn a_payload_is_refused_where_none_is_taken() {
        let scenario = Scenario {
            payload: b"x".to_vec(),
            ..Scenario::new(Split::Train, 0)
        };
        let takes: Vec<_> = catalog()
            .iter()
            .filter(|info| create(info.name, &scenario).is_ok())
            .map(|info| info.name)
            .collect();
        assert_eq!(takes, ["echo", "noop"]);
        let error = error("guess", &scenario);
        assert_eq!(
            (error.code(), &*error.to_string()),
            (
                "INVALID_REQUEST",
                "environment 'guess', payload: it takes none"
            )
        );
    }

    #[test]
    fn edit_distance_counts_changes() {
        for (a, b, distance) in [("", "abc", 3), ("kitten", "sitting", 3), ("é", "e", 1)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }
}
