//! Looks into an object of `config.json`. Every complaint names the file and the key, and null is
//! the same as a key that is not there, as transformers reads it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::EngineError;

/// Largest accepted value of any size, so that products of two never overflow.
pub(super) const SIZE_MAX: usize = 1 << 24;

/// Most of an unusable value that a complaint repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// Where a complaint points to.
pub(super) struct At {
    file: PathBuf,
}

impl At {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
        }
    }

    pub(super) fn invalid(&self, reason: String) -> EngineError {
        EngineError::ConfigInvalid {
            file: self.file.clone(),
            reason,
        }
    }

    pub(super) fn unsupported(&self, what: String) -> EngineError {
        EngineError::ModelUnsupported {
            file: self.file.clone(),
            what,
        }
    }
}

/// An object of the file.
pub(super) struct Keys<'a> {
    pub(super) at: &'a At,
    map: &'a Map<String, Value>,
    /// Where in the file it is: empty or `text_config.`.
    path: String,
}

impl<'a> Keys<'a> {
    /// The object that is the whole file.
    pub(super) const fn new(at: &'a At, map: &'a Map<String, Value>) -> Self {
        Self {
            at,
            map,
            path: String::new(),
        }
    }

    /// A key with its place in the file.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Its value, unless that is null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether it is there and null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// All keys whose value is not null.
    pub(super) fn present(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let all = self.map.iter().map(|(key, value)| (key.as_str(), value));
        all.filter(|(_, value)| !value.is_null())
    }

    /// The complaint that a key which is due is not there.
    pub(super) fn missing(&self, key: &str) -> EngineError {
        self.at.invalid(format!("{} is missing", self.name(key)))
    }

    /// The complaint that a value is not what the key stands for.
    pub(super) fn wrong(&self, key: &str, value: &Value, due: &str) -> EngineError {
        let name = self.name(key);
        self.at
            .invalid(format!("{name} is {}, not {due}", shown(value)))
    }

    /// An object inside this one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let map = value.as_object();
        let map = map.ok_or_else(|| self.wrong(key, value, "an object"))?;
        Ok(Some(Self {
            at: self.at,
            map,
            path: format!("{}{key}.", self.path),
        }))
    }

    /// A number of things: from 1 to [`SIZE_MAX`].
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, EngineError> {
        self.size_up_to(key, SIZE_MAX)
    }

    /// A number of things that has a bound of its own.
    pub(super) fn size_up_to(&self, key: &str, max: usize) -> Result<Option<usize>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size.filter(|size| (1..=max).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, value, &format!("a whole number from 1 to {max}"))),
        }
    }

    /// A number within bounds.
    pub(super) fn number(
        &self,
        key: &str,
        range: &RangeInclusive<f64>,
    ) -> Result<Option<f64>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (from, to) = (range.start(), range.end());
                Err(self.wrong(key, value, &format!("a number from {from:e} to {to:e}")))
            }
        }
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A word.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some)
            .ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// A list of words.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let list = value.as_array();
        let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
        let texts: Option<Vec<&str>> = texts;
        texts
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a list of strings"))
    }

    /// A token's id, or a list of them.
    pub(super) fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>, EngineError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens: Option<Vec<u32>> = match value {
            Value::Array(list) => list.iter().map(token).collect(),
            one => token(one).map(|id| vec![id]),
        };
        tokens
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a token id or a list of them"))
    }
}

/// A value as a complaint repeats it.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}
