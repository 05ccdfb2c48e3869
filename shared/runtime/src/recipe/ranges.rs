//! What the values of a recipe may be.

use std::fmt::Display;
use std::ops::RangeInclusive;

use volley_protocol::limits::{
    GROUP_SIZE_MAX, JOB_ROLLOUTS_MAX, NAME_BYTES_MAX, REGISTER_VERSIONS_MAX, STOP_STRING_BYTES_MAX,
    STOP_STRINGS_MAX,
};

use super::retry::retry_codes;
use super::{KlReference, LossName, Recipe, Schedule, Train};

/// Rollouts that may be open at once: their ranges must fit one `Reconcile` of the learner.
const WINDOW_ROLLOUTS_MAX: u64 = 1 << 15;

/// Versions that a run may keep: with some that are pinned or not deleted yet, a learner that
/// comes back can still name all of them (`REGISTER_VERSIONS_MAX`).
const RETAIN_VERSIONS_MAX: u32 = 4_000;
const _: () = assert!((RETAIN_VERSIONS_MAX as usize) < REGISTER_VERSIONS_MAX);

/// Steps of a run; bounds arithmetic, not ambition.
const STEPS_MAX: u64 = 1_000_000;

/// A pebibyte: so much that bytes still fit 64 bits.
const MEMORY_MB_MAX: u64 = 1 << 30;

