//! `volley journal` for a run's directory: is every file as it was written?

use std::fs;
use std::path::{Path, PathBuf};

use volley_protocol::Digest;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::files;
use volley_runtime::journal::{self, Entry, Mended, State};
use volley_runtime::run_dir::{RunDir, read_metrics};
use volley_runtime::segment::set_aside;

use crate::intake;
use crate::records::{StepRecord, checkpoint_steps, read_checkpoint, read_steps};

/// The file of an adapter's folder whose digest names the version.
const WEIGHTS: &str = "adapter_model.safetensors";

/// Looks at everything that a learner keeps in a run's directory. Nobody may work in it.
///
/// # Errors
/// When a file cannot be read; what is wrong inside is part of its entry.
pub fn verify(run: &RunDir) -> Result<Vec<Entry>, Fault> {
    let mut entries = vec![steps(run)?, metrics(run)?];
    entries.extend(checkpoints(run)?);
    let records = read_steps(run.path())?.records;
    entries.extend(adapters(run, &records)?);
    entries.extend(reference(run, &records));
    entries.extend(intake(run)?);
    Ok(entries)
}

/// Gives up what is damaged in a run's directory, as far as the run can go on without it; every
/// file is copied aside first. Nobody may work in it.
///
/// # Errors
/// What the system says.
pub fn repair(run: &RunDir) -> Result<Vec<Mended>, Fault> {
    let mut mended = Vec::new();
    for entry in verify(run)?.into_iter().filter(Entry::is_damaged) {
        mended.push(match entry.kind {
            "steps" => mend_steps(run)?,
            "intake" => match journal::repair_segment(&entry.path)? {
                Some(mended) => mended,
                None => left(&entry, "restore the directory from a copy"),
            },
            "checkpoint" => mend_checkpoint(&entry)?,
            "metrics" => left(&entry, "it is written again by --resume"),
            "adapter" => left(
                &entry,
                "--resume writes the newest again; others are not read",
            ),
            _ => left(&entry, "restore it from a copy"),
        });
    }
    Ok(mended)
}

fn left(entry: &Entry, what: &str) -> Mended {
    Mended {
        path: entry.path.clone(),
        copy: None,
        lost: what.to_owned(),
    }
}

fn steps(run: &RunDir) -> Result<Entry, Fault> {
    let found = read_steps(run.path())?;
    let state = match (found.damage, found.torn_bytes) {
        (Some(damage), _) => State::Damaged {
            offset: Some(damage.offset),
            what: damage.what,
        },
        (None, 0) => State::Whole,
        (None, bytes) => State::Torn { bytes },
    };
    Ok(Entry {
        path: run.steps(),
        kind: "steps",
        records: found.records.len() as u64,
        bytes: found.bytes,
        state,
    })
}

fn metrics(run: &RunDir) -> Result<Entry, Fault> {
    let path = run.metrics();
    let bytes = size(&path);
    match read_metrics(&path) {
        Ok(reports) => Ok(Entry {
            path,
            kind: "metrics",
            records: reports.len() as u64,
            bytes,
            state: State::Whole,
        }),
        Err(fault) if fault.code == ErrorCode::CheckpointInvalid => {
            Ok(Entry::damaged(&path, "metrics", bytes, fault.message))
        }
        Err(fault) => Err(fault),
    }
}

fn checkpoints(run: &RunDir) -> Result<Vec<Entry>, Fault> {
    let directory = run.checkpoints();
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    for step in checkpoint_steps(&directory)? {
        let path = directory.join(format!("step-{step:06}.json"));
        let bytes = size(&path) + size(&path.with_extension("state"));
        entries.push(match read_checkpoint(&directory, step) {
            Ok(_) => whole(&path, "checkpoint", bytes),
            Err(what) => Entry::damaged(&path, "checkpoint", bytes, what),
        });
    }
    Ok(entries)
}

fn adapters(run: &RunDir, records: &[StepRecord]) -> Result<Vec<Entry>, Fault> {
    let mut folders: Vec<(u64, PathBuf)> = Vec::new();
    for path in list(&run.adapters())? {
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")?.parse().ok());
        folders.extend(step.map(|step| (step, path)));
    }
    folders.sort();
    let due = |step: u64| {
        let made = records.iter().find(|record| record.step == step);
        let first = || records.first().filter(|record| record.step == step + 1);
        made.map(|record| &record.digest)
            .or_else(|| first().map(|record| &record.parent))
    };
    let entries = folders.into_iter().map(|(step, path)| {
        let bytes = size(&path.join(WEIGHTS));
        match (digest_of(&path), due(step)) {
            (Err(what), _) => Entry::damaged(&path, "adapter", bytes, what),
            (Ok(found), Some(due)) if found != *due => {
                let what = format!("its digest is {found}, recorded is {due}");
                Entry::damaged(&path, "adapter", bytes, what)
            }
            // Of a step that was not recorded; the next start removes it.
            (Ok(_), None) if step > 0 => Entry {
                state: State::Torn { bytes },
                ..whole(&path, "adapter", bytes)
            },
            (Ok(_), _) => whole(&path, "adapter", bytes),
        }
    });
    Ok(entries.collect())
}

