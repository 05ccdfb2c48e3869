//! The roster: starting, draining, dying.

mod common;

use common::{Bench, map};
use volley_coordinator_core::{CoordinatorConfig, Effect, Input, ScalingConfig};
use volley_protocol::JobId;
use volley_protocol::worker::{FromWorker, ToWorker};

fn bench(scaling: ScalingConfig) -> Bench {
    Bench::with(CoordinatorConfig {
        scaling,
        ..CoordinatorConfig::default()
    })
}

fn started(effects: &[Effect]) -> Vec<u64> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::StartWorker { provision } => Some(*provision),
        _ => None,
    });
    starts.collect()
}

fn drained(effects: &[Effect]) -> usize {
    let drains = effects.iter().filter(|effect| {
        matches!(
            effect,
            Effect::ToWorker {
                message: ToWorker::Drain { .. },
                ..
            }
        )
    });
    drains.count()
}

#[test]
fn a_submit_wakes_an_empty_cluster_at_once() {
    let mut bench = bench(ScalingConfig::default());
    assert!(started(&bench.pass(60_000)).is_empty());
    bench.submit(map(1, 1));
    assert_eq!(started(&bench.out).len(), 1, "in the same breath");
}

#[test]
fn the_roster_grows_with_the_queue_and_shrinks_when_it_is_idle() {
    let mut bench = bench(ScalingConfig {
        max_workers: 3,
        ..ScalingConfig::default()
    });
    bench.submit(map(1, 1_000));
    let mut provisions = started(&bench.out);
    provisions.extend(started(&bench.pass(1_000)));
    assert_eq!(provisions.len(), 3, "never above the maximum");
    for (worker, provision) in (7..).zip(&provisions) {
        bench.worker(worker, 4, Vec::new(), *provision);
        bench.ready(worker, 2_000);
    }
    assert_eq!(bench.counts(JobId(1)).1, 1_000);
    assert_eq!(drained(&bench.pass(500)), 0);
    bench.settle(JobId(1), &(0..1_000).collect::<Vec<_>>());
    assert_eq!(
        drained(&bench.pass(29_000)),
        0,
        "the idle window is not over"
    );
    assert_eq!(drained(&bench.pass(2_000)), 3);
    let kills = |effects: &[Effect]| {
        effects
            .iter()
            .filter(|e| matches!(e, Effect::KillWorker { .. }))
            .count()
    };
    bench.worker_says(7, FromWorker::Drained);
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: false,
    });
    assert_eq!(bench.snapshot().workers.len(), 2);
    assert_eq!(
        kills(&bench.pass(10_500)),
        2,
        "those that do not leave are ended"
    );
    assert!(bench.snapshot().workers.is_empty());
}

#[test]
fn a_worker_with_leases_is_never_drained() {
    let mut bench = bench(ScalingConfig::default());
    bench.submit(map(1, 1));
    let provision = started(&bench.out)[0];
    bench.worker(7, 4, Vec::new(), provision);
    let attempt = bench.ready(7, 4)[0].attempt;
    for _ in 0..120 {
        assert_eq!(drained(&bench.pass(1_000)), 0);
        bench.heartbeat(7, vec![attempt]);
    }
}

#[test]
fn deaths_are_answered_at_once_and_crash_loops_slowly() {
    let mut bench = bench(ScalingConfig {
        min_workers: 1,
        max_workers: 1,
        ..ScalingConfig::default()
    });
    let mut provision = 0x1_0000_0001;
    let mut gaps = Vec::new();
    for _ in 0..8 {
        let died = bench.now;
        bench.say(Input::WorkerExited { provision, pid: 9 });
        loop {
            let out = bench.pass(100);
            if let Some(next) = started(&out).first() {
                provision = *next;
                break;
            }
            assert!(bench.now < died + 60_000);
        }
        gaps.push(bench.now - died);
    }
    assert!(gaps[..3].iter().all(|gap| *gap <= 100), "{gaps:?}");
    assert!(gaps[7] >= 5_000, "{gaps:?}");
}

#[test]
fn a_start_that_takes_too_long_is_given_up() {
    let mut bench = bench(ScalingConfig::default());
    bench.submit(map(1, 1));
    let provision = started(&bench.out)[0];
    let out = bench.pass(31_000);
    assert!(out.contains(&Effect::KillWorker { pid: 0, provision }));
    assert_eq!(started(&out).len(), 1, "and tried again");
    bench.worker(7, 4, Vec::new(), provision);
    let refused = bench
        .out
        .iter()
        .any(|e| matches!(e, Effect::CloseSession { .. }));
    assert!(refused, "it would be one too many");
}

#[test]
fn silence_and_growth_are_said_in_sentences() {
    let mut bench = bench(ScalingConfig {
        max_workers: 1,
        ..ScalingConfig::default()
    });
    bench.worker(7, 1, Vec::new(), 0);
    bench.submit(map(1, 1_000));
    bench.pass(4_000);
    bench.submit(map(2, 10_000));
    bench.pass(5_000);
    let problems = bench.snapshot().problems;
    for sentence in [
        "worker-7 has been silent for 9 s",
        "queue grows, max_workers (1) reached",
    ] {
        assert!(
            problems.iter().any(|problem| problem == sentence),
            "{problems:?}"
        );
    }
}
