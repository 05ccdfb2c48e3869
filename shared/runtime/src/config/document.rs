//! A TOML text whose mistakes are told with their place.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use volley_protocol::{ErrorCode, Fault};

use super::suggest::nearest;
use crate::faults;

/// Longest file that is read. Configuration is written by people.
const BYTES_MAX: u64 = 1 << 20;

/// A configuration text and where it came from.
#[derive(Clone, Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// `CONFIG_INVALID` when it is not there, too large or not UTF-8; `IO_FAILED` when it cannot
    /// be read.
    pub fn read(path: &Path) -> Result<Self, Fault> {
        let invalid = |what: &str| {
            Fault::new(
                ErrorCode::ConfigInvalid,
                format!("{}: {what}", path.display()),
            )
        };
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => invalid("no such file").with_hint("check the path"),
            std::io::ErrorKind::IsADirectory => invalid("is a directory, a TOML file is due"),
            _ => faults::io("read", path, &error),
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > BYTES_MAX {
            return Err(invalid(&format!(
                "{length} bytes, at most {BYTES_MAX} are read"
            )));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|_| invalid("is not UTF-8 text"))?;
        Ok(Self::new(path, text))
    }

    /// A text that is already here; `path` is how it is called in messages.
    #[must_use]
    pub fn new(path: &Path, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it into a type.
    ///
    /// # Errors
    /// `CONFIG_INVALID` with the place, the key and what is due there.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        toml::from_str(&self.text).map_err(|error| self.explain(&error))
    }

    /// A complaint about the value of `key` (dotted, `train.steps`), with its place if the key
    /// stands in the text: defaults have none.
    #[must_use]
    pub fn fault(&self, key: &str, what: &str) -> Fault {
        let place = self.span_of(key).map_or_else(
            || self.path.display().to_string(),
            |span| self.place(span.start),
        );
        Fault::new(ErrorCode::ConfigInvalid, format!("{place}: `{key}` {what}"))
    }

    fn explain(&self, error: &toml::de::Error) -> Fault {
        let span = error
            .span()
            .filter(|_| !error.message().starts_with("missing field"));
        let place = span.as_ref().map_or_else(
            || self.path.display().to_string(),
            |span| self.place(span.start),
        );
        let key = span.map(|span| self.key_at(span.start)).unwrap_or_default();
        let (what, hint) = explain(error.message(), &key);
        Fault::new(ErrorCode::ConfigInvalid, format!("{place}: {what}")).with_hint(hint)
    }

    /// `file:line:column`, both counted from 1, columns in characters.
    fn place(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        format!("{}:{line}:{column}", self.path.display())
    }

    fn span_of(&self, key: &str) -> Option<Range<usize>> {
        let root = DeTable::parse(&self.text).ok()?;
        let mut table = root.get_ref();
        let mut parts = key.split('.').peekable();
        loop {
            let part = parts.next()?;
            let (_, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
            if parts.peek().is_none() {
                return Some(value.span());
            }
            table = value.get_ref().as_table()?;
        }
    }

    /// Dotted name of the key or value at a byte of the text; empty if there is none.
    fn key_at(&self, at: usize) -> String {
        let mut found = Vec::new();
        if let Ok(root) = DeTable::parse(&self.text) {
            descend(root.get_ref(), at, &mut found);
        }
        found.join(".")
    }
}

/// Fills `found` with the names on the way to what stands at `at`.
fn descend(table: &DeTable<'_>, at: usize, found: &mut Vec<String>) {
    for (name, value) in table {
        if name.span().contains(&at) {
            found.push(name.get_ref().to_string());
            return;
        }
        let holds = value.span().contains(&at);
        let DeValue::Table(inner) = value.get_ref() else {
            if holds {
                found.push(name.get_ref().to_string());
                return;
            }
            continue;
        };
        // The span of a `[section]` is its header; its keys stand below.
        let depth = found.len();
        found.push(name.get_ref().to_string());
        descend(inner, at, found);
        if found.len() > depth + 1 || holds {
            return;
        }
        found.truncate(depth);
    }
}

/// What the deserializer says, in words for people, and what to do.
fn explain(message: &str, key: &str) -> (String, String) {
    let named = |what: String| {
        if key.is_empty() {
            what
        } else {
            format!("`{key}` {what}")
        }
    };
    if let Some((name, expected)) = unknown(message, "unknown field ") {
        let section = key
            .rsplit_once('.')
            .map(|(section, _)| format!(" in [{section}]"));
        let what = format!("unknown key `{name}`{}", section.unwrap_or_default());
        return (what, suggest(name, &expected));
    }
    if let Some((name, expected)) = unknown(message, "unknown variant ") {
        return (
            named(format!("is `{name}`, which is unknown")),
            suggest(name, &expected),
        );
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return (format!("the key {name} is missing"), String::new());
    }
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some((found, due)) = message
            .strip_prefix(prefix)
            .and_then(|rest| rest.rsplit_once(", expected "))
        {
            return (
                named(format!("is {}; due is {}", plain(found), plain(due))),
                String::new(),
            );
        }
    }
    match message {
        // Our own types complete the sentence that begins with the key.
        _ if message.starts_with("is ") => {
            let (what, hint) = message.split_once("; write ").unwrap_or((message, ""));
            let hint = if hint.is_empty() {
                String::new()
            } else {
                format!("write {hint}")
            };
            (named(what.to_owned()), hint)
        }
        "wanted string or table" => (named("is no text in quotes".to_owned()), String::new()),
        _ => (named(format!("cannot be read: {message}")), String::new()),
    }
}

