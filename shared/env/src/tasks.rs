//! The bundled environments, one file each, and what they share.

pub(crate) mod arithmetic;
pub(crate) mod echo;
pub(crate) mod faulty;
pub(crate) mod guess;
pub(crate) mod noop;
pub(crate) mod routing;
mod routing_data;
mod single_turn;

use crate::error::EnvError;

/// Where an episode stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not reset yet.
    #[default]
    New,
    /// A reply is due.
    Asking,
    /// The reward was given.
    Over,
}

impl Phase {
    /// An error unless a reply is due.
    pub(crate) const fn expect_asking(self) -> Result<(), EnvError> {
        match self {
            Self::Asking => Ok(()),
            Self::New => Err(EnvError::OutOfTurn {
                when: "before the first reset",
            }),
            Self::Over => Err(EnvError::OutOfTurn {
                when: "after the end of the episode",
            }),
        }
    }
}

/// The reply without white space at its ends. The information separators count as white space
/// here, though not in Unicode, because they do in the tasks' reference implementation.
pub(crate) fn stripped(reply: &str) -> &str {
    reply.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_stripped_at_the_ends_only() {
        assert_eq!(stripped(" \t\n\u{1c}\u{a0}a b\u{2003}\u{1f}\r\n"), "a b");
        assert_eq!(stripped("\u{200b}a"), "\u{200b}a", "no width, no space");
    }

    #[test]
    fn a_step_is_only_right_when_a_reply_is_due() {
        assert_eq!(Phase::Asking.expect_asking(), Ok(()));
        for phase in [Phase::default(), Phase::Over] {
            let error = phase.expect_asking().expect_err("out of turn");
            assert_eq!(error.code(), "INTERNAL");
        }
    }
}
