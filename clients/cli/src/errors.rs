//! How a command ends that did not go well, and with which exit status.

use std::io;
use std::process::ExitCode;

use volley_protocol::{ErrorCode, Fault};

use crate::output::Output;

/// Exit status of a command that worked and has something bad to report: failed rollouts, a
/// degraded cluster.
pub(crate) const FAILED: u8 = 1;

/// Why a command stops early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// An error with a code; it is told once, at the top.
    Fault(Fault),
    /// Everything has been said; only the exit status is left.
    Status(u8),
    /// Whoever read standard output has enough: that is no error of ours.
    NobodyReads,
}

impl Stop {
    /// A usage error that clap cannot see.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Fault(Fault::new(ErrorCode::InvalidRequest, message))
    }

    /// A file could not be read or written.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let message = format!("cannot {doing} {}: {error}", path.display());
        Self::Fault(Fault::new(ErrorCode::IoFailed, message))
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Stop {
    /// Of writing to standard output or the terminal; other files are named ([`Stop::file`]).
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::NobodyReads;
        }
        let message = format!("cannot write to standard output: {error}");
        Self::Fault(Fault::new(ErrorCode::IoFailed, message))
    }
}

/// Tells the error, once, and turns it into the exit status.
pub(crate) fn conclude(outcome: Result<(), Stop>, output: &Output) -> ExitCode {
    match outcome.and_then(|()| output.flush()) {
        Ok(()) | Err(Stop::NobodyReads) => ExitCode::SUCCESS,
        Err(Stop::Status(status)) => match output.flush() {
            Ok(()) | Err(_) => ExitCode::from(status),
        },
        Err(Stop::Fault(fault)) => {
            // What was found out before the error is still worth having.
            let _ = output.flush();
            output.complain(&told(&fault));
            ExitCode::from(fault.code.exit_status())
        }
    }
}

/// What happened, what to do, where to read more.
pub(crate) fn told(fault: &Fault) -> String {
    let mut lines = format!("error[{}]: {}", fault.code, fault.message);
    if !fault.hint.is_empty() {
        lines.push_str("\n  hint: ");
        lines.push_str(&fault.hint);
    }
    if fault.code != ErrorCode::Interrupted {
        lines.push_str(&format!("\n  more: volley explain {}", fault.code));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_hint_and_page() {
        let fault = Fault::new(ErrorCode::QueueFull, "10,000 jobs are open").with_hint("wait");
        assert_eq!(
            told(&fault),
            "error[QUEUE_FULL]: 10,000 jobs are open\n  hint: wait\n  more: volley explain QUEUE_FULL"
        );
        let fault = Fault::new(ErrorCode::Interrupted, "interrupted");
        assert_eq!(told(&fault), "error[INTERRUPTED]: interrupted");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let stop = Stop::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(stop, Stop::NobodyReads));
        let stop = Stop::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(stop, Stop::Fault(fault) if fault.code == ErrorCode::IoFailed));
    }
}
