//! What commands print with `--json`. The names are a promise; each document names its schema.
//!
//! The wire types are for programs of the same version; these objects are for everybody, so that
//! ids are hexadecimal text and states are words.

use serde_json::{Value, json};
use volley_protocol::AdapterVersion;
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::dead::DeadLetter;
use volley_protocol::fault::Fault;
use volley_protocol::job::{JobKind, JobState};
use volley_protocol::run::{RunState, RunSummary, StepReport};
use volley_protocol::snapshot::{ClusterSnapshot, JobSummary, WorkerState, WorkerSummary};

/// An error.
pub(crate) fn fault(fault: &Fault) -> Value {
    json!({ "code": fault.code.name(), "message": fault.message, "hint": fault.hint })
}

/// A job.
pub(crate) fn job(job: &JobSummary) -> Value {
    let last_failure = job
        .last_failure
        .as_ref()
        .map(|(code, message)| json!({ "code": code.name(), "message": message }));
    json!({
        "job": job.job.to_string(),
        "name": job.name,
        "environment": job.environment,
        "kind": job_kind(job.kind),
        "state": job_state(job.state),
        "rollouts": job.rollouts,
        "dispatchable": job.dispatchable,
        "queued": job.queued,
        "leased": job.leased,
        "accepted": job.accepted,
        "failed": job.failed,
        "retries": job.retries,
        "last_failure": last_failure,
        "cancelled": job.cancelled,
        "take": job.take,
        "priority": job.priority,
    })
}

/// A rollout that was given up.
pub(crate) fn dead_letter(letter: &DeadLetter) -> Value {
    json!({
        "index": letter.index,
        "instance": letter.instance,
        "error": fault(&letter.fault),
        "failures": letter.failures,
        "losses": letter.losses,
        "returns": letter.returns,
        "at_ms": letter.at_ms,
        "retried_as": letter.retried_as.map(|job| job.to_string()),
    })
}

/// A worker.
pub(crate) fn worker(worker: &WorkerSummary) -> Value {
    json!({
        "worker": worker.worker.to_string(),
        "name": worker.name,
        "pid": worker.pid,
        "state": worker_state(worker.state),
        "slots": worker.slots,
        "leased": worker.leased,
        "adapter_step": worker.adapter_step,
        "episodes_total": worker.episodes_total,
        "tokens_per_s": worker.tokens_per_s,
        "heartbeat_age_ms": worker.heartbeat_age_ms,
    })
}

/// A run.
pub(crate) fn run(run: &RunSummary) -> Value {
    let error = match &run.state {
        RunState::Failed(error) => Some(fault(error)),
        RunState::Training | RunState::Finished | RunState::Stopped => None,
    };
    json!({
        "run": run.info.run.to_string(),
        "name": run.info.name,
        "environment": run.info.environment,
        "base": run.info.base.to_string(),
        "rank": run.info.rank,
        "state": run_state(&run.state),
        "error": error,
        "connected": run.connected,
        "step": run.step,
        "steps_total": run.info.steps_total,
        "last": run.last.as_ref().map(step),
        "reward_history": run.reward_history,
    })
}

/// One optimiser step.
pub(crate) fn step(report: &StepReport) -> Value {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    debug_assert!(
        value.is_object(),
        "numbers and maps always have a JSON form"
    );
    value["digest"] = report.digest.to_string().into();
    value
}

/// A version of an adapter.
pub(crate) fn version(version: &AdapterVersion) -> Value {
    json!({
        "run": version.run.to_string(),
        "lineage": version.lineage,
        "step": version.step,
        "digest": version.digest.to_string(),
    })
}

/// A version in the registry.
pub(crate) fn adapter(entry: &AdapterEntry) -> Value {
    let mut value = version(&entry.version);
    value["parent"] = entry.parent.to_string().into();
    value["bytes"] = entry.bytes.into();
    value
}

/// The cluster at one moment.
pub(crate) fn snapshot(snapshot: &ClusterSnapshot, health: &str) -> Value {
    let notices = snapshot
        .notices
        .iter()
        .map(|notice| json!({ "at_ms": notice.at_ms, "text": notice.text }));
    let scaling = &snapshot.scaling;
    json!({
        "schema": "volley.snapshot/1",
        "health": health,
        "cluster": snapshot.cluster,
        "version": snapshot.version,
        "epoch": snapshot.epoch.0,
        "pid": snapshot.pid,
        "uptime_ms": snapshot.uptime_ms,
        "jobs": snapshot.jobs.iter().map(job).collect::<Vec<_>>(),
        "workers": snapshot.workers.iter().map(worker).collect::<Vec<_>>(),
        "runs": snapshot.runs.iter().map(run).collect::<Vec<_>>(),
        "learner_pids": snapshot.learner_pids,
        "dispatchable": snapshot.dispatchable,
        "leased": snapshot.leased,
        "rollouts_per_s": snapshot.rollouts_per_s,
        "tokens_per_s": snapshot.tokens_per_s,
        "queue_history": snapshot.queue_history,
        "scaling": {
            "present": scaling.present,
            "wanted": scaling.wanted,
            "min": scaling.min,
            "max": scaling.max,
            "reason": scaling.reason,
        },
        "problems": snapshot.problems,
        "notices": notices.collect::<Vec<_>>(),
        "dead_letters": snapshot.dead_letters,
    })
}

/// The word for a kind.
pub(crate) const fn job_kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Map => "map",
        JobKind::Queue => "queue",
        JobKind::Train => "train",
        JobKind::Retry => "retry",
    }
}

/// The word for a state.
pub(crate) const fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Open => "open",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
    }
}

/// The word for a state.
pub(crate) const fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Starting => "starting",
        WorkerState::Up => "up",
        WorkerState::Draining => "draining",
        WorkerState::Lost => "lost",
    }
}

/// The word for a state.
pub(crate) const fn run_state(state: &RunState) -> &'static str {
    match state {
        RunState::Training => "training",
        RunState::Finished => "finished",
        RunState::Stopped => "stopped",
        RunState::Failed(_) => "failed",
    }
}
