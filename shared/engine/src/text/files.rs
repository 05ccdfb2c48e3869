//! The small files beside a model's weights: bounded reads, and the keys that text needs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::error::EngineError;

/// Bound of `tokenizer.json`: the largest published ones (256 k tokens) take 35 MB.
pub(super) const TOKENIZER_BYTES_MAX: u64 = 128 << 20;
/// Bound of every other file here: published ones take kilobytes.
const SMALL_BYTES_MAX: u64 = 8 << 20;

/// Reads a file of at most `bytes_max` bytes; `None` if there is no such file.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, EngineError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(invalid(path, &error.to_string())),
    };
    let mut bytes = Vec::new();
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|error| invalid(path, &error.to_string()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(invalid(path, &format!("longer than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// Reads a small text file; `None` if there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, EngineError> {
    let Some(bytes) = read_bounded(path, SMALL_BYTES_MAX)? else {
        return Ok(None);
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(invalid(path, "not UTF-8")),
    }
}

/// Reads a small JSON file; `None` if there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, EngineError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text);
    parsed
        .map(Some)
        .map_err(|error| invalid(path, &error.to_string()))
}

/// The error of a file that cannot be used.
pub(super) fn invalid(path: &Path, reason: &str) -> EngineError {
    EngineError::TokenizerInvalid {
        file: path.to_path_buf(),
        reason: reason.to_owned(),
    }
}

/// The ids at which generation stops, in the order of the file.
///
/// `generation_config.json` decides (`eos_token_id`, a number or a list); where it is missing or
/// says nothing, `config.json` does, or in it the `text_config` of a model with images. A model
/// without any has no stop token: an empty list.
///
/// # Errors
///
/// A file is no JSON, or the key is neither a token id, a list of them, nor null.
pub fn stop_tokens(dir: &Path) -> Result<Vec<u32>, EngineError> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(json) = read_json(&path)? else {
            continue;
        };
        for place in [Some(&json), json.get("text_config")] {
            match place.and_then(|place| place.get("eos_token_id")) {
                None | Some(Value::Null) => {}
                Some(Value::Array(list)) => {
                    return list.iter().map(|id| token_id(&path, id)).collect();
                }
                Some(id) => return Ok(vec![token_id(&path, id)?]),
            }
        }
    }
    Ok(Vec::new())
}

fn token_id(path: &Path, value: &Value) -> Result<u32, EngineError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| invalid(path, &format!("eos_token_id: {value} is no token id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("it is writable");
        }
        dir
    }

    #[test]
    fn stop_tokens_are_a_number_or_a_list() {
        let one = dir_with(&[("generation_config.json", r#"{"eos_token_id": 7}"#)]);
        assert_eq!(stop_tokens(one.path()).expect("valid"), [7]);
        let list = dir_with(&[("generation_config.json", r#"{"eos_token_id": [9, 7]}"#)]);
        assert_eq!(stop_tokens(list.path()).expect("valid"), [9, 7]);
    }

    #[test]
    fn the_model_configuration_is_the_fallback() {
        let silent = dir_with(&[
            ("generation_config.json", r#"{"eos_token_id": null}"#),
            ("config.json", r#"{"eos_token_id": 3}"#),
        ]);
        assert_eq!(stop_tokens(silent.path()).expect("valid"), [3]);
        let inside = dir_with(&[("config.json", r#"{"text_config": {"eos_token_id": [4]}}"#)]);
        assert_eq!(stop_tokens(inside.path()).expect("valid"), [4]);
        assert!(stop_tokens(dir_with(&[]).path()).expect("valid").is_empty());
    }

    #[test]
    fn hostile_ids_are_errors() {
        for text in [
            r#"{"eos_token_id": -1}"#,
            r#"{"eos_token_id": 4294967296}"#,
            r#"{"eos_token_id": "7"}"#,
            r#"{"eos_token_id": [1, {}]}"#,
            "{",
            "[",
        ] {
            let dir = dir_with(&[("generation_config.json", text)]);
            assert!(stop_tokens(dir.path()).is_err(), "{text}");
        }
    }
}
