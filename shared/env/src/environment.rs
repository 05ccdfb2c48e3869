//! The trait and the words of an episode.

use serde::{Deserialize, Serialize};

use crate::error::EnvError;
use crate::reward::Reward;

/// One episode.
///
/// ```text
/// new ── reset ──▶ asking ── step: Continue ──▶ asking
///                    │
///                    └────── step: Done ──────▶ over
/// ```
/// `reset` is allowed at any time and starts the same episode again. A `step` before `reset` or
/// after `Done` is an error. An instance that returned an error must be dropped.
pub trait Environment: Send {
    /// Starts the episode over and gives the first observation.
    fn reset(&mut self) -> Result<Observation, EnvError>;

    /// Takes the policy's reply to the messages so far, without the end-of-turn marker.
    fn step(&mut self, reply: &str) -> Result<Transition, EnvError>;
}

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The environment.
    User,
    /// The policy.
    Assistant,
}

impl Role {
    /// The role's name in chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a chat. The content is used as it is; templates do not trim it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message with instructions.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::of(Role::System, content)
    }

    /// A message of the environment.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::of(Role::User, content)
    }

    /// A message of the policy.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::of(Role::Assistant, content)
    }

    fn of(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// What the policy sees first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The chat before the first reply.
    pub messages: Vec<Message>,
    /// Length limit of the first reply, in tokens, end marker not counted.
    pub max_new_tokens: u32,
}

/// What a reply leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Transition {
    /// The episode goes on.
    Continue {
        /// What follows the reply in the same chat; the caller has appended the reply itself.
        messages: Vec<Message>,
        /// Length limit of the next reply, in tokens, end marker not counted.
        max_new_tokens: u32,
    },
    /// The episode is over.
    Done {
        /// As the environment reports it; take it through [`Reward::validate`].
        reward: Reward,
    },
}
