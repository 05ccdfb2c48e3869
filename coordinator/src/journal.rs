//! `volley journal` for a coordinator's data directory: is every file as it was written?

use std::path::{Path, PathBuf};

use volley_coordinator_core::Record;
use volley_protocol::client::ResultRecord;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::journal::{self, Entry, Mended};
use volley_runtime::store;

/// The store of a data directory: what makes a directory one.
pub const STORE_FILE: &str = "coordinator.db";

/// Looks at the store and the results of a data directory. Nobody may work in it.
///
/// # Errors
/// When a file cannot be read; what is wrong inside is part of its entry.
pub fn verify(data_dir: &Path) -> Result<Vec<Entry>, Fault> {
    let is_record = |text: &str| {
        let parsed: Result<Record, _> = serde_json::from_str(text);
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let mut entries = vec![store::inspect_store(&data_dir.join(STORE_FILE), is_record)?];
    for path in results(data_dir)? {
        entries.push(journal::segment(&path, "results", |record| {
            let decoded = ResultRecord::decode(record);
            decoded.map(drop).map_err(|error| error.to_string())
        })?);
    }
    Ok(entries)
}

/// Gives up what is damaged in a data directory; every file is copied aside first. Nobody may work
/// in it.
///
/// # Errors
/// What the system says.
pub fn repair(data_dir: &Path) -> Result<Vec<Mended>, Fault> {
    let mut mended = Vec::new();
    mended.extend(store::repair_store(&data_dir.join(STORE_FILE))?);
    for path in results(data_dir)? {
        mended.extend(journal::repair_segment(&path)?);
    }
    Ok(mended)
}

fn results(data_dir: &Path) -> Result<Vec<PathBuf>, Fault> {
    let directory = data_dir.join("results");
    let failed = |error: std::io::Error| {
        let message = format!("cannot read {}: {error}", directory.display());
        Fault::new(ErrorCode::IoFailed, message)
    };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "results")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
