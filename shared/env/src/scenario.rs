//! Which episode of an environment is meant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::EnvError;

/// Training or evaluation: no instance is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Nine tenths of all instances.
    Train,
    /// The held-out tenth, never trained on.
    Eval,
}

impl Split {
    /// The split's name in recipes and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
        }
    }

    /// The split of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Train, Self::Eval]
            .into_iter()
            .find(|split| split.as_str() == name)
    }
}

/// One episode of one environment, by number; equal scenarios give equal episodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Training or evaluation.
    pub split: Split,
    /// Number of the instance within the split.
    pub instance: u64,
    /// Settings of the environment; its [`crate::EnvInfo`] lists the keys.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// What was put into the queue with this episode; empty where nothing was. Only environments
    /// whose [`crate::EnvInfo`] says so take one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub payload: Vec<u8>,
}

impl Scenario {
    /// A scenario without settings.
    #[must_use]
    pub const fn new(split: Split, instance: u64) -> Self {
        Self {
            split,
            instance,
            config: BTreeMap::new(),
            payload: Vec::new(),
        }
    }

    /// The same scenario with one more setting.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.config.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A setting as a whole number of a range, or `default` where it is not set.
    pub(crate) fn whole_number(
        &self,
        env: &'static str,
        key: &str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, EnvError> {
        let Some(text) = self.config.get(key) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(EnvError::Config {
                env,
                key: key.to_owned(),
                reason: format!(
                    "'{text}' is not a whole number from {} to {}",
                    range.start(),
                    range.end()
                ),
            }),
        }
    }
}
