//! From a run directory to a learner that goes on where the run stopped: the base model, the
//! newest checkpoint, a replay of the steps after it, and the results that are not trained yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use volley_engine::adapter::{Adapter, LoraConfig, Target};
use volley_engine::config::Compute;
use volley_engine::train::{AdamParams, Estimator, Loss, MEMORY_UNLIMITED, Trainer};
use volley_learner_core::{Config, Restored as CoreState, Schedule};
use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{JobId, RolloutId, RunId};
use volley_protocol::job::{EnvSpec, JobKind, JobSpec, PolicyRef, SamplingSpec, SinkRef, Split};
use volley_protocol::run::RunInfo;
use volley_protocol::{Digest, RangeSet, Trajectory};
use volley_runtime::memory::available_bytes;
use volley_runtime::recipe::{self, Advantage, LoraTarget, LossName, Recipe};
use volley_runtime::run_dir::RunDir;

use crate::driver::arrival;
use crate::records::{Records, StepRecord};
use crate::reference::Reference;
use crate::sink::Limits;
use crate::step::{self, PlayedGroup, StepSettings};
use crate::trainer::TrainerThread;
use crate::versions::Versions;
use crate::{Caches, intake, load_model, threads};

/// Results of a training job are the learner's; the coordinator keeps only their ledger.
const KEEP_MS: u64 = 3_600_000;

/// Added to a group's standard deviation: nearly equal rewards must not become huge advantages.
const STD_EPS: f32 = 1e-4;

/// Everything that a learner starts with.
pub(crate) struct Restored {
    pub(crate) config: Config,
    pub(crate) state: CoreState,
    pub(crate) held: BTreeMap<RolloutId, Arc<Trajectory>>,
    pub(crate) trainer: TrainerThread,
    pub(crate) intake_dir: PathBuf,
    pub(crate) versions: Versions,
    pub(crate) limits: Limits,
}

/// Reads a run directory back.
pub(crate) fn restore(
    directory: &RunDir,
    caches: Caches,
    sink_addr: SocketAddr,
) -> Result<Restored, Fault> {
    let recipe = directory.recipe()?;
    let run = directory.run_id()?;
    let model = load_model(&recipe, caches.packed)?;
    let job = job(&recipe, run);
    let intake_dir = directory.intake();
    std::fs::create_dir_all(&intake_dir).map_err(|error| {
        Fault::new(
            ErrorCode::IoFailed,
            format!("{}: {error}", intake_dir.display()),
        )
    })?;

    let (records, steps) = Records::open(directory.path())?;
    let writes = intake::read_back(&intake_dir)?;
    let mut played: BTreeMap<u64, Arc<Trajectory>> = BTreeMap::new();
    for trajectory in writes.iter().flat_map(|write| &write.kept) {
        let index = trajectory.header.attempt.rollout.index;
        // The first accepted result is the one that counts.
        played
            .entry(index)
            .or_insert_with(|| Arc::clone(trajectory));
    }

    let initial = Adapter::init(model.config(), &lora(&recipe), recipe.train.seed)
        .map_err(|error| Fault::from(&error))?;
    let root = root_entry(run, &initial);
    let trainer = Trainer::new(
        Arc::clone(&model),
        initial,
        threads(recipe.learner.threads as usize),
    );
    let trainer = trainer.map_err(|error| Fault::from(&error))?;
    let trainer = with_memory(trainer, recipe.train.memory_mb, available_bytes());
    let mut thread = TrainerThread {
        trainer,
        settings: settings(&recipe),
        train: recipe.train.clone(),
        versions: Versions::open(
            &directory.adapters(),
            &known(&steps, &root, run)?,
            caches.adapters,
        )?,
        reference: Reference::open(&directory.reference(), &recipe, &model, &steps)?,
        transcripts: directory.transcripts(),
        base_model: recipe.model.display().to_string(),
        trained_ms_before: steps
            .last()
            .map_or(0, |record| record.report.train_ms_total),
        records,
    };
    catch_up(&mut thread, root, run, &steps, &played)?;

    let config = config(&recipe, run, job, Digest(model.digest()), sink_addr);
    let state = core_state(&config, run, root, &steps, &writes, &thread.versions)?;
    let pending: BTreeSet<RolloutId> = state.pending.iter().map(|a| a.attempt.rollout).collect();
    let held = played.into_values().map(|t| (t.header.attempt.rollout, t));
    let held = held
        .filter(|(rollout, _)| pending.contains(rollout))
        .collect();
    let versions = thread.versions.clone();
    Ok(Restored {
        config,
        state,
        held,
        trainer: thread,
        intake_dir,
        versions,
        limits: Limits {
            vocabulary: model.config().vocab_size,
            context: model.config().max_position_embeddings,
        },
    })
}

