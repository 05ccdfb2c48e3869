//! Clusters for tests.

use std::collections::BTreeMap;

use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::{JobKind, JobState};
use volley_protocol::run::{RunInfo, RunState, RunSummary, StepReport};
use volley_protocol::snapshot::{
    ClusterSnapshot, JobSummary, Notice, ScalingSummary, WorkerState, WorkerSummary,
};
use volley_protocol::{Digest, Epoch, JobId, PeerId, RunId};

/// A coordinator that has just started.
pub(super) fn empty() -> ClusterSnapshot {
    ClusterSnapshot {
        cluster: "local".into(),
        version: "0.1.0".into(),
        epoch: Epoch(1),
        pid: 4_100,
        uptime_ms: 2_400,
        jobs: Vec::new(),
        workers: Vec::new(),
        runs: Vec::new(),
        learner_pids: Vec::new(),
        dispatchable: 0,
        leased: 0,
        rollouts_per_s: 0.0,
        tokens_per_s: 0.0,
        queue_history: Vec::new(),
        scaling: ScalingSummary {
            max: 2,
            ..ScalingSummary::default()
        },
        problems: Vec::new(),
        notices: Vec::new(),
        dead_letters: 0,
    }
}

pub(super) fn worker(number: u32, step: u64) -> WorkerSummary {
    WorkerSummary {
        worker: PeerId(u64::from(number)),
        name: format!("w-{number}"),
        pid: 4_200 + number,
        state: WorkerState::Up,
        slots: 32,
        leased: 20 + number % 12,
        adapter_step: step,
        episodes_total: 10_000 + 17 * u64::from(number),
        tokens_per_s: 1_150.0 + number as f32,
        heartbeat_age_ms: 200 + 10 * u64::from(number),
    }
}

fn job(number: u128, state: JobState) -> JobSummary {
    JobSummary {
        job: JobId((0xa1b2_c3d4 << 96) + number),
        name: format!("map arithmetic {number}"),
        environment: "arithmetic".into(),
        kind: JobKind::Map,
        state,
        rollouts: 16_000,
        dispatchable: 9_000,
        queued: 9_000,
        leased: 64,
        accepted: 6_936,
        failed: 0,
        retries: 3,
        last_failure: None,
        cancelled: 0,
        take: 0,
        priority: 0,
    }
}

fn run() -> RunSummary {
    let last = StepReport {
        step: 412,
        groups: 64,
        groups_zero_variance: 9,
        reward_mean: 0.62,
        reward_std: 0.21,
        metrics: BTreeMap::from([("format_ok".into(), 0.99)]),
        loss: 0.084,
        grad_norm: 0.9,
        entropy: 0.71,
        drift_kl: 0.013,
        staleness_mean: 0.5,
        ..StepReport::default()
    };
    RunSummary {
        info: RunInfo {
            run: RunId(0xbeef << 112),
            name: "arith-7".into(),
            environment: "arithmetic".into(),
            base: Digest::of(b"base"),
            steps_total: 500,
            rank: 16,
            retain_versions: 4,
        },
        state: RunState::Training,
        connected: true,
        step: 412,
        last: Some(last),
        reward_history: (0..60).map(|step| 0.38 + step as f32 * 0.004).collect(),
    }
}

fn notices(texts: &[&str]) -> Vec<Notice> {
    let at = |number: usize| 11_400_000 + 30_000 * number as u64;
    let notice = |(number, text): (usize, &&str)| Notice {
        at_ms: at(number),
        text: (*text).into(),
    };
    texts.iter().enumerate().map(notice).collect()
}

/// A cluster at work.
pub(super) fn normal() -> ClusterSnapshot {
    ClusterSnapshot {
        cluster: "prod-a".into(),
        uptime_ms: 11_520_000,
        jobs: vec![job(1, JobState::Open), job(2, JobState::Done)],
        workers: (1..=4).map(|number| worker(number, 412)).collect(),
        runs: vec![run()],
        learner_pids: vec![4_150],
        dispatchable: 18_204,
        leased: 94,
        rollouts_per_s: 41.2,
        tokens_per_s: 18_400.0,
        queue_history: vec![30_000, 26_000, 24_000, 22_000, 20_000, 18_204],
        scaling: ScalingSummary {
            present: 4,
            wanted: 4,
            min: 0,
            max: 8,
            reason: "queue 35 s deep".into(),
        },
        notices: notices(&[
            "w-4 is up",
            "adapter v411 is live everywhere",
            "adapter v412 published",
        ]),
        ..empty()
    }
}

/// A cluster with trouble.
pub(super) fn degraded() -> ClusterSnapshot {
    let mut snapshot = normal();
    snapshot.workers.push(worker(10, 412));
    snapshot.workers[1].adapter_step = 409;
    snapshot.workers[2].state = WorkerState::Lost;
    snapshot.workers[2].heartbeat_age_ms = 8_400;
    snapshot.workers[3].state = WorkerState::Draining;
    let starting = &mut snapshot.workers[4];
    (starting.state, starting.pid, starting.leased) = (WorkerState::Starting, 0, 39);
    snapshot.jobs[0].failed = 12;
    let panicked = (ErrorCode::EnvPanic, "division by zero".to_owned());
    snapshot.jobs[0].last_failure = Some(panicked);
    snapshot.problems = vec![
        "queue grows by 120 rollouts/s and max_workers is reached: raise --workers".into(),
        "worker w-3 is lost".into(),
    ];
    snapshot.runs.push(RunSummary {
        info: RunInfo {
            name: "older".into(),
            run: RunId(1),
            ..run().info
        },
        state: RunState::Failed(Fault::new(
            ErrorCode::LossNonfinite,
            "loss is nan at step 3",
        )),
        connected: false,
        last: None,
        ..run()
    });
    snapshot
}

/// As many workers as a snapshot carries.
pub(super) fn thousand() -> ClusterSnapshot {
    let mut snapshot = normal();
    snapshot.workers = (1..=1_000).map(|number| worker(number, 412)).collect();
    snapshot.scaling.wanted = 1_000;
    snapshot.scaling.max = 1_000;
    snapshot
}

/// Names that try to leave their place.
pub(super) fn hostile() -> ClusterSnapshot {
    let mut snapshot = degraded();
    snapshot.cluster = "\x1b]0;owned\x07\x1b[2J".into();
    snapshot.version = "9".repeat(200);
    snapshot.workers[0].name = "漢字の労働者はとても長い名前です".into();
    snapshot.workers[1].name = "\u{202e}drow\r\nw-0 up".into();
    snapshot.workers[2].name = "🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀".into();
    snapshot.workers[3].name = "w\x1b[31;1m\t\t".repeat(30);
    snapshot.runs[0].info.name = "e\u{301}\u{200f}\n\n".repeat(20);
    snapshot.runs[0].reward_history = vec![f32::NAN, f32::INFINITY, -1.0, 0.5];
    snapshot.problems = vec!["a\x1b[1;1Hb\nc".repeat(40)];
    snapshot.scaling.reason = "\x1b[?1049l".repeat(40);
    snapshot.notices = notices(&["first\n\x1b[5m second", "\u{9b}31m"]);
    snapshot
}
