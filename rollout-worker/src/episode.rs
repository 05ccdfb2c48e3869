//! One episode, whoever plays it: the environment, what was said, how it ended.

use std::time::Instant;

use volley_env::{Environment, Guarded, Message, Observation, Scenario, Transition, ValidReward};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::{EnvSpec, Split};
use volley_protocol::limits::{MESSAGE_BYTES_MAX, TRAJECTORY_HEADER_BYTES_MAX};
use volley_protocol::trajectory::{Trajectory, TrajectoryHeader};
use volley_protocol::worker::{Lease, LeasePolicy};
use volley_protocol::{PeerId, limits::TRAJECTORY_TOKENS_MAX};

/// Text of one transcript: half of what a header may have. It is for people; what is trained on
/// are the tokens, which are all kept.
const TRANSCRIPT_BYTES_MAX: usize = TRAJECTORY_HEADER_BYTES_MAX / 2;

/// Who plays, for the trajectory's header.
#[derive(Clone, Debug)]
pub(crate) struct Player {
    pub(crate) worker: PeerId,
    pub(crate) numerics: String,
}

/// The policy's half of a trajectory: one entry for each token of the conversation.
#[derive(Debug, Default)]
pub(crate) struct TokenRecord {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) sampled: Vec<u8>,
}

impl TokenRecord {
    /// Tokens that the environment or the template contributed.
    pub(crate) fn given(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.logprobs.resize(self.tokens.len(), 0.0);
        self.sampled.resize(self.tokens.len(), 0);
    }

    /// A token that the policy drew.
    pub(crate) fn drew(&mut self, token: u32, logprob: f32) {
        self.tokens.push(token);
        self.logprobs.push(logprob);
        self.sampled.push(1);
    }
}

/// An episode that failed, and whether another attempt can go better.
#[derive(Debug)]
pub(crate) struct EpisodeFault {
    pub(crate) fault: Fault,
    pub(crate) retryable: bool,
}

impl EpisodeFault {
    pub(crate) fn retryable(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        Self {
            fault: Fault::new(code, message),
            retryable: true,
        }
    }

    pub(crate) fn fatal(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            retryable: false,
            ..Self::retryable(code, message)
        }
    }
}

impl From<volley_env::EnvError> for EpisodeFault {
    fn from(error: volley_env::EnvError) -> Self {
        let code = ErrorCode::from_name(error.code()).unwrap_or(ErrorCode::EnvFailed);
        // An unknown environment stays unknown; anything else may be a bad state of the world.
        let retryable = !matches!(code, ErrorCode::EnvUnknown | ErrorCode::InvalidRequest);
        Self {
            retryable,
            ..Self::retryable(code, error.to_string())
        }
    }
}

/// What the policy has to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Answer these messages.
    Answer(Observation),
    /// Nothing: the episode is over.
    Over,
}

/// One episode in a slot.
pub(crate) struct Episode {
    pub(crate) lease: Lease,
    pub(crate) record: TokenRecord,
    pub(crate) dialogue: Vec<Message>,
    environment: Guarded,
    reward: Option<ValidReward>,
    turns: u32,
    truncated: bool,
    started: Instant,
}

impl std::fmt::Debug for Episode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Episode")
            .field("attempt", &self.lease.attempt)
            .finish_non_exhaustive()
    }
}

impl Episode {
    /// Builds the environment and asks it for the first observation.
    pub(crate) fn begin(
        mut lease: Lease,
        env: &EnvSpec,
    ) -> Result<(Self, Observation), EpisodeFault> {
        let scenario = Scenario {
            split: match env.split {
                Split::Train => volley_env::Split::Train,
                Split::Eval => volley_env::Split::Eval,
            },
            instance: lease.instance,
            config: env.config.clone(),
            payload: std::mem::take(&mut lease.payload).0,
        };
        let mut environment = Guarded::create(&env.name, &scenario)?;
        let observation = environment.reset()?;
        let episode = Self {
            lease,
            record: TokenRecord::default(),
            dialogue: observation.messages.clone(),
            environment,
            reward: None,
            turns: 0,
            truncated: false,
            started: Instant::now(),
        };
        Ok((episode, observation))
    }

    /// Hands the policy's answer to the environment.
    pub(crate) fn answer(&mut self, text: String, cut_off: bool) -> Result<Next, EpisodeFault> {
        self.turns += 1;
        self.truncated |= cut_off;
        let transition = self.environment.step(&text)?;
        self.dialogue.push(Message::assistant(text));
        match transition {
            Transition::Continue {
                messages,
                max_new_tokens,
            } => {
                self.dialogue.extend(messages.iter().cloned());
                Ok(Next::Answer(Observation {
                    messages,
                    max_new_tokens,
                }))
            }
            Transition::Done { reward } => {
                self.reward = Some(reward.validate()?);
                Ok(Next::Over)
            }
        }
    }

    /// The trajectory of an episode that is over.
    pub(crate) fn finish(self, player: &Player) -> Result<Trajectory, EpisodeFault> {
        let reward = self.reward.ok_or_else(|| {
            EpisodeFault::retryable(
                ErrorCode::RewardInvalid,
                "the episode ended without a reward",
            )
        })?;
        if self.record.tokens.len() > TRAJECTORY_TOKENS_MAX {
            let n = self.record.tokens.len();
            return Err(EpisodeFault::fatal(
                ErrorCode::ContextExceeded,
                format!("the episode has {n} tokens, at most {TRAJECTORY_TOKENS_MAX} can be sent"),
            ));
        }
        let (value, metrics) = reward.into_parts();
        let version = match self.lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => Some(version),
        };
        let header = TrajectoryHeader {
            attempt: self.lease.attempt,
            worker: player.worker,
            instance: self.lease.instance,
            version,
            numerics: player.numerics.clone(),
            reward: value,
            metrics,
            turns: self.turns,
            truncated: self.truncated,
            transcript: transcript(self.dialogue),
            episode_ms: self.started.elapsed().as_millis() as u64,
        };
        let TokenRecord {
            tokens,
            logprobs,
            sampled,
        } = self.record;
        Ok(Trajectory {
            header,
            tokens,
            logprobs,
            sampled,
        })
    }
}

/// The conversation for people, cut where it gets too long to travel.
fn transcript(dialogue: Vec<Message>) -> Vec<(String, String)> {
    let mut left = TRANSCRIPT_BYTES_MAX;
    let mut transcript = Vec::with_capacity(dialogue.len());
    for message in dialogue {
        let cut = message.content.floor_char_boundary(left);
        let mut text = message.content;
        let is_cut = cut < text.len();
        if is_cut {
            text.truncate(cut);
            text.push('…');
        }
        left -= cut;
        transcript.push((message.role.as_str().to_owned(), text));
        if is_cut {
            break;
        }
    }
    transcript
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_transcript_is_cut_at_a_character() {
        let long = "ä".repeat(TRANSCRIPT_BYTES_MAX);
        let cut = transcript(vec![
            Message::user("a"),
            Message::user(long),
            Message::user("b"),
        ]);
        assert_eq!(cut.len(), 2);
        let bytes: usize = cut.iter().map(|(_, text)| text.len()).sum();
        assert!(bytes <= TRANSCRIPT_BYTES_MAX + '…'.len_utf8() && cut[1].1.ends_with('…'));
        let short = transcript(vec![Message::system("s"), Message::user("u")]);
        assert_eq!(
            short,
            [("system".into(), "s".into()), ("user".into(), "u".into())]
        );
    }
}
