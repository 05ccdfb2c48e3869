//! Why an environment could not go on.

use thiserror::Error;

/// Longest text of an environment that is carried on, in bytes. Errors travel in control frames
/// and end up on terminals; a stack of a kilobyte says enough.
const TEXT_BYTES_MAX: usize = 1024;

/// An error of an environment, with the code that users look up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnvError {
    /// There is no environment of that name.
    #[error("there is no environment '{name}'{}; known: {}", did_you_mean(.suggestion), .known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// All names.
        known: Vec<&'static str>,
        /// The nearest name, if one is near.
        suggestion: Option<&'static str>,
    },
    /// The scenario has a configuration that the environment does not take.
    #[error("environment '{env}', config key '{key}': {reason}")]
    Config {
        /// The environment's name.
        env: &'static str,
        /// The key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The scenario has a payload that the environment cannot use.
    #[error("environment '{env}', payload: {reason}")]
    Payload {
        /// The environment's name.
        env: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The environment's code panicked.
    #[error("the environment panicked: {message}{}", at(.location))]
    Panic {
        /// What the panic said.
        message: String,
        /// `file:line:column`, known where [`crate::quiet_guarded_panics`] is in force.
        location: Option<String>,
    },
    /// The environment reported that it cannot go on.
    #[error("the environment failed: {message}")]
    Failed {
        /// What it said.
        message: String,
    },
    /// The reward cannot be trained on.
    #[error("the reward is invalid: {reason}")]
    RewardInvalid {
        /// Which value, and why.
        reason: String,
    },
    /// The caller stepped an episode that was not asking: a defect of the caller.
    #[error("a step came {when}")]
    OutOfTurn {
        /// When it came.
        when: &'static str,
    },
}

impl EnvError {
    /// A failure that the environment itself reports.
    #[must_use]
    pub fn failed(message: &str) -> Self {
        Self::Failed {
            message: shortened(message),
        }
    }

    /// The stable name under which users find the error's page.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "ENV_UNKNOWN",
            Self::Config { .. } | Self::Payload { .. } => "INVALID_REQUEST",
            Self::Panic { .. } => "ENV_PANIC",
            Self::Failed { .. } => "ENV_FAILED",
            Self::RewardInvalid { .. } => "REWARD_INVALID",
            Self::OutOfTurn { .. } => "INTERNAL",
        }
    }
}

/// The text, cut at a character boundary where it is longer than [`TEXT_BYTES_MAX`].
pub(crate) fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    format!("{}… ({} bytes in all)", &text[..end], text.len())
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |name| format!(", did you mean '{name}'?"))
}

fn at(location: &Option<String>) -> String {
    location
        .as_ref()
        .map_or_else(String::new, |place| format!(" (at {place})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        let long = "é".repeat(2000);
        let short = shortened(&long);
        assert!(short.len() < TEXT_BYTES_MAX + 40, "{}", short.len());
        assert!(short.ends_with("(4000 bytes in all)"));
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn a_panic_tells_its_place_when_known() {
        let mut error = EnvError::Panic {
            message: "boom".to_owned(),
            location: None,
        };
        assert_eq!(error.to_string(), "the environment panicked: boom");
        if let EnvError::Panic { location, .. } = &mut error {
            *location = Some("a.rs:1:2".to_owned());
        }
        assert_eq!(
            error.to_string(),
            "the environment panicked: boom (at a.rs:1:2)"
        );
    }
}
