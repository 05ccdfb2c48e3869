//! Logs: `tracing` to standard error or a file, for people or for programs.
//!
//! `VOLLEY_LOG` filters (`info,volley_coordinator=debug`), `VOLLEY_LOG_FORMAT=json` writes one JSON
//! object per line. Whatever the format, a logged value can neither move a terminal's cursor nor
//! forge a further line.

mod format;
mod text;

use std::fs::{File, OpenOptions};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use volley_protocol::{ErrorCode, Fault};

use crate::env_vars::{NO_COLOR, VOLLEY_LOG, VOLLEY_LOG_FORMAT};
use crate::{faults, files};
use format::{Format, Lines};

pub use text::{last_lines, printable};

/// Where log lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error, in colour when it is a terminal.
    #[default]
    Stderr,
    /// Appended to this file, which is created if needed.
    File(PathBuf),
}

/// Starts logging for this process; call it once, in `main`. `default_filter` holds when
/// `VOLLEY_LOG` is not set: `info` for roles, `warn` for commands.
///
/// # Errors
/// `CONFIG_INVALID` for a filter that cannot be read, `IO_FAILED` for a file that cannot be
/// written, `INTERNAL` when logging was started already.
pub fn init(default_filter: &str, output: &LogOutput) -> Result<(), Fault> {
    let filter = VOLLEY_LOG
        .text()
        .unwrap_or_else(|| default_filter.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        let message = format!("VOLLEY_LOG is `{filter}`, which is no filter: {error}");
        Fault::new(ErrorCode::ConfigInvalid, message)
            .with_hint("write a level (error, warn, info, debug, trace), or info,TARGET=debug")
    })?;
    let json = VOLLEY_LOG_FORMAT
        .text()
        .is_some_and(|format| format == "json");
    let (writer, terminal) = match output {
        LogOutput::Stderr => (
            BoxMakeWriter::new(std::io::stderr),
            std::io::stderr().is_terminal(),
        ),
        LogOutput::File(path) => (BoxMakeWriter::new(Arc::new(append_to(path)?)), false),
    };
    let format = match (json, terminal && !NO_COLOR.is_set()) {
        (true, _) => Format::Json,
        (false, true) => Format::Colour,
        (false, false) => Format::Plain,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(Lines(format))
        .with_writer(writer)
        .try_init()
        .map_err(|error| {
            Fault::new(
                ErrorCode::Internal,
                format!("logging cannot be started: {error}"),
            )
        })
}

fn append_to(path: &std::path::Path) -> Result<File, Fault> {
    let failed = |error: std::io::Error| faults::io("open the log file", path, &error);
    std::fs::create_dir_all(files::parent_of(path)).map_err(failed)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use crate::process::{Child, ChildLog};
    use crate::test_support::role;

    #[tokio::test]
    async fn the_environment_chooses_filter_and_format() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("role.log");
        let spec = role("log-two-lines")
            .env("VOLLEY_LOG", "warn")
            .env("VOLLEY_LOG_FORMAT", "json")
            .log(ChildLog::File(log.clone()));
        let status = Child::spawn(spec)
            .expect("spawn")
            .wait()
            .await
            .expect("wait");
        let text = std::fs::read_to_string(&log).expect("log");
        assert!(status.success(), "{text}");
        let line = text
            .lines()
            .find(|line| line.starts_with('{'))
            .expect("a JSON line");
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(value["message"], "heard");
        assert!(!text.contains("below the filter"), "{text}");

        let spec = role("log-two-lines")
            .env("VOLLEY_LOG", "info,=x")
            .log(ChildLog::Discard);
        let status = Child::spawn(spec)
            .expect("spawn")
            .wait()
            .await
            .expect("wait");
        assert!(!status.success(), "a filter that cannot be read is refused");
    }
}