/// Brings the trainer to the newest recorded step: checkpoint, then replay.
fn catch_up(
    thread: &mut TrainerThread,
    root: AdapterEntry,
    run: RunId,
    steps: &[StepRecord],
    played: &BTreeMap<u64, Arc<Trajectory>>,
) -> Result<(), Fault> {
    let head = steps.last().map_or(0, |record| record.step);
    let mut at = 0;
    if let Some(checkpoint) = thread.records.newest_checkpoint(head)? {
        thread
            .trainer
            .restore_state(&checkpoint.state)
            .map_err(|error| Fault::from(&error))?;
        at = checkpoint.step;
    }
    if at == 0 && thread.versions.size(0).is_none() {
        let adapter = thread.trainer.published();
        thread
            .versions
            .add(0, &adapter, adapter.to_bytes(), &thread.base_model)?;
    }
    for (place, record) in steps
        .iter()
        .enumerate()
        .filter(|(_, record)| record.step > at)
    {
        tracing::info!(step = record.step, "replaying");
        let parent = match place.checked_sub(1) {
            Some(before) => steps[before].entry(run)?.version,
            None => root.version,
        };
        replay(thread, parent, record, played)?;
    }
    mend_head(thread, head, steps, run)?;
    if head < thread.train.steps {
        // Better now than after the rollouts of a step that cannot be made.
        thread.reference.pull(head)?;
    }
    Ok(())
}

/// Workers will ask for the newest version first: a damaged file of it is written again.
fn mend_head(
    thread: &TrainerThread,
    head: u64,
    steps: &[StepRecord],
    run: RunId,
) -> Result<(), Fault> {
    let adapter = thread.trainer.published();
    let bytes = adapter.to_bytes();
    let digest = Digest::of(&bytes);
    if let Some(record) = steps.last()
        && record.entry(run)?.version.digest != digest
    {
        return Err(damaged(record, "its checkpoint holds another adapter"));
    }
    if thread.versions.is_whole(head, digest) {
        return Ok(());
    }
    tracing::warn!(
        step = head,
        "the newest adapter is missing or damaged: written again"
    );
    thread
        .versions
        .add(head, &adapter, bytes, &thread.base_model)
}

/// Makes a recorded step again. It must come out as it did.
fn replay(
    thread: &mut TrainerThread,
    parent: AdapterVersion,
    record: &StepRecord,
    played: &BTreeMap<u64, Arc<Trajectory>>,
) -> Result<(), Fault> {
    let mut groups = Vec::with_capacity(record.groups.len());
    for group in &record.groups {
        let members = group.members.iter().map(|index| played.get(index).cloned());
        let members: Option<Vec<_>> = members.collect();
        let members = members
            .ok_or_else(|| damaged(record, "the intake no longer has all of its trajectories"))?;
        groups.push(PlayedGroup {
            degraded: group.degraded,
            members,
        });
    }
    thread.settings.adam.lr = thread.train.learning_rate_at(record.step);
    let pull = thread.reference.pull(parent.step)?;
    let stepped = step::make(&mut thread.trainer, &thread.settings, pull, parent, &groups)?;
    if stepped.digest.to_string() != record.digest {
        return Err(damaged(record, "its replay gives another adapter"));
    }
    thread.reference.made(record.step, &stepped.adapter)?;
    if thread.versions.size(record.step).is_none() {
        let base_model = thread.base_model.clone();
        thread
            .versions
            .add(record.step, &stepped.adapter, stepped.bytes, &base_model)?;
    }
    Ok(())
}

fn damaged(record: &StepRecord, why: &str) -> Fault {
    let message = format!("step {} cannot be restored: {why}", record.step);
    let hint = "the adapters published so far are whole; begin a new run from one of them, or \
                with the same recipe";
    Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint)
}

