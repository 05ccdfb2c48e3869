//! What a run leaves on its disk, and how it is read back.
//!
//! ```text
//! steps.jsonl                     one record for each step, synced before its version is published;
//!                                 each line with a checksum
//! metrics.jsonl                   the same steps for people and plots
//! checkpoints/step-000020.state   the optimiser's state, every K steps
//! checkpoints/step-000020.json    its manifest: which version, which digest
//! ```
//!
//! A line of `metrics.jsonl` is written after its step was synced: so it tells a step record that was
//! lost or damaged from one that was never finished.
//!
//! State at any step = newest valid checkpoint + replay of the records after it. A replay must
//! give the recorded digest, so a damaged file cannot go unnoticed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use volley_learner_core::Batch;
use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::run::StepReport;
use volley_protocol::{Digest, RunId};
use volley_runtime::files;
use volley_runtime::run_dir::metrics_line;

mod read;

pub(crate) use read::read_steps;
use read::{first_damage, to_line};

/// Checkpoints kept: the newest, and one to fall back on.
const CHECKPOINTS_KEPT: usize = 2;

/// One step, as it is replayed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// Step of the version that came out.
    pub(crate) step: u64,
    pub(crate) lineage: u32,
    /// Digest of the version that came out, in hex.
    pub(crate) digest: String,
    /// Digest of the version that was trained, in hex.
    pub(crate) parent: String,
    pub(crate) bytes: u64,
    /// Groups of the batch, in order.
    pub(crate) groups: Vec<GroupRecord>,
    /// Groups closed without being trained.
    pub(crate) dropped: Vec<u64>,
    /// Rollouts that failed.
    pub(crate) failed: Vec<u64>,
    /// Digest of the adapter that the step was pulled towards, in hex; none of the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    pub(crate) report: StepReport,
}

/// One group of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) group: u64,
    /// Indices of the rollouts, in order.
    pub(crate) members: Vec<u64>,
    pub(crate) degraded: bool,
}

impl StepRecord {
    pub(crate) fn new(batch: &Batch, entry: AdapterEntry, report: &StepReport) -> Self {
        let groups = batch.groups.iter().map(|group| GroupRecord {
            group: group.index.0,
            members: group.members.iter().map(|rollout| rollout.index).collect(),
            degraded: group.degraded,
        });
        Self {
            step: entry.version.step,
            lineage: entry.version.lineage,
            digest: entry.version.digest.to_string(),
            parent: entry.parent.to_string(),
            bytes: entry.bytes,
            groups: groups.collect(),
            dropped: batch.dropped.iter().map(|group| group.0).collect(),
            failed: batch.failed.iter().map(|rollout| rollout.index).collect(),
            reference: None,
            report: report.clone(),
        }
    }

    /// The version that came out.
    pub(crate) fn entry(&self, run: RunId) -> Result<AdapterEntry, Fault> {
        let version = AdapterVersion {
            run,
            lineage: self.lineage,
            step: self.step,
            digest: parse_digest(&self.digest)?,
        };
        Ok(AdapterEntry {
            version,
            parent: parse_digest(&self.parent)?,
            bytes: self.bytes,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    step: u64,
    state_sha256: String,
    state_bytes: u64,
}

/// A checkpoint that was read back.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) state: Vec<u8>,
}

/// The files of one run.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    steps: File,
    metrics: File,
}

impl Records {
    /// Opens the files and reads the records back. A torn last line was never published: it goes.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Vec<StepRecord>), Fault> {
        let path = directory.join("steps.jsonl");
        let found = read_steps(directory)?;
        if let Some(damage) = &found.damage {
            return Err(first_damage(&path, damage));
        }
        if found.torn_bytes > 0 {
            tracing::warn!(bytes = found.torn_bytes, "a torn step record is dropped");
        }
        let records = found.records;
        let whole: String = records.iter().map(to_line).collect();
        write_synced(&path, whole.as_bytes())?;
        let metrics_path = directory.join("metrics.jsonl");
        let metrics: String = records
            .iter()
            .map(|record| metrics_line(&record.report))
            .collect();
        write_synced(&metrics_path, metrics.as_bytes())?;
        fs::create_dir_all(directory.join("checkpoints")).map_err(|e| io_fault(directory, &e))?;
        let append = |path: &Path| {
            File::options()
                .append(true)
                .open(path)
                .map_err(|error| io_fault(path, &error))
        };
        let (steps, metrics) = (append(&path)?, append(&metrics_path)?);
        Ok((
            Self {
                directory: directory.to_owned(),
                steps,
                metrics,
            },
            records,
        ))
    }

