//! Conversations as token ids, and the increment that a conversation grows by.

use std::fmt;
use std::path::{Path, PathBuf};

use minijinja::Environment;
use minijinja::value::Value;
use serde::{Deserialize, Serialize};

use super::files::{invalid, read_json, read_text, stop_tokens};
use super::jinja;
use super::tokenizer::Tokenizer;
use crate::error::EngineError;

/// The template's name inside its environment; it shows up in the template's own errors.
pub(super) const TEMPLATE_NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The file that the template came from, for errors.
    path: PathBuf,
    bos_token: Option<String>,
    eos_token: Option<String>,
    stop_ids: Vec<u32>,
}

impl ChatTemplate {
    /// Loads the template of a model's directory: `chat_template.jinja`, else the key
    /// `chat_template` of `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// There is no template, it is no valid one, or a file beside it cannot be read.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(&config_path)?.unwrap_or_default();
        let file = dir.join("chat_template.jinja");
        let (path, source) = match read_text(&file)? {
            Some(source) => (file, source),
            None => match template_in(&config) {
                Some(source) => (config_path, source),
                None => return Err(invalid(&config_path, "there is no chat template")),
            },
        };
        let environment = jinja::environment(source);
        Ok(Self {
            environment: environment.map_err(|error| invalid(&path, &chain(&error)))?,
            path,
            bos_token: token_in(&config, "bos_token"),
            eos_token: token_in(&config, "eos_token"),
            stop_ids: stop_tokens(dir)?,
        })
    }

    /// The conversation as text; `add_generation_prompt` ends it where the assistant's turn begins.
    ///
    /// # Errors
    ///
    /// The template refuses the conversation or fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, EngineError> {
        let mut values = vec![
            ("messages", Value::from_serialize(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        // A token that the model does not have stays undefined: undefined renders as nothing.
        let bos = self
            .bos_token
            .as_deref()
            .map(|t| ("bos_token", Value::from(t)));
        let eos = self
            .eos_token
            .as_deref()
            .map(|t| ("eos_token", Value::from(t)));
        values.extend(bos.into_iter().chain(eos));
        let rendered = jinja::render(&self.environment, Value::from_iter(values));
        rendered.map_err(|error| invalid(&self.path, &chain(&error)))
    }

    /// The ids with which the assistant's turn begins.
    ///
    /// # Errors
    ///
    /// The template refuses the conversation, or the tokenizer its text.
    pub fn prompt_ids(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
    ) -> Result<Vec<u32>, EngineError> {
        tokenizer.encode(&self.render(messages, true)?)
    }

    /// The ids to append after an assistant's turn that was sampled up to its stop token, so that
    /// the next assistant's turn can begin.
    ///
    /// `so_far` ends with the assistant's turn; `new` follows it. Only the increment is tokenised:
    /// the ids of the context are neither needed nor changed. A template may rewrite the
    /// assistant's words (trim them, drop its reasoning): the context keeps what was sampled. What
    /// stands before that turn must not depend on the messages after it.
    ///
    /// # Errors
    ///
    /// `so_far` does not end with an assistant's turn, the template refuses the conversation,
    /// renders earlier turns otherwise once there are more, or ends a turn with no stop token.
    pub fn continuation_ids(
        &self,
        tokenizer: &Tokenizer,
        so_far: &[ChatMessage],
        new: &[ChatMessage],
    ) -> Result<Vec<u32>, EngineError> {
        let (increment, _) = self.increment(tokenizer, so_far, new)?;
        tokenizer.encode(&increment)
    }

    /// As [`Self::continuation_ids`], after a turn that was cut off before its stop token: the
    /// token that ends a turn comes first.
    ///
    /// # Errors
    ///
    /// As [`Self::continuation_ids`].
    pub fn cut_off_continuation_ids(
        &self,
        tokenizer: &Tokenizer,
        so_far: &[ChatMessage],
        new: &[ChatMessage],
    ) -> Result<Vec<u32>, EngineError> {
        let (increment, end) = self.increment(tokenizer, so_far, new)?;
        let mut ids = vec![end.id];
        ids.extend(tokenizer.encode(&increment)?);
        Ok(ids)
    }

    /// The text after the last assistant's turn of `so_far`, and the token that ended the turn.
    fn increment(
        &self,
        tokenizer: &Tokenizer,
        so_far: &[ChatMessage],
        new: &[ChatMessage],
    ) -> Result<(String, EndToken), EngineError> {
        let Some((turn, before)) = so_far.split_last().filter(|(m, _)| m.role == "assistant")
        else {
            return Err(invalid(
                &self.path,
                "the conversation does not end with the assistant",
            ));
        };
        let all: Vec<ChatMessage> = so_far.iter().chain(new).cloned().collect();
        let whole = self.render(&all, true)?;
        // Some templates refuse an empty conversation; nothing then stands before the turn.
        let context = if before.is_empty() {
            String::new()
        } else {
            self.render(before, false)?
        };
        let Some(rest) = whole.strip_prefix(context.as_str()) else {
            let reason = "earlier turns are rendered otherwise once there are more";
            return Err(invalid(&self.path, reason));
        };
        let ends = self.end_tokens(tokenizer);
        let found = end_of_turn(rest, &turn.content, &ends);
        let Some((at, end)) = found else {
            return Err(invalid(
                &self.path,
                "no stop token ends the assistant's turn",
            ));
        };
        Ok((rest[at..].to_owned(), end.clone()))
    }

    /// Tokens that may end a turn: the tokenizer's `eos_token`, then the model's stop tokens.
    fn end_tokens(&self, tokenizer: &Tokenizer) -> Vec<EndToken> {
        let eos = self.eos_token.as_deref();
        let eos = eos.and_then(|text| tokenizer.token_id(text));
        let ids = eos.into_iter().chain(self.stop_ids.iter().copied());
        ids.filter_map(|id| tokenizer.token(id).map(|text| EndToken { id, text }))
            .filter(|end| !end.text.is_empty())
            .collect()
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("path", &self.path)
            .field("bos_token", &self.bos_token)
            .field("eos_token", &self.eos_token)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct EndToken {
    id: u32,
    text: String,
}

/// Where the turn at the start of `rest` ends, and with which token: the first end token after
/// those that the turn's own words spell out.
fn end_of_turn<'a>(rest: &str, words: &str, ends: &'a [EndToken]) -> Option<(usize, &'a EndToken)> {
    let candidates = ends.iter().filter_map(|end| {
        let spelled_out = words.matches(&end.text).count();
        let (at, _) = rest.match_indices(&end.text).nth(spelled_out)?;
        Some((at + end.text.len(), end))
    });
    candidates.min_by_key(|(at, _)| *at)
}

/// The template of `tokenizer_config.json`: a text, or a list of named ones with a `default`.
fn template_in(config: &serde_json::Value) -> Option<String> {
    match config.get("chat_template")? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(|n| n.as_str()) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

/// A special token of `tokenizer_config.json`: a text, or an object with the text as `content`.
fn token_in(config: &serde_json::Value, key: &str) -> Option<String> {
    let token = config.get(key)?;
    let text = token.as_str().or_else(|| token.get("content")?.as_str());
    text.map(str::to_owned)
}

/// An error of the template with its causes, on one line.
fn chain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