fn root_entry(run: RunId, initial: &Adapter) -> AdapterEntry {
    let bytes = initial.to_bytes();
    AdapterEntry {
        version: AdapterVersion {
            run,
            lineage: 0,
            step: 0,
            digest: Digest::of(&bytes),
        },
        parent: Digest::default(),
        bytes: bytes.len() as u64,
    }
}

fn known(
    steps: &[StepRecord],
    root: &AdapterEntry,
    run: RunId,
) -> Result<Vec<(u64, Digest)>, Fault> {
    let mut known = vec![(0, root.version.digest)];
    for record in steps {
        known.push((record.step, record.entry(run)?.version.digest));
    }
    Ok(known)
}

fn core_state(
    config: &Config,
    run: RunId,
    root: AdapterEntry,
    steps: &[StepRecord],
    writes: &[intake::Write],
    versions: &Versions,
) -> Result<CoreState, Fault> {
    let mut state = CoreState::default();
    let mut entries = vec![root];
    for record in steps {
        entries.push(record.entry(run)?);
        let groups = record.groups.iter().map(|group| group.group);
        groups
            .chain(record.dropped.iter().copied())
            .for_each(|group| {
                state.closed.insert(group);
            });
        record.failed.iter().for_each(|index| {
            state.failed.insert(*index);
        });
    }
    entries.retain(|entry| versions.size(entry.version.step).is_some());
    state.versions = entries;
    let mut seen = RangeSet::new();
    for write in writes {
        write.failed.iter().for_each(|index| {
            state.failed.insert(*index);
        });
        for trajectory in &write.kept {
            let rollout = trajectory.header.attempt.rollout;
            let open = !state.closed.contains(config.job.group_of(rollout.index).0);
            if open && rollout.job == config.job.job && seen.insert(rollout.index) {
                state.pending.push(arrival(trajectory));
            }
        }
    }
    state.intake_next = writes.last().map_or(1, |write| write.number + 1);
    state.intake_first = writes
        .first()
        .map_or(state.intake_next, |write| write.number);
    Ok(state)
}

fn config(recipe: &Recipe, run: RunId, job: JobSpec, base: Digest, sink: SocketAddr) -> Config {
    let train = &recipe.train;
    Config {
        run: RunInfo {
            run,
            name: recipe.name.clone(),
            environment: recipe.environment.clone(),
            base,
            steps_total: train.steps,
            rank: recipe.lora.rank,
            retain_versions: train.retain_versions,
        },
        job,
        first_step: 0,
        groups_per_step: u64::from(train.groups_per_step),
        schedule: match train.schedule {
            recipe::Schedule::Sync => Schedule::Sync,
            recipe::Schedule::Async => Schedule::Async {
                max_staleness: u64::from(train.max_staleness),
            },
        },
        // Two are the fewest that can be compared.
        min_group_size: 2.min(train.group_size),
        checkpoint_every: train.checkpoint_every,
        numerics: compute(recipe).numerics_class().to_owned(),
        sink_addr: sink,
    }
}

/// The run's job: its id follows from the run's, so that a restarted learner submits the same.
fn job(recipe: &Recipe, run: RunId) -> JobSpec {
    let train = &recipe.train;
    JobSpec {
        job: JobId(run.0),
        name: recipe.name.clone(),
        kind: JobKind::Train,
        env: EnvSpec {
            name: recipe.environment.clone(),
            split: Split::Train,
            config: recipe.environment_options.clone(),
        },
        first_instance: train.first_instance,
        rollouts: train.steps * train.rollouts_per_step(),
        group_size: train.group_size,
        policy: PolicyRef::Latest(run),
        sampling: SamplingSpec {
            temperature: recipe.sampling.temperature as f32,
            top_k: recipe.sampling.top_k,
            top_p: recipe.sampling.top_p as f32,
            min_p: recipe.sampling.min_p as f32,
            seed: train.seed,
            stop: recipe.sampling.stop.clone(),
        },
        // A recipe was checked when it was read.
        retry: recipe.retry.policy().unwrap_or_default(),
        sink: SinkRef::Learner(run),
        keep_ms: KEEP_MS,
        take: None,
        priority: 0,
    }
}

