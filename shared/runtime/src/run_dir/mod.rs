//! The directory of a training run: everything it was told, did and learned.
//!
//! ```text
//! runs/routing-20261121-101530/
//!   recipe.toml          the recipe with every default filled in
//!   run.json             identity, state, evaluations, machine
//!   steps.jsonl          one record for each step, synced before its version is published
//!   metrics.jsonl        the same steps for people and plots
//!   events.jsonl         what `volley train --json` printed
//!   transcripts/         step-000010.md: best, worst and median episodes
//!   checkpoints/         step-000020.json (manifest), step-000020.state
//!   adapters/            step-000020/ in PEFT's layout
//!   reference/           the adapter of train.kl_reference, if it names one
//!   intake/              segments of accepted results
//!   coordinator/         data directory of the coordinator
//!   logs/                one file for each role
//!   report.html
//! ```
//!
//! The learner owns steps, checkpoints, adapters and intake; the launcher owns the rest.

mod host;
mod info;
mod metrics;
mod stamp;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use volley_protocol::{ErrorCode, Fault, RunId};

use crate::recipe::Recipe;
use crate::{faults, files};

pub use host::Host;
pub use info::{Evaluation, RunInfoFile, RunProgress};
pub use metrics::{metrics_line, read_metrics};
pub(crate) use stamp::{unix_ms, utc_exact};
pub use stamp::{utc_stamp, utc_text};

/// Runs of one name that begin within the same second.
const SAME_SECOND_MAX: u32 = 100;

/// A run's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        impl RunDir {
            $($(#[$doc])* #[must_use] pub fn $name(&self) -> PathBuf { self.path.join($file) })*
        }
    };
}

places! {
    /// The recipe with every default filled in.
    recipe_file = "recipe.toml";
    /// Identity, state, evaluations, machine.
    info_file = "run.json";
    /// One record for each step.
    steps = "steps.jsonl";
    /// The steps for people and plots.
    metrics = "metrics.jsonl";
    /// What happened, as NDJSON.
    events = "events.jsonl";
    /// Sample episodes, one file for each step.
    transcripts = "transcripts";
    /// Checkpoints of the optimiser.
    checkpoints = "checkpoints";
    /// Adapters in PEFT's layout.
    adapters = "adapters";
    /// The adapter of `train.kl_reference`, in PEFT's layout.
    reference = "reference";
    /// Segments of accepted results.
    intake = "intake";
    /// Data directory of the coordinator.
    coordinator = "coordinator";
    /// Logs of the roles.
    logs = "logs";
    /// The report.
    report = "report.html";
}