/// The adapter that steps were pulled towards, if they name one.
fn reference(run: &RunDir, records: &[StepRecord]) -> Option<Entry> {
    let due = records
        .iter()
        .rev()
        .find_map(|record| record.reference.as_ref())?;
    let path = run.reference();
    let bytes = size(&path.join(WEIGHTS));
    Some(match digest_of(&path) {
        Ok(found) if found == *due => whole(&path, "reference", bytes),
        Ok(found) => {
            let what = format!("its digest is {found}, the steps were pulled towards {due}");
            Entry::damaged(&path, "reference", bytes, what)
        }
        Err(what) => Entry::damaged(&path, "reference", bytes, what),
    })
}

fn intake(run: &RunDir) -> Result<Vec<Entry>, Fault> {
    let directory = run.intake();
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut entries: Vec<Entry> = Vec::new();
    // As the learner reads them: the next number, unless a repair has made that unknown.
    let mut due: Option<u64> = None;
    for (first, path) in intake::list(&directory)? {
        let before = due.filter(|_| !entries.is_empty()).unwrap_or(first);
        let (mut next, mut gap) = (first, None);
        let mut entry = journal::segment(&path, "intake", |record| {
            let number = intake::decode(record)?.number;
            if number != next {
                gap.get_or_insert(number);
            }
            next = number + 1;
            Ok(())
        })?;
        let known = matches!(
            entry.state,
            State::Whole | State::Sealed | State::Torn { .. }
        );
        let skips = if before == first {
            gap.map(|found| (first, found))
        } else {
            Some((before, first))
        };
        if let (true, Some((due, found))) = (known, skips) {
            entry.state = State::Damaged {
                offset: None,
                what: format!("it goes on with write {found}, but write {due} is due"),
            };
        }
        due = known.then_some(next);
        entries.push(entry);
    }
    Ok(entries)
}

/// Only the last record can go: its step is made again. Those behind a damaged one would be
/// without their parent.
fn mend_steps(run: &RunDir) -> Result<Mended, Fault> {
    let (path, found) = (run.steps(), read_steps(run.path())?);
    let io = |path: &Path, error: &std::io::Error| {
        let message = format!("{}: {error}", path.display());
        Fault::new(ErrorCode::IoFailed, message)
    };
    let mended = |copy, lost: String| Mended {
        path: path.clone(),
        copy,
        lost,
    };
    let Some(damage) = found.damage else {
        return Ok(mended(None, "nothing is damaged".to_owned()));
    };
    let text = fs::read(&path).map_err(|error| io(&path, &error))?;
    let at = (damage.offset as usize).min(text.len());
    let is_last = !text[at..text.len().max(at + 1) - 1].contains(&b'\n');
    if !is_last || (at == text.len() && found.records.is_empty()) {
        let lost = "records follow the damaged one: restore the file from a copy, or begin a new run \
                    from the newest adapter";
        return Ok(mended(None, lost.to_owned()));
    }
    let copy = set_aside(&path).map_err(|error| io(&path, &error))?;
    let metrics = run.metrics();
    set_aside(&metrics).map_err(|error| io(&metrics, &error))?;
    let lines: String = found
        .records
        .iter()
        .map(|record| volley_runtime::run_dir::metrics_line(&record.report))
        .collect();
    let replace = |path: &Path, bytes: &[u8]| {
        files::write_atomic(path, bytes, 0o644).map_err(|error| io(path, &error))
    };
    // First what tells of the step: without it the record is a torn one.
    replace(&metrics, lines.as_bytes())?;
    replace(&path, &text[..at])?;
    let last = found.records.last().map_or(0, |record| record.step);
    let lost = format!("the records behind step {last} are lost; --resume makes those steps again");
    Ok(mended(Some(copy), lost))
}

/// A run resumes from the checkpoint before, or from its first step.
fn mend_checkpoint(entry: &Entry) -> Result<Mended, Fault> {
    let io = |error: std::io::Error| {
        let message = format!("{}: {error}", entry.path.display());
        Fault::new(ErrorCode::IoFailed, message)
    };
    let copy = set_aside(&entry.path).map_err(io)?;
    fs::remove_file(&entry.path).map_err(io)?;
    files::sync_parent(&entry.path).map_err(io)?;
    Ok(Mended {
        path: entry.path.clone(),
        copy: Some(copy),
        lost: "--resume begins at the checkpoint before and makes the steps after it again"
            .to_owned(),
    })
}

fn digest_of(folder: &Path) -> Result<String, String> {
    let bytes = fs::read(folder.join(WEIGHTS)).map_err(|error| error.to_string())?;
    Ok(Digest::of(&bytes).to_string())
}

fn whole(path: &Path, kind: &'static str, bytes: u64) -> Entry {
    Entry {
        path: path.to_owned(),
        kind,
        records: 1,
        bytes,
        state: State::Whole,
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Fault> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot read {}: {error}", directory.display());
        Fault::new(ErrorCode::IoFailed, message)
    };
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).map_err(failed)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(failed)
}
