//! Reads step records back, and tells a torn last line from a damaged one.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::checked_line::{CheckedLine, check, checked};
use volley_runtime::segment::Damage;

use super::{StepRecord, io_fault};

/// What lines of builds before checksums begin with: the first member by name.
const UNCHECKED_BEGINS: &[u8] = b"{\"bytes\":";

/// What `steps.jsonl` holds.
#[derive(Debug, Default)]
pub(crate) struct StepsFound {
    /// The records up to the first damage.
    pub(crate) records: Vec<StepRecord>,
    /// Length of the file.
    pub(crate) bytes: u64,
    /// Bytes of a last line that was never finished.
    pub(crate) torn_bytes: u64,
    /// What was synced once and is no longer as it was.
    pub(crate) damage: Option<Damage>,
}

/// A line of `metrics.jsonl`, as far as it counts here.
#[derive(Deserialize)]
struct Told {
    step: u64,
}

/// Reads the step records of a run directory; a run that made no step yet has none.
///
/// # Errors
/// `STORE_FAILED` when the file cannot be read; damage is part of what is found.
pub(crate) fn read_steps(directory: &Path) -> Result<StepsFound, Fault> {
    let path = directory.join("steps.jsonl");
    let text = read(&path)?;
    let mut found = StepsFound {
        bytes: text.len() as u64,
        ..StepsFound::default()
    };
    let told = newest_told(&read(&directory.join("metrics.jsonl"))?);
    let mut at = 0;
    let mut checked_before = false;
    while at < text.len() {
        let end = text[at..].iter().position(|byte| *byte == b'\n');
        let (line, next) = match end {
            Some(end) => (&text[at..at + end], at + end + 1),
            None => (&text[at..], text.len()),
        };
        match parse(line, found.records.last(), checked_before) {
            Ok((record, checked)) => {
                checked_before |= checked;
                found.records.push(record);
            }
            Err(what) => {
                let due = found.records.last().map_or(0, |record| record.step) + 1;
                // Nobody was told of the step: its line was being written.
                if next == text.len() && told < due {
                    found.torn_bytes = (text.len() - at) as u64;
                } else {
                    let offset = at as u64;
                    let line = found.records.len() + 1;
                    let what = format!("line {line}: {what}");
                    found.damage = Some(Damage { offset, what });
                }
                return Ok(found);
            }
        }
        at = next;
    }
    let last = found.records.last().map_or(0, |record| record.step);
    if last < told {
        let what = format!("it ends with step {last}, but metrics.jsonl tells of step {told}");
        let offset = found.bytes;
        found.damage = Some(Damage { offset, what });
    }
    Ok(found)
}

/// The fault of a file that is damaged.
pub(super) fn first_damage(path: &Path, damage: &Damage) -> Fault {
    let (place, offset) = (path.display(), damage.offset);
    let directory = path.parent().unwrap_or(path).display();
    let message = format!("{place} is damaged at byte {offset}: {}", damage.what);
    Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(format!(
        "restore the file from a copy; `volley journal verify {directory}` says what is whole, \
         `volley journal repair {directory}` gives up a damaged last step; the adapters published so \
         far are whole"
    ))
}

/// One line, with its end.
pub(super) fn to_line(record: &StepRecord) -> String {
    format!("{}\n", checked(&json!(record).to_string()))
}

/// A record, and whether its line had a checksum.
fn parse(
    line: &[u8],
    last: Option<&StepRecord>,
    checked_before: bool,
) -> Result<(StepRecord, bool), String> {
    let (record, checked) = match check(line) {
        CheckedLine::Whole(object) => (serde_json::from_str(&object), true),
        CheckedLine::Damaged => return Err("it does not match its checksum".into()),
        CheckedLine::Unchecked if checked_before || !line.starts_with(UNCHECKED_BEGINS) => {
            return Err("it is no step record".into());
        }
        CheckedLine::Unchecked => (serde_json::from_slice(line), false),
    };
    let record: StepRecord = record.map_err(|error| error.to_string())?;
    // Invariant 8: versions form one chain by parent digest.
    let follows =
        last.is_none_or(|last| last.digest == record.parent && last.step + 1 == record.step);
    if follows {
        Ok((record, checked))
    } else {
        let step = record.step;
        Err(format!(
            "the record of step {step} does not follow the one before it"
        ))
    }
}

/// The newest step that `metrics.jsonl` tells of, as far as it can be read.
fn newest_told(metrics: &[u8]) -> u64 {
    let lines = metrics.split(|byte| *byte == b'\n');
    let told = lines.filter_map(|line| serde_json::from_slice::<Told>(line).ok());
    told.map(|told| told.step).max().unwrap_or(0)
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_fault(path, &error)),
    }
}
