//! Token ids from text and back, as `tokenizer.json` says.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::files::{TOKENIZER_BYTES_MAX, invalid, read_bounded};
use crate::error::EngineError;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Ids that `skip_special` leaves out.
    special: BTreeSet<u32>,
    path: PathBuf,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model's directory.
    ///
    /// # Errors
    ///
    /// The file is missing, too long, or no tokenizer.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = read_bounded(&path, TOKENIZER_BYTES_MAX)? else {
            return Err(invalid(&path, "there is no such file"));
        };
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // A file may ask for padding or truncation to a length: neither belongs to the text.
        inner.with_padding(None);
        let plain = inner.with_truncation(None);
        plain.map_err(|error| invalid(&path, &error.to_string()))?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special);
        Ok(Self {
            special: special.map(|(id, _)| id).collect(),
            inner,
            path,
        })
    }

    /// The ids of a text. Special tokens that stand in the text are found; none are added, because
    /// chat templates write theirs out.
    ///
    /// # Errors
    ///
    /// The tokenizer's file does not cover the text (no unknown token, for instance).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoding = guarded(&self.path, || self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids; `skip_special` leaves out special tokens. Ids that are not in the
    /// vocabulary have no text.
    ///
    /// # Errors
    ///
    /// The tokenizer's decoder does not accept the tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        guarded(&self.path, || self.inner.decode(ids, skip_special))
    }

    /// The id of a token, spelled as in the vocabulary.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of an id in the vocabulary.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id stands for text: it is in the vocabulary and not special.
    #[must_use]
    pub fn has_text(&self, id: u32) -> bool {
        !self.special.contains(&id) && self.inner.id_to_token(id).is_some()
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Runs the library on a file that we did not write: its panics are this file's errors.
fn guarded<T>(path: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(invalid(path, &error.to_string())),
        Err(_) => Err(invalid(path, "the tokenizer library gave up on it")),
    }
}
