//! The client verbs against a coordinator that is scripted, killed and started again.

#[path = "../../rust/tests/support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::{FakeCluster, page};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::{JobKind, JobState, SinkRef};
use volley_protocol::snapshot::{ClusterSnapshot, JobSummary, ScalingSummary};
use volley_protocol::{ErrorCode, Fault, JobId};

struct Ended {
    status: i32,
    out: String,
    err: String,
}

/// A command of somebody who has the address and a certificate.
fn volley(cluster: &FakeCluster, home: &tempfile::TempDir, args: &[&str]) -> Command {
    let identity = home.path().join("client.identity");
    cluster
        .address()
        .identity
        .save(&identity)
        .expect("a writable directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_volley"));
    command
        .args(args)
        .args(["--addr", &cluster.addr.to_string()])
        .arg("--identity")
        .arg(identity)
        .env("HOME", home.path())
        .env_remove("VOLLEY_ADDR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(cluster: &FakeCluster, args: &[&str]) -> Ended {
    let home = tempfile::tempdir().expect("a temporary directory");
    let output = volley(cluster, &home, args)
        .output()
        .await
        .expect("the binary starts");
    Ended {
        status: output.status.code().expect("no signal ended it"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Accepts jobs; three pages of two results each, out of order.
fn pages(body: &RequestBody) -> Option<ReplyBody> {
    match body {
        RequestBody::Submit(spec) => Some(ReplyBody::Accepted {
            job: spec.job,
            existed: false,
        }),
        RequestBody::Put { job, .. } => Some(ReplyBody::Accepted {
            job: *job,
            existed: false,
        }),
        RequestBody::Results { cursor, .. } | RequestBody::ResultsNear { cursor, .. } => {
            let first = cursor * 2;
            Some(page(&[first + 1, first], cursor + 1, *cursor == 2))
        }
        RequestBody::Snapshot => Some(ReplyBody::Snapshot(Box::new(snapshot()))),
        RequestBody::JobList => Some(ReplyBody::Jobs(vec![job()])),
        RequestBody::JobShow(_) => Some(ReplyBody::Jobs(vec![job()])),
        RequestBody::RunList => Some(ReplyBody::Runs(Vec::new())),
        _ => Some(ReplyBody::Done),
    }
}

fn job() -> JobSummary {
    JobSummary {
        job: JobId(0xabcd << 112),
        name: "nightly".into(),
        environment: "guess".into(),
        kind: JobKind::Map,
        state: JobState::Open,
        rollouts: 6,
        dispatchable: 0,
        queued: 0,
        leased: 0,
        accepted: 0,
        failed: 6,
        retries: 0,
        last_failure: None,
        cancelled: 0,
        take: 0,
        priority: 0,
    }
}

fn snapshot() -> ClusterSnapshot {
    ClusterSnapshot {
        cluster: "test".into(),
        version: "0.1.0".into(),
        epoch: volley_protocol::Epoch(1),
        pid: 77,
        uptime_ms: 1_000,
        jobs: vec![job()],
        workers: Vec::new(),
        runs: Vec::new(),
        learner_pids: vec![78],
        dispatchable: 0,
        leased: 0,
        rollouts_per_s: 0.0,
        tokens_per_s: 0.0,
        queue_history: Vec::new(),
        scaling: ScalingSummary::default(),
        problems: Vec::new(),
        notices: Vec::new(),
        dead_letters: 0,
    }
}

fn indices(lines: &str) -> Vec<u64> {
    let object = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON");
    lines
        .lines()
        .map(|line| object(line)["index"].as_u64().expect("an index"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn map_prints_each_index_once_although_the_coordinator_is_restarted() {
    let mut cluster = FakeCluster::new();
    cluster.start(|body| match body {
        RequestBody::Results { cursor: 1.., .. } | RequestBody::ResultsNear { cursor: 1.., .. } => {
            None
        }
        other => pages(other),
    });
    let home = tempfile::tempdir().expect("a temporary directory");
    let args = ["map", "guess", "--seeds", "0..6", "--json"];
    let mut child = volley(&cluster, &home, &args)
        .spawn()
        .expect("the binary starts");
    let mut stdout = child.stdout.take().expect("piped");
    let mut first = [0u8; 1];
    stdout
        .read_exact(&mut first)
        .await
        .expect("results come before the end");
    cluster.stop().await;
    cluster.start(pages);
    let mut rest = String::new();
    let reading = stdout.read_to_string(&mut rest);
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("in time")
        .expect("UTF-8");
    let lines = format!("{}{rest}", char::from(first[0]));
    assert_eq!(indices(&lines), [1, 0, 3, 2, 5, 4]);
    let failed: Value = serde_json::from_str(lines.lines().next().expect("six")).expect("JSON");
    assert_eq!(failed["error"]["code"], "ENV_FAILED");
    assert_eq!(
        child.wait().await.expect("it ended").code(),
        Some(1),
        "all of them failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn map_submits_what_was_asked_and_orders_on_demand() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    let args = [
        "map",
        "faulty",
        "--seeds",
        "100..103",
        "--group",
        "2",
        "--ordered",
        "--json",
        "--retries",
        "0",
        "--option",
        "mode=nan",
        "--temperature",
        "0.5",
        "--split",
        "train",
    ];
    let ended = run(&cluster, &args).await;
    assert_eq!(ended.status, 1, "{}", ended.err);
    assert_eq!(indices(&ended.out), [0, 1, 2, 3, 4, 5]);
    assert!(
        ended.err.contains("6 rollouts, 6 failed, mean reward -"),
        "{}",
        ended.err
    );
    assert!(
        ended.err.contains("6 x ENV_FAILED: rollout 0"),
        "{}",
        ended.err
    );
    let asked = cluster.asked.lock().expect("no panic");
    let RequestBody::Submit(spec) = &asked[0] else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (spec.first_instance, spec.rollouts, spec.group_size),
        (100, 6, 2)
    );
    assert_eq!((spec.retry.retries, spec.sampling.temperature), (0, 0.5));
    assert_eq!((spec.kind, spec.sink), (JobKind::Map, SinkRef::Relay));
    assert_eq!(spec.env.config["mode"], "nan");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_billion_seeds_are_one_request() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    let args = [
        "put",
        "guess",
        "--seeds",
        "0..1000000000",
        "--queue",
        "big",
        "--json",
    ];
    let ended = run(&cluster, &args).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    let object: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(object["rollouts"], 1_000_000_000u64);
    let again = run(
        &cluster,
        &["put", "guess", "--seeds", "0..4", "--queue", "big"],
    )
    .await;
    assert_eq!(object["job"], again.out.trim_end(), "the same queue");
    let asked = cluster.asked.lock().expect("no panic");
    let puts: Vec<_> = asked
        .iter()
        .filter(|body| matches!(body, RequestBody::Put { .. }))
        .collect();
    assert_eq!(puts.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_speak_json() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    for (args, schema) in [
        (&["job", "list", "--json"][..], "volley.jobs/1"),
        (&["job", "show", "nightly", "--json"], "volley.job/1"),
        (&["run", "list", "--json"], "volley.runs/1"),
        (&["monitor", "--json"], "volley.snapshot/1"),
    ] {
        let ended = run(&cluster, args).await;
        assert_eq!(ended.status, 0, "{args:?}: {}", ended.err);
        let object: Value = serde_json::from_str(&ended.out).expect("JSON");
        assert_eq!(object["schema"], schema);
    }
    let ended = run(&cluster, &["job", "results", "abcd", "--json"]).await;
    assert_eq!(
        (ended.status, indices(&ended.out).len()),
        (1, 6),
        "{}",
        ended.err
    );
    let ended = run(&cluster, &["job", "show", "weekly"]).await;
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .err
            .contains("error[NOT_FOUND]: there is no job `weekly`"),
        "{}",
        ended.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_a_detached_map_leaves_its_id() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    let args = [
        "map",
        "guess",
        "--seeds",
        "0..6",
        "--detach",
        "--take",
        "2",
        "--retry-on",
        "ENV_FAILED,timeout",
        "--retry-never",
        "reward_invalid",
        "--losses",
        "1",
        "--schedule-to-start",
        "30s",
        "--start-to-close",
        "1m",
        "--schedule-to-close",
        "5m",
        "--heartbeat",
        "4s",
    ];
    let ended = run(&cluster, &args).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    let job: JobId = ended.out.trim_end().parse().expect("an id");
    {
        let asked = cluster.asked.lock().expect("no panic");
        let [RequestBody::Submit(spec)] = &asked[..] else {
            panic!("one request: {asked:?}")
        };
        assert_eq!(spec.job, job);
        assert_eq!(spec.take.map(|take| take.results), Some(2));
        let retry = &spec.retry;
        assert_eq!((retry.retries, retry.losses), (3, 1));
        let on = [ErrorCode::EnvFailed, ErrorCode::AttemptTimeout];
        assert_eq!(retry.on, on.into());
        assert_eq!(retry.never, [ErrorCode::RewardInvalid].into());
        let times = (retry.schedule_to_start_ms, retry.start_to_close_ms);
        assert_eq!(times, (30_000, 60_000));
        assert_eq!(
            (retry.schedule_to_close_ms, retry.heartbeat_ms),
            (300_000, 4_000)
        );
    }
    let slip = ["put", "guess", "--seeds", "0..6", "--retry-on", "ENV_PANIK"];
    let ended = run(&cluster, &slip).await;
    assert_eq!(ended.status, 2, "{}", ended.err);
    assert!(ended.err.contains("did you mean `ENV_PANIC`?"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_waited_for_and_their_dead_letters_tried_anew() {
    let mut cluster = FakeCluster::new();
    cluster.start(|body| match body {
        RequestBody::DeadLetters(_) => Some(ReplyBody::DeadLetters(vec![DeadLetter {
            index: 3,
            instance: 103,
            fault: Fault::new(ErrorCode::PoisonRollout, "4 workers"),
            failures: 0,
            losses: 4,
            returns: 0,
            at_ms: 5,
            retried_as: None,
        }])),
        RequestBody::JobRetry { retry, .. } => Some(ReplyBody::Accepted {
            job: *retry,
            existed: false,
        }),
        RequestBody::JobShow(id) => Some(ReplyBody::Jobs(vec![JobSummary { job: *id, ..job() }])),
        other => pages(other),
    });
    let ended = run(&cluster, &["job", "wait", "nightly", "--timeout", "100ms"]).await;
    assert_eq!(ended.status, 75, "{}", ended.err);
    assert!(ended.err.contains("error[WAIT_TIMEOUT]"), "{}", ended.err);
    let ended = run(&cluster, &["job", "dead", "nightly", "--json"]).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    let object: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(
        (&object["schema"], &object["failed"]),
        (&"volley.dead/1".into(), &6.into())
    );
    let letter = &object["dead_letters"][0];
    assert_eq!(
        (&letter["index"], &letter["losses"]),
        (&3.into(), &4.into())
    );
    assert_eq!(letter["error"]["code"], "POISON_ROLLOUT");
    let ended = run(&cluster, &["job", "dead", "nightly"]).await;
    assert!(
        ended.out.contains("POISON_ROLLOUT: 4 workers"),
        "{}",
        ended.out
    );
    assert!(ended.err.contains("5 more were given up"), "{}", ended.err);
    let ended = run(&cluster, &["job", "retry", "nightly"]).await;
    assert_eq!(ended.status, 2, "which ones? {}", ended.err);
    let ended = run(&cluster, &["job", "retry", "nightly", "--index", "3"]).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    let retry: JobId = ended.out.trim_end().parse().expect("an id");
    let asked = cluster.asked.lock().expect("no panic");
    assert!(asked.contains(&RequestBody::JobRetry {
        job: job().job,
        retry,
        indices: vec![3],
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_monitor_shows_every_process() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    let ended = run(&cluster, &["monitor", "--once"]).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    let rows: Vec<Vec<&str>> = ended
        .out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(
        rows.iter()
            .any(|row| row.starts_with(&["coordinator", "test", "77", "up"]))
    );
    assert!(
        rows.iter()
            .any(|row| row.starts_with(&["learner", "-", "78", "up"]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupting_a_map_tells_how_to_come_back() {
    let mut cluster = FakeCluster::new();
    cluster.start(|body| match body {
        RequestBody::Results { .. } | RequestBody::ResultsNear { .. } => None,
        other => pages(other),
    });
    let home = tempfile::tempdir().expect("a temporary directory");
    let args = ["map", "guess", "--seeds", "0..6"];
    let child = volley(&cluster, &home, &args)
        .spawn()
        .expect("the binary starts");
    let asked = cluster.asked.clone();
    let asks = async {
        while asked.lock().expect("no panic").len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asks)
        .await
        .expect("it asks for results");
    let pid = child.id().expect("it runs").to_string();
    let killed = Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await
        .expect("kill");
    assert!(killed.success());
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        err.contains("error[INTERRUPTED]") && err.contains("--follow"),
        "{err}"
    );
}
