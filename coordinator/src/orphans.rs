//! Results of jobs that the store does not know: left over when the coordinator died between
//! forgetting a job and deleting its file, or the only trace of a store that lost its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use volley_coordinator_core::Record;
use volley_protocol::JobId;
use volley_protocol::fault::{ErrorCode, Fault};

/// Kept so long after the last write, as results are by default: time to see the report and to put
/// the store's file back.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// Reports files of unknown jobs, and deletes those that are old.
pub(crate) fn collect(directory: &Path, records: &[Record], now: SystemTime) -> Result<(), Fault> {
    let known = known(records);
    let failed = |error: std::io::Error| {
        let message = format!("cannot tidy {}: {error}", directory.display());
        Fault::new(ErrorCode::IoFailed, message)
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let job = name.and_then(|name| name.strip_suffix(".results")?.parse::<JobId>().ok());
        let Some(job) = job.filter(|job| !known.contains(job)) else {
            continue;
        };
        let written = fs::metadata(&path).and_then(|found| found.modified());
        let age = now
            .duration_since(written.map_err(failed)?)
            .unwrap_or_default();
        if age > KEPT_FOR {
            tracing::info!(path = %path.display(), "results of a forgotten job are deleted");
            fs::remove_file(&path).map_err(failed)?;
            continue;
        }
        let hours = KEPT_FOR.as_secs() / 3600;
        let message = format!(
            "{} holds results of job {job}, of which the store knows nothing; it is deleted {hours} h \
             after its last write",
            path.display()
        );
        let fault = Fault::new(ErrorCode::ResultsLost, message)
            .with_hint("if the job was not over, the store has lost its end: check the disk");
        tracing::warn!("{fault}");
    }
    Ok(())
}

fn known(records: &[Record]) -> BTreeSet<JobId> {
    let mut known = BTreeSet::new();
    for record in records {
        match record {
            Record::JobAccepted { spec, .. } => drop(known.insert(spec.job)),
            Record::JobForgotten { job } => drop(known.remove(job)),
            _ => {}
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_unknown_jobs_go_when_they_are_old() {
        let directory = tempfile::tempdir().expect("directory");
        let path = |name: &str| directory.path().join(name);
        let (job, other) = (JobId(0xab), "notes.txt");
        let orphan = path(&format!("{job}.results"));
        for file in [&orphan, &path(other)] {
            fs::write(file, "x").expect("write");
        }
        let later = |hours| SystemTime::now() + Duration::from_hours(hours);
        collect(directory.path(), &[], later(1)).expect("collect");
        assert!(orphan.exists(), "reported, not deleted");
        collect(directory.path(), &[], later(25)).expect("collect");
        assert!(!orphan.exists() && path(other).exists());
        collect(&path("none"), &[], later(25)).expect("a new data directory");
    }
}