/// The unknown name and the known ones.
fn unknown<'a>(message: &'a str, prefix: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let mut ticked = message.strip_prefix(prefix)?.split('`').skip(1).step_by(2);
    Some((ticked.next()?, ticked.collect()))
}

fn suggest(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => String::new(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Names of types as people call them.
fn plain(words: &str) -> String {
    let known = match words {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "a table",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "map" => "a table",
        "sequence" => "a list",
        _ => "",
    };
    match words.split_once(' ') {
        _ if !known.is_empty() => known.to_owned(),
        Some(("struct", _)) => "a table".to_owned(),
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "floating", _)) => {
            format!(
                "the number {}",
                words.rsplit(' ').next().unwrap_or(words).trim_matches('`')
            )
        }
        Some(("boolean", value)) => value.trim_matches('`').to_owned(),
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::config::{Bytes, DurationMs};

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        train: Train,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Train {
        steps: u32,
        learning_rate: f64,
        loss: Loss,
        wait: DurationMs,
        cache: Bytes,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        deep: bool,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Loss {
        #[default]
        Ppo,
        ImportanceSampling,
    }

    fn fault(text: &str) -> String {
        let document = Document::new(Path::new("a.toml"), text.to_owned());
        let fault = document.parse::<Sample>().expect_err(text);
        assert_eq!(fault.code, ErrorCode::ConfigInvalid);
        format!("{} | {}", fault.message, fault.hint)
    }

    #[test]
    fn complaints_name_place_key_and_remedy() {
        for (text, expected) in [
            (
                "name=\"x\"\n[train]\n  lerning_rate = 1",
                "a.toml:3:3: unknown key `lerning_rate` in [train] | did you mean `learning_rate`?",
            ),
            (
                "name=\"x\"\ncolour = 1",
                "a.toml:2:1: unknown key `colour` | known here: name, train",
            ),
            (
                "name=\"ü\"\n[train]\nloss = \"importance\"",
                "a.toml:3:8: `train.loss` is `importance`, which is unknown | \
                 did you mean `importance_sampling`?",
            ),
            (
                "name=\"x\"\ntrain.steps = \"sixty\"",
                "a.toml:2:15: `train.steps` is the text \"sixty\"; due is a whole number, 0 or \
                 more | ",
            ),
            (
                "name=\"x\"\ntrain = { steps = -3 }",
                "a.toml:2:19: `train.steps` is the number -3; due is a whole number, 0 or more | ",
            ),
            (
                "name=\"x\"\n[train.inner]\ndeep = 3.5",
                "a.toml:3:8: `train.inner.deep` is the number 3.5; due is true or false | ",
            ),
            (
                "name=\"x\"\ntrain=3",
                "a.toml:2:7: `train` is the number 3; due is a table | ",
            ),
            ("train.steps=3", "a.toml: the key `name` is missing | "),
            (
                "name=\"x\"\n[train]\nloss=3",
                "a.toml:3:6: `train.loss` is no text in quotes | ",
            ),
            (
                "name=\"x\"\nname=\"y\"",
                "a.toml:2:1: cannot be read: duplicate key | ",
            ),
            (
                "name=\"x\n",
                "a.toml:1:8: cannot be read: invalid basic string, expected `\"` | ",
            ),
        ] {
            assert_eq!(fault(text), expected, "{text}");
        }
    }

    #[test]
    fn units_are_due_and_told() {
        for (value, expected) in [
            (
                "wait = 90",
                "a.toml:3:8: `train.wait` is 90, which has no unit | write \"90s\"",
            ),
            (
                "wait = \"90\"",
                "a.toml:3:8: `train.wait` is 90, which has no unit | write \"90s\"",
            ),
            (
                "wait = 1.5",
                "a.toml:3:8: `train.wait` is 1.5, which has no unit | write \"1500ms\"",
            ),
            (
                "wait = \"5 minutes\"",
                "a.toml:3:8: `train.wait` is `5 minutes`",
            ),
            (
                "cache = 64",
                "a.toml:3:9: `train.cache` is 64, which has no unit | write \"64MiB\"",
            ),
            ("cache = \"64 MB\"", "a.toml:3:9: `train.cache` is `64 MB`"),
        ] {
            let told = fault(&format!("name=\"x\"\n[train]\n{value}"));
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn complaints_about_values_have_the_place_of_the_value() {
        let text = "name = \"x\"\n[train]\nsteps = 0\n[train.inner]\ndeep = true";
        let document = Document::new(Path::new("a.toml"), text.to_owned());
        let at = |key| document.fault(key, "is odd").message;
        assert_eq!(at("train.steps"), "a.toml:3:9: `train.steps` is odd");
        assert_eq!(
            at("train.inner.deep"),
            "a.toml:5:8: `train.inner.deep` is odd"
        );
        assert_eq!(at("train.loss"), "a.toml: `train.loss` is odd");
        assert_eq!(at("none.such"), "a.toml: `none.such` is odd");
    }

    #[test]
    fn files_that_cannot_be_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.toml");
        let read = || {
            Document::read(&path)
                .map(|_| ())
                .map_err(|fault| fault.message)
        };
        assert!(read().is_err_and(|message| message.ends_with("a.toml: no such file")));
        std::fs::write(&path, [0xff, 0xfe]).expect("write");
        assert!(read().is_err_and(|message| message.ends_with("is not UTF-8 text")));
        std::fs::write(&path, "name = \"x\"").expect("write");
        let sample: Sample = crate::config::load_toml(&path).expect("valid");
        assert_eq!(sample.name, "x");
        assert!(Document::read(dir.path()).is_err());
    }
}
