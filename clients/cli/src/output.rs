//! Everything this program prints: data on standard output, talk on standard error.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use volley_runtime::env_vars;
use volley_runtime::telemetry::printable;

use crate::errors::Stop;

/// Where data and talk go, and how they look.
pub(crate) struct Output {
    data: Mutex<BufWriter<Stdout>>,
    quiet: bool,
    colour: bool,
}

impl Output {
    /// What the flags, the environment and the terminal say.
    pub(crate) fn new(quiet: bool, no_color: bool) -> Self {
        Self {
            data: Mutex::new(BufWriter::new(io::stdout())),
            quiet,
            colour: !no_color && !env_vars::NO_COLOR.is_set(),
        }
    }

    /// May escape sequences for colours be used on a terminal?
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// Is a person looking at standard error, who wants to see progress?
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// One line of data. It leaves with [`Output::flush`], or when the buffer is full.
    pub(crate) fn data(&self, line: impl fmt::Display) -> Result<(), Stop> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writeln!(data, "{line}")?)
    }

    /// One line of JSON.
    pub(crate) fn json(&self, value: &Value) -> Result<(), Stop> {
        self.data(value)
    }

    /// A text that already ends as it should.
    pub(crate) fn text(&self, text: &str) -> Result<(), Stop> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(data.write_all(text.as_bytes())?)
    }

    /// Lets everything out.
    pub(crate) fn flush(&self) -> Result<(), Stop> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(data.flush()?)
    }

    /// One line for people. It may quote text from outside.
    pub(crate) fn talk(&self, line: &str) {
        if !self.quiet {
            // Nobody reads a closed standard error.
            let _ = writeln!(io::stderr().lock(), "{}", printable(line));
        }
    }

    /// An error, which is told even when little is said.
    pub(crate) fn complain(&self, lines: &str) {
        let mut err = io::stderr().lock();
        for line in lines.lines() {
            // As above.
            let _ = writeln!(err, "{}", printable(line));
        }
    }
}
