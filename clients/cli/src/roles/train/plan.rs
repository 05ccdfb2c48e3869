//! From the command line and a recipe to a run: which directory, which numbers, which processes.

use std::path::{Path, PathBuf};

use volley_engine::config::Compute;
use volley_engine::model::{LoadOptions, Model};
use volley_engine::packed::PackedCache;
use volley_protocol::RunId;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::cache_dir;
use volley_runtime::recipe::Recipe;
use volley_runtime::report;
use volley_runtime::run_dir::{RunDir, RunProgress};

use super::TrainArgs;
use super::evaluate::HeldOut;
use crate::roles::launch::LocalCluster;

/// Where runs are put when nobody says otherwise.
const RUNS: &str = "runs";

/// Workers of a run that nothing is asked of go after this long; training keeps them warm.
const IDLE_WINDOW_MS: u64 = 30_000;

/// A run that is about to go on.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) recipe: Recipe,
    pub(crate) directory: RunDir,
    pub(crate) run: RunId,
}

impl Plan {
    /// Reads the recipe, applies the command line, and begins or resumes the run's directory.
    pub(crate) fn make(args: &TrainArgs) -> Result<Self, Fault> {
        let directory = if args.resume {
            resumed(args)?
        } else {
            begun(args)?
        };
        directory.update(|info| info.set_progress(RunProgress::Training, None))?;
        let mut recipe = directory.recipe()?;
        if let (true, Some(workers)) = (args.resume, args.workers) {
            // The only number that may change in the middle: it does not touch the arithmetic.
            recipe.workers.count = workers;
        }
        let run = directory.run_id()?;
        Ok(Self {
            recipe,
            directory,
            run,
        })
    }

    /// The processes beside the learner.
    pub(crate) fn cluster(&self) -> LocalCluster {
        let workers = &self.recipe.workers;
        LocalCluster {
            data_dir: self.directory.coordinator(),
            name: self.recipe.name.replace(['.', '_'], "-"),
            listen: None,
            model: Some(self.recipe.model.clone()),
            workers: workers.count,
            min_workers: 0,
            keep_warm: workers.count,
            slots: workers.slots,
            threads: workers.threads as usize,
            compute: self.recipe.compute.name(),
            idle_window_ms: IDLE_WINDOW_MS,
            logs: Some(self.directory.logs()),
        }
    }

    /// What is held out for evaluation.
    pub(crate) fn held_out(&self) -> HeldOut {
        HeldOut {
            run: self.run,
            environment: self.recipe.environment.clone(),
            options: self.recipe.environment_options.clone(),
            first_instance: self.recipe.evaluation.first_instance,
            instances: self.recipe.evaluation.instances,
            stop: self.recipe.sampling.stop.clone(),
        }
    }

    /// Says in `run.json` how this life of the run ended.
    pub(crate) fn conclude(&self, outcome: &Result<(), Fault>) {
        let (progress, fault) = match outcome {
            Ok(()) => (RunProgress::Finished, None),
            Err(fault) if fault.code == ErrorCode::Interrupted => (RunProgress::Stopped, None),
            Err(fault) => (RunProgress::Failed, Some(fault.to_string())),
        };
        let kept = self
            .directory
            .update(|info| info.set_progress(progress, fault));
        // The report shows what there is, also of a run that was stopped.
        if let Err(fault) = kept.and_then(|_| self.write_report()) {
            tracing::warn!(%fault, "the run's end is not written down");
        }
    }

    /// Writes `report.html` and its curve alone, `reward.svg`, from what the directory holds.
    pub(crate) fn write_report(&self) -> Result<PathBuf, Fault> {
        let evaluations = self.directory.info()?.evaluations;
        let curve = report::curve_svg(&self.directory.reports()?, &evaluations);
        let path = self.directory.path().join("reward.svg");
        std::fs::write(&path, curve).map_err(|error| {
            Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
        })?;
        report::write(&self.directory)
    }
}

fn resumed(args: &TrainArgs) -> Result<RunDir, Fault> {
    let refused = [
        ("--steps", args.steps.is_some()),
        ("--seed", args.seed.is_some()),
    ];
    if let Some((flag, _)) = refused.iter().find(|(_, given)| *given) {
        let message = format!("{flag} cannot change in the middle of a run");
        return Err(
            Fault::new(ErrorCode::InvalidRequest, message).with_hint(format!(
                "leave {flag} out, or begin a new run without --resume"
            )),
        );
    }
    match (&args.run_dir, &args.recipe) {
        (Some(directory), _) => RunDir::open(directory),
        (None, Some(recipe)) => RunDir::latest(Path::new(RUNS), Some(&Recipe::load(recipe)?.name)),
        (None, None) => RunDir::latest(Path::new(RUNS), None),
    }
}

fn begun(args: &TrainArgs) -> Result<RunDir, Fault> {
    let Some(path) = &args.recipe else {
        let fault = Fault::new(ErrorCode::InvalidRequest, "a new run needs a recipe");
        return Err(fault.with_hint("name a RECIPE.toml, or go on with --resume"));
    };
    let mut recipe = Recipe::load(path)?;
    if let Some(steps) = args.steps {
        recipe.train.steps = steps;
    }
    if let Some(workers) = args.workers {
        recipe.workers.count = workers;
    }
    if let Some(seed) = args.seed {
        recipe.train.seed = seed;
    }
    recipe.validate()?;
    check_inputs(&recipe)?;
    match &args.run_dir {
        Some(directory) => RunDir::create_at(directory, &recipe),
        None => RunDir::create(Path::new(RUNS), &recipe),
    }
}

/// What would otherwise be found out by a child process: better before anything is started.
fn check_inputs(recipe: &Recipe) -> Result<(), Fault> {
    let scenario = volley_env::Scenario {
        split: volley_env::Split::Train,
        instance: recipe.train.first_instance,
        config: recipe.environment_options.clone(),
        payload: Vec::new(),
    };
    volley_env::Guarded::create(&recipe.environment, &scenario).map_err(|error| {
        let code = ErrorCode::from_name(error.code()).unwrap_or(ErrorCode::EnvFailed);
        Fault::new(code, error.to_string())
    })?;
    // With the options of the workers, which then find the packed weights.
    let options = LoadOptions {
        compute: Compute::from_name(recipe.compute.name()).unwrap_or_default(),
        cache: cache_dir::packed_weights().map(PackedCache::new),
        training: false,
    };
    let model = Model::load_with(&recipe.model, &options);
    let model = model.map_err(|error| Fault::from(&error))?;
    volley_learner::load_reference(recipe, &model).map(drop)
}
