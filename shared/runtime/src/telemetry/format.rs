//! How one log line looks.
//!
//! ```text
//! 2026-11-21T10:15:30.123Z  WARN coordinator::session peer lost peer=worker-3 after_ms=5012
//! {"time":"2026-11-21T10:15:30.123Z","level":"WARN","target":"…","message":"peer lost","peer":…}
//! ```

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::text::printable;
use crate::run_dir::{unix_ms, utc_exact};

/// Longest value that is written; the rest is counted. A log is no place for a transcript.
const VALUE_BYTES_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Colour,
    Json,
}

/// Writes events as lines.
#[derive(Debug)]
pub(super) struct Lines(pub(super) Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let scope = context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root());
        let line = Line {
            time: utc_exact(unix_ms()),
            level: *metadata.level(),
            target: metadata.target(),
            spans: scope.map(|span| span.name()).collect(),
            fields,
        };
        match self.0 {
            Format::Json => writeln!(writer, "{}", line.json()),
            Format::Plain => writeln!(writer, "{}", line.text(false)),
            Format::Colour => writeln!(writer, "{}", line.text(true)),
        }
    }
}

struct Line<'a> {
    time: String,
    level: Level,
    target: &'a str,
    spans: Vec<&'static str>,
    fields: Fields,
}

impl Line<'_> {
    fn text(&self, colour: bool) -> String {
        let (dim, bright, end) = if colour {
            ("\x1b[2m", level_colour(self.level), "\x1b[0m")
        } else {
            ("", "", "")
        };
        let target = self.target.strip_prefix("volley_").unwrap_or(self.target);
        let mut line = format!(
            "{dim}{}{end} {bright}{:>5}{end} {dim}{target}",
            self.time, self.level
        );
        for span in &self.spans {
            let _ = write!(line, " {span}:");
        }
        let _ = write!(line, "{end} {}", self.fields.message);
        for (name, value) in &self.fields.others {
            // A value with spaces would look like several fields.
            let shown = match value {
                Value::String(text) if text.contains([' ', '=', '"']) => format!("{text:?}"),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let _ = write!(line, " {dim}{name}={end}{}", printable(&shown));
        }
        line
    }

    fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("time".into(), self.time.as_str().into());
        object.insert("level".into(), self.level.as_str().into());
        object.insert("target".into(), self.target.into());
        if !self.spans.is_empty() {
            object.insert("spans".into(), self.spans.clone().into());
        }
        object.insert("message".into(), self.fields.message.as_str().into());
        for (name, value) in &self.fields.others {
            // A field must not forge one of ours.
            let taken = object.contains_key(name);
            let name = if taken {
                format!("field.{name}")
            } else {
                name.clone()
            };
            object.insert(name, value.clone());
        }
        Value::Object(object).to_string()
    }
}

const fn level_colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = printable(&text),
            (name, value) => self.others.push((name.to_owned(), value)),
        }
    }

    fn push_text(&mut self, field: &Field, mut text: String) {
        if text.len() > VALUE_BYTES_MAX {
            let cut = text.floor_char_boundary(VALUE_BYTES_MAX);
            let more = text.len() - cut;
            text.truncate(cut);
            let _ = write!(text, "… ({more} bytes more)");
        }
        self.push(field, text.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push_text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_text(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("page").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, log: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::fmt()
            .event_format(Lines(format))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = page.0.lock().expect("page").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn lines_are_compact() {
        let text = logged(Format::Plain, || {
            let span = tracing::info_span!("session");
            let _inside = span.enter();
            tracing::warn!(target: "volley_worker::sink", peer = "w 3", after_ms = 12, "lost");
        });
        assert_eq!(&text[10..11], "T");
        assert_eq!(
            &text[24..],
            "  WARN worker::sink session: lost peer=\"w 3\" after_ms=12\n"
        );
        let text = logged(Format::Colour, || tracing::info!("up"));
        assert!(text.contains("\x1b[32m INFO\x1b[0m"), "{text:?}");
    }

    #[test]
    fn a_value_cannot_leave_its_line() {
        let evil = "x\x1b[2J\nERROR forged";
        for format in [Format::Plain, Format::Json] {
            let text = logged(format, || {
                tracing::info!(evil, debug = ?evil, shown = %evil, "{evil}");
            });
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(!text.contains('\x1b'), "{text:?}");
        }
    }

    #[test]
    fn json_lines_keep_types_and_their_own_keys() {
        let text = logged(Format::Json, || {
            tracing::info!(
                level = "forged",
                count = 3,
                ratio = 0.5,
                done = true,
                "said"
            );
        });
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&value["level"], &value["message"]),
            (&"INFO".into(), &"said".into())
        );
        assert_eq!(
            (&value["count"], &value["field.level"]),
            (&3.into(), &"forged".into())
        );
        assert_eq!(
            (&value["ratio"], &value["done"]),
            (&0.5.into(), &true.into())
        );
    }

    #[test]
    fn long_values_are_cut() {
        let text = logged(Format::Plain, || {
            tracing::info!(long = "ü".repeat(5000), "cut")
        });
        assert!(
            text.len() < 4300 && text.contains("bytes more)"),
            "{}",
            text.len()
        );
    }
}