/// Bounds what a step uses: by what the recipe allows, or about half of what is available. The
/// other half is for workers on the same machine, which load the model too. That is a guess, on
/// which no run may fail.
fn with_memory(trainer: Trainer, memory_mb: Option<u64>, available_bytes: Option<u64>) -> Trainer {
    match (memory_mb, available_bytes) {
        (Some(memory_mb), _) => trainer.with_memory_budget(memory_mb.saturating_mul(1 << 20)),
        (None, Some(available)) => trainer.with_memory_estimate(available / 2),
        (None, None) => trainer.with_memory_budget(MEMORY_UNLIMITED),
    }
}

/// The number format that a recipe asks for.
pub(crate) const fn compute(recipe: &Recipe) -> Compute {
    match recipe.compute {
        recipe::ComputeFormat::F32 => Compute::F32,
        recipe::ComputeFormat::Bf16 => Compute::Bf16,
    }
}

pub(crate) fn lora(recipe: &Recipe) -> LoraConfig {
    let lora = &recipe.lora;
    let mut targets: Vec<Target> = lora.targets.iter().filter_map(projection).collect();
    targets.sort_unstable();
    LoraConfig {
        rank: lora.rank as usize,
        alpha: lora.alpha as f32,
        rslora: lora.rslora,
        targets,
        lm_head: lora.targets.contains(&LoraTarget::LmHead),
    }
}

/// The linear layer that a recipe's target stands for; none for the output matrix.
const fn projection(target: &LoraTarget) -> Option<Target> {
    Some(match target {
        LoraTarget::Q => Target::Q,
        LoraTarget::K => Target::K,
        LoraTarget::V => Target::V,
        LoraTarget::O => Target::O,
        LoraTarget::Gate => Target::Gate,
        LoraTarget::Up => Target::Up,
        LoraTarget::Down => Target::Down,
        LoraTarget::LmHead => return None,
    })
}

pub(crate) fn settings(recipe: &Recipe) -> StepSettings {
    let train = &recipe.train;
    let (low, high) = train.clip().unwrap_or((0.0, f64::INFINITY));
    let (clip_low_threshold, clip_high_threshold) = (low as f32, high as f32);
    StepSettings {
        loss: match train.loss {
            LossName::ImportanceSampling => Loss::ImportanceSampling,
            LossName::Ppo => Loss::Ppo {
                clip_low_threshold,
                clip_high_threshold,
            },
            LossName::Cispo => Loss::Cispo {
                clip_low_threshold,
                clip_high_threshold,
            },
            LossName::Gspo => Loss::Gspo {
                clip_low_threshold,
                clip_high_threshold,
            },
            LossName::Dro => Loss::Dro {
                beta: train.dro_beta() as f32,
            },
        },
        kl_penalty: train.kl_penalty as f32,
        estimator: match train.advantage {
            Advantage::Grpo => Estimator::Grpo { eps: STD_EPS },
            Advantage::DrGrpo => Estimator::DrGrpo,
            Advantage::LeaveOneOut => Estimator::LeaveOneOut,
        },
        adam: AdamParams {
            lr: train.learning_rate,
            beta1: train.beta1,
            beta2: train.beta2,
            eps: train.eps,
            weight_decay: train.weight_decay,
            grad_clip_norm: train.grad_clip,
        },
        numerics: compute(recipe).numerics_class().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::tests::{datum, recipe, trainer};

    #[test]
    fn the_recipe_decides_about_memory_then_the_machine() {
        let home = tempfile::tempdir().expect("directory");
        let recipe = recipe(home.path(), "base");
        let planned = |memory_mb, available_bytes| {
            let mut trainer = with_memory(trainer(&recipe), memory_mb, available_bytes);
            let output = trainer.forward_backward(&[datum()], &Loss::CrossEntropy);
            output.map(|_| {
                let plan = trainer.memory_plan().expect("a batch was computed");
                (plan.budget_bytes, plan.budget_raised)
            })
        };
        let made = |memory_mb, available| planned(memory_mb, available).expect("it fits");
        let plenty = 300 << 20;
        assert_eq!(made(Some(40), Some(10)), (40 << 20, false));
        assert_eq!(made(None, Some(plenty)), (plenty / 2, false));
        assert_eq!(made(None, None), (MEMORY_UNLIMITED, false));
        // What is left decides how, never whether; what somebody asked for is kept.
        let (budget_bytes, raised) = made(None, Some(10));
        assert!(raised && budget_bytes > 10);
        let refused = planned(Some(0), Some(plenty)).expect_err("0 bytes");
        assert_eq!(refused.code(), "MEMORY_BUDGET");
    }
}
