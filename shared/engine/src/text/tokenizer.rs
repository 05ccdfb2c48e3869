//! Token ids from text and back, as `tokenizer.json` says.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::files::{TOKENIZER_BYTES_MAX, invalid, read_bounded};
use crate::error::EngineError;

/// Steps of one kind; published files have up to ten. A pattern alone may take megabytes.
const STEPS_MAX: usize = 32;
/// How many times as long the steps of one kind may make a text. Published files reach some two
/// thousand, on texts that nobody writes.
const GROWTH_MAX: f64 = 4096.0;

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
        refuse_steps(&path, &bytes)?;
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

/// The steps of a `tokenizer.json` that write text.
#[derive(Deserialize)]
struct Steps {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
}

/// Refuses steps that are many or multiply a text: a file may list any number of them, and forty
/// that double it are a terabyte.
fn refuse_steps(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    // What is wrong with a file that this cannot read, the library tells.
    let Ok(steps) = serde_json::from_slice::<Steps>(bytes) else {
        return Ok(());
    };
    for (name, step) in [
        ("normalizer", steps.normalizer),
        ("pre_tokenizer", steps.pre_tokenizer),
        ("decoder", steps.decoder),
    ] {
        let Some(step) = step else { continue };
        let (count, growth) = (count(&step), growth(&step));
        if count > STEPS_MAX {
            let reason = format!("{name} has {count} steps, at most {STEPS_MAX} are read");
            return Err(invalid(path, &reason));
        }
        if growth > GROWTH_MAX {
            let reason = format!(
                "{name} makes a text up to {growth:e} times as long, at most {GROWTH_MAX} is read"
            );
            return Err(invalid(path, &reason));
        }
    }
    Ok(())
}

/// The steps of a sequence.
fn inner(step: &Value) -> Option<&Vec<Value>> {
    let mut lists = ["normalizers", "pretokenizers", "decoders"].iter();
    lists.find_map(|key| step.get(key)?.as_array())
}

fn count(step: &Value) -> usize {
    inner(step).map_or(1, |steps| steps.iter().map(count).sum())
}

/// How many times as long, in bytes, a step may make a text.
fn growth(step: &Value) -> f64 {
    if let Some(steps) = inner(step) {
        return steps.iter().map(growth).product();
    }
    // An empty pattern is found between any two characters.
    let inserted = |key: &str| step.get(key).and_then(Value::as_str).map_or(0, str::len) + 1;
    match step.get("type").and_then(Value::as_str) {
        Some("Replace") => inserted("content") as f64,
        Some("Prepend") => inserted("prepend") as f64,
        Some("Metaspace") => inserted("replacement") as f64,
        // A byte becomes a character of up to two.
        Some("ByteLevel") => 2.0,
        Some("Lowercase") => 3.0,
        // Compatibility forms; a ligature of three bytes is the longest, with 33.
        Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Precompiled" | "BertNormalizer") => 11.0,
        Some(_) => 1.0,
        // The library guesses what it is by the other keys.
        None => 2.0 * (inserted("content") * inserted("prepend") * inserted("replacement")) as f64,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(key: &str, step: &Value) -> Option<String> {
        let file = json!({ "model": {"vocab": {}}, key: step }).to_string();
        let result = refuse_steps(Path::new("t.json"), file.as_bytes());
        result.err().map(|error| error.to_string())
    }

    #[test]
    fn steps_that_are_many_or_multiply_a_text_are_refused() {
        let sequence = |list: &str, steps: &[Value]| json!({"type": "Sequence", list: steps});
        let double = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let pattern = json!({"String": "a"});
        let replace =
            |content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        for (key, list, step, most) in [
            ("pre_tokenizer", "pretokenizers", double, 12),
            ("normalizer", "normalizers", replace("aaa"), 6),
            ("decoder", "decoders", replace("aaa"), 6),
            ("normalizer", "normalizers", replace(&"b".repeat(4095)), 1),
            (
                "pre_tokenizer",
                "pretokenizers",
                json!({"use_regex": true}),
                12,
            ),
            (
                "normalizer",
                "normalizers",
                json!({"type": "Prepend", "prepend": "▁"}),
                6,
            ),
        ] {
            let steps = vec![step.clone(); most];
            assert_eq!(refusal(key, &sequence(list, &steps)), None, "{step}");
            // A sequence in a sequence counts as much.
            let more = sequence(list, &[sequence(list, &steps), step]);
            let message = refusal(key, &more).expect("one too many");
            assert!(
                message.contains("t.json") && message.contains(key),
                "{message}"
            );
        }
        assert_eq!(refusal("normalizer", &Value::Null), None);
        let digits = vec![json!({"type": "Digits"}); STEPS_MAX];
        let most = sequence("pretokenizers", &digits);
        assert_eq!(refusal("pre_tokenizer", &most), None);
        let more = sequence("pretokenizers", &[most, json!({"type": "Digits"})]);
        let message = refusal("pre_tokenizer", &more).expect("one too many");
        assert!(message.contains("33 steps"), "{message}");
    }
}
