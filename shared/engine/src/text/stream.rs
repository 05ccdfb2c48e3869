//! Text while it is being drawn: pieces to show at once, and strings that end a turn.

use super::Tokenizer;
use crate::error::EngineError;

/// Tokens that are decoded again with every new one. A character may be spread over several
/// tokens, and some decoders change the first token's spacing, so a piece is never decoded alone.
const CONTEXT_TOKENS: usize = 8;
/// Tokens from which the oldest are let go.
const WINDOW_TOKENS: usize = 4 * CONTEXT_TOKENS;

/// Turns tokens into pieces of text as they come. The pieces of a text, one after the other, are
/// the text; a character whose bytes are not all there yet waits for the next piece. Only where
/// bytes never become a character may the tokenizer's own text say otherwise.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The last tokens.
    window: Vec<u32>,
    /// Bytes of their text that were given out.
    given: usize,
}

impl TextStream {
    /// The text that a further token completes; often the token's, sometimes none.
    ///
    /// # Errors
    ///
    /// The tokenizer's decoder does not accept the tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, EngineError> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window, true)?;
        let complete = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let piece = text.get(self.given..complete).unwrap_or("").to_owned();
        self.given = self.given.max(complete);
        if self.window.len() >= WINDOW_TOKENS && complete == text.len() {
            let rest = &self.window[self.window.len() - CONTEXT_TOKENS..];
            let tail = tokenizer.decode(rest, true)?;
            if text.ends_with(&tail) {
                self.window = rest.to_vec();
                self.given = tail.len();
            }
        }
        Ok(piece)
    }

    /// What is left at the end: bytes that never became a character.
    ///
    /// # Errors
    ///
    /// Those of [`Self::push`].
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        let text = tokenizer.decode(&self.window, true)?;
        Ok(text.get(self.given..).unwrap_or("").to_owned())
    }
}

/// Strings that end a turn as soon as its text contains one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Tokens at the end of a turn that are sure to hold the longest of them.
    window: usize,
}

impl StopStrings {
    /// Empty strings are left out: every text contains them.
    #[must_use]
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        let strings: Vec<String> = (strings.into_iter())
            .filter(|string| !string.is_empty())
            .collect();
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Self {
            strings,
            window: longest + CONTEXT_TOKENS,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// The turn's text before the first stop string; `None` while there is no stop string in it.
    /// To be asked after every token, of all the turn's tokens so far.
    ///
    /// # Errors
    ///
    /// The tokenizer's decoder does not accept the tokens.
    pub fn cut(&self, tokenizer: &Tokenizer, turn: &[u32]) -> Result<Option<String>, EngineError> {
        if self.strings.is_empty() {
            return Ok(None);
        }
        // Tokens without text are not counted: any number of them may stand inside a string.
        let (mut begin, mut spoken) = (turn.len(), 0);
        while begin > 0 && spoken < self.window {
            begin -= 1;
            spoken += usize::from(tokenizer.has_text(turn[begin]));
        }
        if self
            .first(&tokenizer.decode(&turn[begin..], true)?)
            .is_none()
        {
            return Ok(None);
        }
        let mut text = tokenizer.decode(turn, true)?;
        Ok(self.first(&text).map(|at| {
            text.truncate(at);
            text
        }))
    }

    /// Where the first stop string begins.
    fn first(&self, text: &str) -> Option<usize> {
        self.strings.iter().filter_map(|s| text.find(s)).min()
    }
}
