//! Values that samples are made of: every field differs from its neighbours, so that a swap of two
//! is seen in the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::dead::DeadLetter;
use volley_protocol::digest::Digest;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{AttemptId, Epoch, JobId, PeerId, RolloutId, RunId};
use volley_protocol::job::{
    EnvSpec, Extent, JobKind, JobSpec, JobState, PolicyRef, RetryPolicy, SamplingSpec, SinkRef,
    Split, Take,
};
use volley_protocol::run::{RunInfo, RunState, RunSummary, StepReport};
use volley_protocol::snapshot::{
    ClusterSnapshot, JobSummary, Notice, ScalingSummary, WorkerState, WorkerSummary,
};

pub(crate) const JOB: JobId = JobId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
pub(crate) const RUN: RunId = RunId(0xa1a2_a3a4_a5a6_a7a8_a9aa_abac_adae_afb0);
pub(crate) const PEER: PeerId = PeerId(0x1112_1314_1516_1718);

/// A digest that is easy to see in hexadecimal.
pub(crate) fn digest(first: u8) -> Digest {
    Digest(std::array::from_fn(|i| first.wrapping_add(i as u8)))
}

pub(crate) fn version() -> AdapterVersion {
    AdapterVersion {
        run: RUN,
        lineage: 1,
        step: 42,
        digest: digest(0xc0),
    }
}

pub(crate) fn entry() -> AdapterEntry {
    AdapterEntry {
        version: version(),
        parent: digest(0x40),
        bytes: 0x0123_4567,
    }
}

pub(crate) fn rollout() -> RolloutId {
    RolloutId { job: JOB, index: 5 }
}

pub(crate) fn attempt() -> AttemptId {
    AttemptId {
        rollout: rollout(),
        epoch: Epoch(3),
        number: 2,
    }
}

pub(crate) fn fault() -> Fault {
    Fault::new(ErrorCode::NotFound, "no such job").with_hint("list them")
}

pub(crate) fn addr_v4() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 7], 4433))
}

pub(crate) fn addr_v6() -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 4433))
}

pub(crate) fn job() -> JobSpec {
    JobSpec {
        job: JOB,
        name: "add".into(),
        kind: JobKind::Map,
        env: EnvSpec {
            name: "arithmetic".into(),
            split: Split::Eval,
            config: BTreeMap::from([("digits".into(), "2".into())]),
        },
        first_instance: 100,
        rollouts: 8,
        group_size: 4,
        policy: PolicyRef::Base,
        sampling: SamplingSpec {
            temperature: 0.5,
            top_k: 20,
            top_p: 0.25,
            min_p: 0.125,
            seed: 9,
            stop: vec!["</a>".into()],
        },
        retry: RetryPolicy {
            retries: 3,
            losses: 4,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            start_to_close_ms: 600_000,
            schedule_to_start_ms: 60_000,
            schedule_to_close_ms: 900_000,
            heartbeat_ms: 5_000,
            on: BTreeSet::from([ErrorCode::EnvPanic, ErrorCode::EnvFailed]),
            never: BTreeSet::from([ErrorCode::RewardInvalid]),
        },
        sink: SinkRef::Relay,
        keep_ms: 3_600_000,
        take: Some(Take {
            results: 6,
            bias_ok: true,
        }),
        priority: -3,
    }
}

pub(crate) fn extent() -> Extent {
    Extent {
        put: 0xf1,
        first_instance: 200,
        rollouts: 16,
    }
}

pub(crate) fn run_info() -> RunInfo {
    RunInfo {
        run: RUN,
        name: "demo".into(),
        environment: "arithmetic".into(),
        base: digest(0x80),
        steps_total: 60,
        rank: 16,
        retain_versions: 2,
    }
}

/// Each number is the field's place, so that a swap of two is seen.
pub(crate) fn step_report() -> StepReport {
    StepReport {
        step: 1,
        digest: digest(0xc0),
        rollouts: 3,
        groups: 4,
        groups_zero_variance: 5,
        groups_degraded: 6,
        reward_mean: 7.0,
        reward_std: 8.0,
        reward_min: 9.0,
        reward_max: 10.0,
        metrics: BTreeMap::from([("format_ok".into(), 11.0)]),
        loss: 12.0,
        grad_norm: 13.0,
        learning_rate: 14.0,
        entropy: 15.0,
        clip_fraction: 16.0,
        drift_kl: 17.0,
        mismatch_max: 18.0,
        mismatch_tokens: 19,
        staleness_mean: 20.0,
        staleness_max: 21,
        tokens_sampled: 22,
        tokens_trained: 23,
        truncated: 24.0,
        wait_ms: 25,
        forward_backward_ms: 26,
        publish_ms: 27,
        train_ms_total: 28,
    }
}

pub(crate) fn run_summary() -> RunSummary {
    RunSummary {
        info: run_info(),
        state: RunState::Training,
        connected: true,
        step: 42,
        last: None,
        reward_history: vec![0.25, 0.5],
    }
}

pub(crate) fn job_summary() -> JobSummary {
    JobSummary {
        job: JOB,
        name: "add".into(),
        environment: "arithmetic".into(),
        kind: JobKind::Map,
        state: JobState::Open,
        rollouts: 1,
        dispatchable: 2,
        queued: 3,
        leased: 4,
        accepted: 5,
        failed: 6,
        retries: 7,
        last_failure: Some((ErrorCode::EnvFailed, "no route".into())),
        cancelled: 8,
        take: 9,
        priority: -3,
    }
}

pub(crate) fn dead_letter() -> DeadLetter {
    DeadLetter {
        index: 7,
        instance: 101,
        fault: fault(),
        failures: 4,
        losses: 1,
        returns: 2,
        at_ms: 0x0193_0000_0000,
        retried_as: Some(JOB),
    }
}

pub(crate) fn worker_summary() -> WorkerSummary {
    WorkerSummary {
        worker: PEER,
        name: "worker-3".into(),
        pid: 4242,
        state: WorkerState::Up,
        slots: 16,
        leased: 12,
        adapter_step: 42,
        episodes_total: 1000,
        tokens_per_s: 2.5,
        heartbeat_age_ms: 800,
    }
}

pub(crate) fn scaling() -> ScalingSummary {
    ScalingSummary {
        present: 2,
        wanted: 3,
        min: 0,
        max: 8,
        reason: "queue".into(),
    }
}

pub(crate) fn snapshot() -> ClusterSnapshot {
    ClusterSnapshot {
        cluster: "demo".into(),
        version: "0.1.0".into(),
        epoch: Epoch(3),
        pid: 99,
        uptime_ms: 5000,
        jobs: vec![job_summary()],
        workers: vec![worker_summary()],
        runs: vec![run_summary()],
        learner_pids: vec![77],
        dispatchable: 2,
        leased: 12,
        rollouts_per_s: 1.5,
        tokens_per_s: 2.5,
        queue_history: vec![4, 3],
        scaling: scaling(),
        problems: vec!["a worker is silent".into()],
        notices: vec![notice()],
        dead_letters: 3,
    }
}

pub(crate) fn notice() -> Notice {
    Notice {
        at_ms: 4000,
        text: "worker-3 came".into(),
    }
}