/// A key and what is wrong with its value.
type Violation = (&'static str, String);

/// The first value that is not allowed, in the order of the file.
pub(super) fn first_violation(recipe: &Recipe) -> Option<Violation> {
    let checks = [
        names, batches, loss, optimiser, resources, adapter, sampling, retry, processes, evaluation,
    ];
    checks.iter().find_map(|check| check(recipe).err())
}

fn within<T>(key: &'static str, value: T, range: RangeInclusive<T>) -> Result<(), Violation>
where
    T: PartialOrd + Display,
{
    if range.contains(&value) {
        return Ok(());
    }
    Err((
        key,
        format!(
            "is {value}; allowed is {} to {}",
            range.start(),
            range.end()
        ),
    ))
}

/// For numbers that may come near `low`, but not be it.
fn above(key: &'static str, value: f64, low: f64, high: f64) -> Result<(), Violation> {
    if value > low && value <= high {
        return Ok(());
    }
    Err((
        key,
        format!("is {value}; allowed is more than {low}, at most {high}"),
    ))
}

fn below(key: &'static str, value: f64, low: f64, high: f64) -> Result<(), Violation> {
    if value >= low && value < high {
        return Ok(());
    }
    Err((
        key,
        format!("is {value}; allowed is {low} to less than {high}"),
    ))
}

fn names(recipe: &Recipe) -> Result<(), Violation> {
    for (key, name) in [("name", &recipe.name), ("environment", &recipe.environment)] {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let good = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.chars().all(allowed)
            && !name.starts_with(['.', '-']);
        if !good {
            let what = format!(
                "is {name:?}; allowed are 1 to {NAME_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`, \
                 beginning with a letter, digit or `_`"
            );
            return Err((key, what));
        }
    }
    if recipe.model.as_os_str().is_empty() {
        return Err(("model", "is empty; due is the folder of a model".into()));
    }
    Ok(())
}

fn batches(recipe: &Recipe) -> Result<(), Violation> {
    let train = &recipe.train;
    within("train.steps", train.steps, 1..=STEPS_MAX)?;
    within("train.groups_per_step", train.groups_per_step, 1..=4096)?;
    // One rollout has nothing to be compared with: its advantage is always 0.
    within("train.group_size", train.group_size, 2..=GROUP_SIZE_MAX)?;
    within("train.max_staleness", train.max_staleness, 0..=100)?;
    let open = train.rollouts_per_step() * (u64::from(train.staleness_max()) + 1);
    if open > WINDOW_ROLLOUTS_MAX {
        let staleness = match train.schedule {
            Schedule::Sync => "",
            Schedule::Async => " × (max_staleness + 1)",
        };
        let what = format!(
            "makes {open} rollouts open at once (groups_per_step × group_size{staleness}); \
             allowed are {WINDOW_ROLLOUTS_MAX}"
        );
        return Err(("train.groups_per_step", what));
    }
    if train.steps.saturating_mul(train.rollouts_per_step()) > JOB_ROLLOUTS_MAX {
        let what = format!("makes more than {JOB_ROLLOUTS_MAX} rollouts in all");
        return Err(("train.steps", what));
    }
    within(
        "train.first_instance",
        train.first_instance,
        0..=u64::MAX / 2,
    )?;
    within(
        "train.checkpoint_every",
        train.checkpoint_every,
        1..=STEPS_MAX,
    )?;
    within(
        "train.retain_versions",
        train.retain_versions,
        1..=RETAIN_VERSIONS_MAX,
    )
}

fn loss(recipe: &Recipe) -> Result<(), Violation> {
    let train = &recipe.train;
    let meaningless = |key, value: Option<f64>, fits: bool| match value {
        Some(_) if !fits => Err((
            key,
            format!("has no meaning with loss = \"{}\"", train.loss),
        )),
        _ => Ok(()),
    };
    meaningless("train.clip_low", train.clip_low, train.clip().is_some())?;
    meaningless("train.clip_high", train.clip_high, train.clip().is_some())?;
    meaningless(
        "train.dro_beta",
        train.dro_beta,
        train.loss == LossName::Dro,
    )?;
    if let Some((low, high)) = train.clip() {
        within("train.clip_low", low, 0.0..=1.0)?;
        within("train.clip_high", high, 1.0..=1e6)?;
    }
    within("train.dro_beta", train.dro_beta(), 0.0..=1e3)?;
    within("train.kl_penalty", train.kl_penalty, 0.0..=1e3)?;
    reference(train)
}

fn reference(train: &Train) -> Result<(), Violation> {
    const KEY: &str = "train.kl_reference";
    let last = train.steps.saturating_sub(1);
    match &train.kl_reference {
        KlReference::Base => return Ok(()),
        _ if train.kl_penalty == 0.0 => {
            return Err((KEY, "has no meaning with kl_penalty = 0".to_owned()));
        }
        KlReference::Step(step) if (1..=last).contains(step) => return Ok(()),
        KlReference::Adapter(folder)
            if !folder.as_os_str().is_empty() && !train.kl_reference.is_misspelt() =>
        {
            return Ok(());
        }
        KlReference::Step(_) | KlReference::Adapter(_) => {}
    }
    let what = format!(
        "is \"{}\"; allowed are \"base\", \"step:1\" to \"step:{last}\", and a folder with an adapter",
        train.kl_reference
    );
    Err((KEY, what))
}

fn optimiser(recipe: &Recipe) -> Result<(), Violation> {
    let train = &recipe.train;
    above("train.learning_rate", train.learning_rate, 0.0, 1.0)?;
    within("train.grad_clip", train.grad_clip, 0.0..=1e6)?;
    below("train.beta1", train.beta1, 0.0, 1.0)?;
    below("train.beta2", train.beta2, 0.0, 1.0)?;
    above("train.eps", train.eps, 0.0, 1.0)?;
    within("train.weight_decay", train.weight_decay, 0.0..=10.0)
}

/// How a step is computed; what it computes does not depend on it.
fn resources(recipe: &Recipe) -> Result<(), Violation> {
    match recipe.train.memory_mb {
        Some(memory_mb) => within("train.memory_mb", memory_mb, 1..=MEMORY_MB_MAX),
        None => Ok(()),
    }
}

fn adapter(recipe: &Recipe) -> Result<(), Violation> {
    within("lora.rank", recipe.lora.rank, 1..=512)?;
    above("lora.alpha", recipe.lora.alpha, 0.0, 1e5)?;
    let mut targets = recipe.lora.targets.clone();
    targets.sort_unstable();
    if targets.is_empty() {
        return Err((
            "lora.targets",
            "is empty; due is at least one matrix".into(),
        ));
    }
    if let Some(pair) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(("lora.targets", format!("names `{}` twice", pair[0])));
    }
    Ok(())
}

fn sampling(recipe: &Recipe) -> Result<(), Violation> {
    let sampling = &recipe.sampling;
    // At 0 the members of a group say the same: nothing could be learnt.
    above("sampling.temperature", sampling.temperature, 0.0, 100.0)?;
    above("sampling.top_p", sampling.top_p, 0.0, 1.0)?;
    within("sampling.min_p", sampling.min_p, 0.0..=1.0)?;
    let strings = sampling.stop.len();
    if strings > STOP_STRINGS_MAX {
        let what = format!("has {strings} strings; allowed are at most {STOP_STRINGS_MAX}");
        return Err(("sampling.stop", what));
    }
    let fits = |string: &&String| !(1..=STOP_STRING_BYTES_MAX).contains(&string.len());
    match sampling.stop.iter().find(fits) {
        None => Ok(()),
        Some(string) => {
            let bytes = string.len();
            let due = format!("allowed are 1 to {STOP_STRING_BYTES_MAX}");
            Err((
                "sampling.stop",
                format!("has a string of {bytes} bytes; {due}"),
            ))
        }
    }
}

fn retry(recipe: &Recipe) -> Result<(), Violation> {
    let told = &recipe.retry;
    retry_codes(&told.on).map_err(|what| ("retry.on", what))?;
    retry_codes(&told.never).map_err(|what| ("retry.never", what))?;
    let refused =
        |fault: volley_protocol::Fault| ("retry", format!("is refused: {}", fault.message));
    told.policy().map(|_| ()).map_err(refused)
}

fn processes(recipe: &Recipe) -> Result<(), Violation> {
    within("workers.count", recipe.workers.count, 1..=1024)?;
    within("workers.slots", recipe.workers.slots, 1..=4096)?;
    within("workers.threads", recipe.workers.threads, 1..=256)?;
    within("learner.threads", recipe.learner.threads, 1..=256)
}

fn evaluation(recipe: &Recipe) -> Result<(), Violation> {
    let (train, held_out) = (&recipe.train, &recipe.evaluation);
    within("evaluation.instances", held_out.instances, 0..=1_000_000)?;
    within(
        "evaluation.first_instance",
        held_out.first_instance,
        0..=u64::MAX / 2,
    )?;
    let trained = train.steps * u64::from(train.groups_per_step);
    let trained = train.first_instance..train.first_instance.saturating_add(trained);
    let held_out = held_out.first_instance..held_out.first_instance + held_out.instances;
    if held_out.start < trained.end && trained.start < held_out.end {
        let what = format!(
            "makes the held-out instances {} to {} overlap with those of training, {} to {}",
            held_out.start,
            held_out.end - 1,
            trained.start,
            trained.end - 1
        );
        return Err(("evaluation.first_instance", what));
    }
    Ok(())
}
