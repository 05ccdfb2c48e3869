//! `volley journal`: are the durable files as they were written, and what can be done if not?

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use volley_protocol::{ErrorCode, Fault};
use volley_runtime::journal::{self, Entry, Mended, State};
use volley_runtime::lock::DirLock;
use volley_runtime::run_dir::RunDir;

use crate::args::FormatArgs;
use crate::errors::{FAILED, Stop};
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text;

/// Check the durable files of a stopped cluster or run, and repair them.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalVerb {
    /// Compare every checksum; exit status 1 when something is damaged. Changes nothing.
    Verify(JournalArgs),
    /// Give up what is damaged, and only that; every file is copied aside first.
    Repair(JournalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    /// A data directory, a run directory, or one segment file.
    #[arg(value_name = "DIR", default_value = ".")]
    place: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// What the place is.
enum Place {
    Data,
    Run(RunDir),
    Segment,
}

pub(crate) fn run(verb: &JournalVerb, output: &Output) -> Result<(), Stop> {
    match verb {
        JournalVerb::Verify(args) => {
            let _locks = locks(&args.place)?;
            verify(args, output)
        }
        JournalVerb::Repair(args) => {
            let _locks = locks(&args.place)?;
            repair(args, output)
        }
    }
}

fn verify(args: &JournalArgs, output: &Output) -> Result<(), Stop> {
    let entries = look(&args.place)?;
    let damaged = entries.iter().filter(|entry| entry.is_damaged()).count();
    if args.format.json {
        let files: Vec<Value> = entries.iter().map(object).collect();
        output.json(&json!({
            "schema": "volley.journal/1",
            "place": args.place.display().to_string(),
            "damaged": damaged,
            "files": files,
        }))?;
    } else {
        for line in table(&args.place, &entries).lines() {
            output.data(line)?;
        }
    }
    if damaged == 0 {
        return Ok(());
    }
    let place = args.place.display();
    output.talk(&format!(
        "{damaged} of {} files are damaged; restore them from a copy, or: volley journal repair {place}",
        entries.len()
    ));
    Err(Stop::Status(FAILED))
}

fn repair(args: &JournalArgs, output: &Output) -> Result<(), Stop> {
    let mended = match place(&args.place)? {
        Place::Data => volley_coordinator::journal::repair(&args.place)?,
        Place::Run(run) => {
            let mut mended = volley_learner::journal::repair(&run)?;
            if is_data(&run.coordinator()) {
                mended.extend(volley_coordinator::journal::repair(&run.coordinator())?);
            }
            mended
        }
        Place::Segment => journal::repair_segment(&args.place)?.into_iter().collect(),
    };
    if args.format.json {
        let files: Vec<Value> = mended.iter().map(mended_object).collect();
        output.json(&json!({ "schema": "volley.journal.repair/1", "files": files }))?;
    } else {
        for file in &mended {
            let name = text::line(&file.path.display().to_string(), 200);
            output.data(format!("{name}: {}", file.lost))?;
            if let Some(copy) = &file.copy {
                output.data(format!("  as it was: {}", copy.display()))?;
            }
        }
    }
    if mended.is_empty() {
        output.talk("nothing is damaged");
    }
    if mended.iter().all(|file| file.copy.is_some()) {
        Ok(())
    } else {
        Err(Stop::Status(FAILED))
    }
}

/// Nobody may write meanwhile. A place that cannot be locked because it cannot be written to has
/// no writer either.
fn locks(place: &Path) -> Result<Vec<DirLock>, Stop> {
    let mut directories = vec![];
    if place.is_file() {
        // Segments lie one below the directory whose process writes them.
        let absolute = std::path::absolute(place).unwrap_or_else(|_| place.to_owned());
        let above = absolute.ancestors().skip(1).take(2);
        let owned = above.filter(|at| is_data(at) || at.join("run.json").exists());
        directories.extend(owned.map(Path::to_owned));
    }
    if is_data(place) || place.join("run.json").exists() {
        directories.push(place.to_owned());
    }
    if is_data(&place.join("coordinator")) {
        directories.push(place.join("coordinator"));
    }
    let mut locks = Vec::new();
    for directory in directories {
        match DirLock::acquire(&directory) {
            Ok(lock) => locks.push(lock),
            Err(fault) if fault.code == ErrorCode::IoFailed => {}
            Err(fault) => {
                let hint = "stop that process first: volley journal looks at files that rest";
                return Err(Fault {
                    hint: hint.to_owned(),
                    ..fault
                }
                .into());
            }
        }
    }
    Ok(locks)
}

fn look(at: &Path) -> Result<Vec<Entry>, Stop> {
    Ok(match place(at)? {
        Place::Data => volley_coordinator::journal::verify(at)?,
        Place::Run(run) => {
            let mut entries = volley_learner::journal::verify(&run)?;
            if is_data(&run.coordinator()) {
                entries.extend(volley_coordinator::journal::verify(&run.coordinator())?);
            }
            entries
        }
        Place::Segment => vec![journal::segment(at, "segment", |_| Ok(()))?],
    })
}

fn place(path: &Path) -> Result<Place, Stop> {
    if path.is_file() {
        return Ok(Place::Segment);
    }
    if is_data(path) {
        return Ok(Place::Data);
    }
    if path.join("run.json").exists() {
        return Ok(Place::Run(RunDir::open(path)?));
    }
    let message = format!(
        "{} is no data directory (it has no {}), no run directory (it has no run.json) and no file",
        path.display(),
        volley_coordinator::journal::STORE_FILE
    );
    Err(Fault::new(ErrorCode::IoFailed, message)
        .with_hint("name the directory of `volley up --data-dir`, or one below runs/")
        .into())
}

fn is_data(path: &Path) -> bool {
    path.join(volley_coordinator::journal::STORE_FILE).exists()
}

fn table(place: &Path, entries: &[Entry]) -> Table {
    let columns = [
        ("FILE", Align::Left),
        ("KIND", Align::Left),
        ("RECORDS", Align::Right),
        ("BYTES", Align::Right),
        ("STATE", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for entry in entries {
        let name = entry.path.strip_prefix(place).unwrap_or(&entry.path);
        table.row([
            text::line(&name.display().to_string(), 60),
            entry.kind.to_owned(),
            entry.records.to_string(),
            entry.bytes.to_string(),
            text::line(&state(&entry.state), 200),
        ]);
    }
    table
}

fn state(state: &State) -> String {
    match state {
        State::Whole => "whole".to_owned(),
        State::Sealed => "whole, sealed".to_owned(),
        State::Torn { bytes } => format!("whole, {bytes} unfinished bytes at the end"),
        State::Repaired { gaps, bytes } => {
            format!("repaired: {bytes} bytes given up in {gaps} places")
        }
        State::Damaged { offset, what } => match offset {
            Some(offset) => format!("DAMAGED at byte {offset}: {what}"),
            None => format!("DAMAGED: {what}"),
        },
    }
}

fn object(entry: &Entry) -> Value {
    let (name, offset, what) = match &entry.state {
        State::Whole => ("whole", None, None),
        State::Sealed => ("sealed", None, None),
        State::Torn { .. } => ("torn", None, None),
        State::Repaired { .. } => ("repaired", None, None),
        State::Damaged { offset, what } => ("damaged", *offset, Some(what)),
    };
    json!({
        "file": entry.path.display().to_string(),
        "kind": entry.kind,
        "records": entry.records,
        "bytes": entry.bytes,
        "state": name,
        "offset": offset,
        "what": what,
    })
}

fn mended_object(mended: &Mended) -> Value {
    json!({
        "file": mended.path.display().to_string(),
        "repaired": mended.copy.is_some(),
        "copy": mended.copy.as_ref().map(|copy| copy.display().to_string()),
        "lost": mended.lost,
    })
}