impl RunDir {
    /// Begins a run in a new directory `<runs>/<name>-<stamp>`.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub fn create(runs: &Path, recipe: &Recipe) -> Result<Self, Fault> {
        fs::create_dir_all(runs).map_err(|error| faults::io("create", runs, &error))?;
        let name = format!("{}-{}", recipe.name, utc_stamp(unix_ms()));
        for attempt in 1..=SAME_SECOND_MAX {
            let suffix = if attempt == 1 {
                String::new()
            } else {
                format!("-{attempt}")
            };
            let path = runs.join(format!("{name}{suffix}"));
            match fs::create_dir(&path) {
                Ok(()) => return Self { path }.begin(recipe),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(faults::io("create", &path, &error)),
            }
        }
        let message = format!("{} has {SAME_SECOND_MAX} runs named {name}", runs.display());
        Err(Fault::new(ErrorCode::RunExists, message))
    }

    /// Begins a run in a directory that was named.
    ///
    /// # Errors
    /// `RUN_EXISTS` when it holds a run already, `IO_FAILED`.
    pub fn create_at(path: &Path, recipe: &Recipe) -> Result<Self, Fault> {
        let run = Self {
            path: absolute(path)?,
        };
        if run.info_file().exists() {
            let message = format!("{} holds a run already", path.display());
            let hint = "go on with it by --resume, or name another directory by --run-dir";
            return Err(Fault::new(ErrorCode::RunExists, message).with_hint(hint));
        }
        fs::create_dir_all(path).map_err(|error| faults::io("create", path, &error))?;
        run.begin(recipe)
    }

    /// Opens the directory of a run that was begun.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let run = Self {
            path: absolute(path)?,
        };
        if run.info_file().exists() {
            return Ok(run);
        }
        let message = format!("{} holds no run: it has no run.json", path.display());
        let hint = "begin one: volley train RECIPE.toml";
        Err(Fault::new(ErrorCode::RunNotFound, message).with_hint(hint))
    }

    /// The run in `runs` that was begun last; of that name only, if one is given.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`.
    pub fn latest(runs: &Path, name: Option<&str>) -> Result<Self, Fault> {
        let newest = Self::all(runs)
            .into_iter()
            .rev()
            .find(|(info, _)| name.is_none_or(|name| info.name == name));
        newest.map(|(_, run)| run).ok_or_else(|| {
            let named = name
                .map(|name| format!(" named {name}"))
                .unwrap_or_default();
            let message = format!("{} holds no run{named}", runs.display());
            let hint = "begin one: volley train RECIPE.toml";
            Fault::new(ErrorCode::RunNotFound, message).with_hint(hint)
        })
    }

    /// Every run in `runs`, the first begun first; what cannot be read is left out.
    #[must_use]
    pub fn all(runs: &Path) -> Vec<(RunInfoFile, Self)> {
        let entries = fs::read_dir(runs).into_iter().flatten().flatten();
        let mut found: Vec<(RunInfoFile, Self)> = entries
            .filter_map(|entry| {
                let run = Self {
                    path: absolute(&entry.path()).ok()?,
                };
                Some((run.info().ok()?, run))
            })
            .collect();
        found.sort_by(|(a, at_a), (b, at_b)| {
            (a.begun_unix_ms, &at_a.path).cmp(&(b.begun_unix_ms, &at_b.path))
        });
        found
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe it was begun with.
    ///
    /// # Errors
    /// `CONFIG_INVALID` when somebody has spoilt it.
    pub fn recipe(&self) -> Result<Recipe, Fault> {
        Recipe::load(&self.recipe_file())
    }

    /// The run's identity.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID` when `run.json` cannot be read.
    pub fn run_id(&self) -> Result<RunId, Fault> {
        self.info()?.run.parse()
    }

    /// What `run.json` says.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID` when it cannot be read.
    pub fn info(&self) -> Result<RunInfoFile, Fault> {
        let path = self.info_file();
        let invalid = |reason: &dyn std::fmt::Display| {
            let message = format!("{} cannot be read: {reason}", path.display());
            Fault::new(ErrorCode::CheckpointInvalid, message)
        };
        let text = fs::read(&path).map_err(|error| invalid(&error))?;
        serde_json::from_slice(&text).map_err(|error| invalid(&error))
    }

    /// Changes `run.json`, whole or not at all. For the launcher, its only writer.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID`, `IO_FAILED`.
    pub fn update(&self, change: impl FnOnce(&mut RunInfoFile)) -> Result<RunInfoFile, Fault> {
        let mut info = self.info()?;
        change(&mut info);
        self.write_info(&info)?;
        Ok(info)
    }

    /// Keeps an evaluation in `run.json`, in the place of an earlier one of the same step.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID`, `IO_FAILED`.
    pub fn keep_evaluation(&self, evaluation: &Evaluation) -> Result<(), Fault> {
        self.update(|info| info.keep(evaluation.clone())).map(drop)
    }

    /// The steps so far, one report for each, ascending.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID` when a line in the middle is damaged, `IO_FAILED`.
    pub fn reports(&self) -> Result<Vec<volley_protocol::run::StepReport>, Fault> {
        read_metrics(&self.metrics())
    }

    fn begin(self, recipe: &Recipe) -> Result<Self, Fault> {
        let run = Self {
            path: absolute(&self.path)?,
        };
        for dir in [
            run.transcripts(),
            run.logs(),
            run.adapters(),
            run.intake(),
            run.checkpoints(),
        ] {
            fs::create_dir_all(&dir).map_err(|error| faults::io("create", &dir, &error))?;
        }
        let path = run.recipe_file();
        files::write_atomic(&path, recipe.to_toml()?.as_bytes(), 0o644)
            .map_err(|error| faults::io("write", &path, &error))?;
        // Last: a directory with run.json is complete.
        run.write_info(&RunInfoFile::begin(fresh_run_id()?, recipe))?;
        Ok(run)
    }

    fn write_info(&self, info: &RunInfoFile) -> Result<(), Fault> {
        let path = self.info_file();
        let mut json = serde_json::to_vec_pretty(info).map_err(|error| {
            Fault::new(
                ErrorCode::Internal,
                format!("run.json cannot be written: {error}"),
            )
        })?;
        json.push(b'\n');
        files::write_atomic(&path, &json, 0o644).map_err(|e| faults::io("write", &path, &e))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Fault> {
    std::path::absolute(path).map_err(|error| faults::io("resolve", path, &error))
}

fn fresh_run_id() -> Result<RunId, Fault> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = fs::File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| faults::io("read", source, &error))?;
    Ok(RunId(u128::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests;