    /// Makes a step durable: from here on it has happened.
    pub(crate) fn append(&mut self, record: &StepRecord) -> Result<(), Fault> {
        let line = to_line(record);
        let synced = self
            .steps
            .write_all(line.as_bytes())
            .and_then(|()| self.steps.sync_data());
        synced.map_err(|error| io_fault(&self.directory.join("steps.jsonl"), &error))?;
        // Rebuilt from the records at the next start, whatever happens to it.
        let written = self
            .metrics
            .write_all(metrics_line(&record.report).as_bytes());
        written.map_err(|error| io_fault(&self.directory.join("metrics.jsonl"), &error))
    }

    /// Writes a checkpoint: state first, manifest last, older ones beyond the bound removed.
    pub(crate) fn checkpoint(&self, step: u64, state: &[u8]) -> Result<(), Fault> {
        let state_path = self.checkpoint_path(step, "state");
        write_synced(&state_path, state)?;
        let manifest = json!(Manifest {
            step,
            state_sha256: Digest::of(state).to_string(),
            state_bytes: state.len() as u64,
        });
        write_synced(
            &self.checkpoint_path(step, "json"),
            manifest.to_string().as_bytes(),
        )?;
        for old in self.checkpoints()?.into_iter().rev().skip(CHECKPOINTS_KEPT) {
            for extension in ["json", "state"] {
                let path = self.checkpoint_path(old, extension);
                fs::remove_file(&path).map_err(|error| io_fault(&path, &error))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that is whole and not newer than `head`. Damaged ones are passed
    /// over, and said to be.
    pub(crate) fn newest_checkpoint(&self, head: u64) -> Result<Option<Checkpoint>, Fault> {
        for step in self
            .checkpoints()?
            .into_iter()
            .rev()
            .filter(|step| *step <= head)
        {
            match read_checkpoint(&self.directory.join("checkpoints"), step) {
                Ok(state) => return Ok(Some(Checkpoint { step, state })),
                Err(reason) => tracing::warn!(step, reason, "a damaged checkpoint is passed over"),
            }
        }
        Ok(None)
    }

    /// Steps with a manifest, ascending.
    fn checkpoints(&self) -> Result<Vec<u64>, Fault> {
        checkpoint_steps(&self.directory.join("checkpoints"))
    }

    fn checkpoint_path(&self, step: u64, extension: &str) -> PathBuf {
        self.directory
            .join("checkpoints")
            .join(format!("step-{step:06}.{extension}"))
    }
}

/// Steps with a manifest, ascending.
pub(crate) fn checkpoint_steps(directory: &Path) -> Result<Vec<u64>, Fault> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| io_fault(directory, &error))? {
        let name = entry
            .map_err(|error| io_fault(directory, &error))?
            .file_name();
        let step = name
            .to_str()
            .and_then(|n| n.strip_prefix("step-")?.strip_suffix(".json"));
        steps.extend(step.and_then(|step| step.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The state of a checkpoint, if it is as its manifest says.
pub(crate) fn read_checkpoint(directory: &Path, step: u64) -> Result<Vec<u8>, String> {
    let path = |extension: &str| directory.join(format!("step-{step:06}.{extension}"));
    let text = fs::read(path("json")).map_err(|e| e.to_string())?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let state = fs::read(path("state")).map_err(|e| e.to_string())?;
    if manifest.step != step {
        return Err(format!("its manifest is that of step {}", manifest.step));
    }
    if manifest.state_bytes != state.len() as u64 {
        let (has, due) = (state.len(), manifest.state_bytes);
        return Err(format!(
            "its state has {has} bytes, its manifest says {due}"
        ));
    }
    if Digest::of(&state).to_string() == manifest.state_sha256 {
        Ok(state)
    } else {
        Err("its state has another digest than its manifest says".into())
    }
}

fn parse_digest(hex: &str) -> Result<Digest, Fault> {
    let bad = || {
        Fault::new(
            ErrorCode::CheckpointInvalid,
            format!("`{hex}` is no digest"),
        )
    };
    let mut digest = Digest::default();
    if hex.len() != 64 || !hex.is_ascii() {
        return Err(bad());
    }
    for (at, byte) in digest.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
    }
    Ok(digest)
}

/// Old file or new file, never half of one. Everybody may read a run.
fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    files::write_atomic(path, bytes, 0o644).map_err(|error| io_fault(path, &error))
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        format!("{}: {error}", path.display()),
    )
    .with_hint("free the disk and run again with --resume")
}

#[cfg(test)]
mod tests;
