//! `volley doctor`: what this machine has, what is in the way, and what to change.

mod cache;
mod cpu;
mod disk;
mod limits;
mod network;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::args::FormatArgs;
use crate::errors::{FAILED, Stop};
use crate::output::Output;

/// Check this machine and say what to change.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Directory whose disk is measured: where a cluster keeps its state.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Ok,
    /// It works, slower or smaller than it could.
    Warn,
    /// Something will not work.
    Bad,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Finding {
    name: &'static str,
    level: Level,
    /// What was found.
    value: String,
    /// What to do; empty when nothing is.
    fix: String,
}

impl Finding {
    fn ok(name: &'static str, value: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Ok,
            value: value.into(),
            fix: String::new(),
        }
    }

    fn warn(name: &'static str, value: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Warn,
            value: value.into(),
            fix: fix.into(),
        }
    }

    fn bad(name: &'static str, value: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            ..Self::warn(name, value, fix)
        }
    }
}

pub(crate) fn run(args: &DoctorArgs, output: &Output) -> Result<(), Stop> {
    let findings = [
        cpu::features(),
        cpu::cores(),
        limits::memory(),
        cpu::gpu(),
        network::udp_buffer(),
        disk::sync(&args.dir),
        cache::packed_weights(),
        limits::descriptors(),
        cpu::clock(),
        network::clusters(),
    ];
    let worst = findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Ok);
    if args.format.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "name": finding.name,
                    "level": finding.level.word(),
                    "value": finding.value,
                    "fix": finding.fix,
                })
            })
            .collect();
        let object =
            json!({ "schema": "volley.doctor/1", "worst": worst.word(), "findings": list });
        output.json(&object)?;
    } else {
        findings
            .iter()
            .flat_map(lines)
            .try_for_each(|line| output.data(line))?;
    }
    if worst == Level::Bad {
        Err(Stop::Status(FAILED))
    } else {
        Ok(())
    }
}

fn lines(finding: &Finding) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<5} {:<12} {}",
        finding.level.word(),
        finding.name,
        finding.value
    )];
    if !finding.fix.is_empty() {
        lines.push(format!("{:<18} fix: {}", "", finding.fix));
    }
    lines
}

/// The content of a small file of the kernel's, without its last line break.
fn kernel_file(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_brings_its_fix() {
        let finding = Finding::warn("udp buffer", "208.0 KiB", "sysctl");
        assert_eq!(
            lines(&finding),
            [
                "warn  udp buffer   208.0 KiB",
                "                   fix: sysctl"
            ]
        );
        assert_eq!(lines(&Finding::ok("cores", "2")), ["ok    cores        2"]);
        assert!(Level::Bad > Level::Warn && Level::Warn > Level::Ok);
    }
}
