//! Jobs of clients over a crash: what is durable comes back, what was not is gone.

mod common;

use common::{Bench, leases_in, map, revoked_in};
use volley_coordinator_core::{Effect, Input, Record};
use volley_protocol::client::RequestBody;
use volley_protocol::job::{Extent, Take};
use volley_protocol::{ErrorCode, JobId, JobKind, RangeSet};

const JOB: JobId = JobId(1);

#[test]
fn everything_comes_back_after_a_crash() {
    let mut bench = Bench::new();
    let mut queue = map(1, 4);
    queue.kind = JobKind::Queue;
    bench.submit(queue);
    let extent = Extent {
        put: 1,
        first_instance: 70,
        rollouts: 2,
    };
    bench.ask(RequestBody::Put { job: JOB, extent });
    let grew = Effect::RelayGrew {
        job: JOB,
        rollouts: 6,
    };
    assert!(bench.out.contains(&grew), "the relay knows how many");
    bench.worker(7, 8, Vec::new(), 0);
    let leases = bench.ready(7, 6);
    bench.settle(JOB, &[0, 2]);
    bench.restart();
    let open = bench
        .out
        .iter()
        .any(|e| matches!(e, Effect::RelayOpen { known: 6, .. }));
    assert!(open, "the relay is asked what it holds: {:?}", bench.out);
    let held: Vec<_> = leases[3..].iter().map(|lease| lease.attempt).collect();
    bench.worker(7, 8, held, 0);
    assert!(
        bench.ready(7, 8).is_empty(),
        "nothing is leased before workers could come back"
    );
    let accepted = RangeSet::from_iter([(0, 2)]);
    bench.say(Input::RelayRestored {
        job: JOB,
        accepted,
        failed: RangeSet::new(),
    });
    assert_eq!(
        bench.counts(JOB),
        (1, 3, 2, 0),
        "1 was settled before the crash, 2 was not kept"
    );
    let session = bench.session(7);
    let again = leases_in(&bench.pass(2_000), session);
    assert_eq!(
        again
            .iter()
            .map(|l| l.attempt.rollout.index)
            .collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(again[0].attempt.epoch.0, 2);
}

#[test]
fn a_failure_that_the_relay_lost_stays_one_and_is_written_again() {
    // Of a job that goes on, and of one that has ended.
    for rollouts in [2, 1] {
        let mut bench = Bench::new();
        bench.submit(map(1, rollouts));
        bench.worker(7, 1, Vec::new(), 0);
        let lease = bench.ready(7, 1).remove(0);
        bench.fail(7, lease.attempt, ErrorCode::EnvUnknown, false);
        assert_eq!(bench.counts(JOB).3, 1, "given up");
        bench.restart();
        let (accepted, failed) = (RangeSet::new(), RangeSet::new());
        bench.say(Input::RelayRestored {
            job: JOB,
            accepted,
            failed,
        });
        let rollout = lease.attempt.rollout;
        let again = |effect: &Effect| matches!(effect, Effect::RelayFailed { rollout: of, .. } if *of == rollout);
        assert!(bench.out.iter().any(again), "{:?}", bench.out);
        assert_eq!(bench.counts(JOB).3, 1, "still given up");
    }
}

#[test]
fn what_nobody_wanted_any_more_is_not_written_as_a_failure() {
    let mut bench = Bench::new();
    let mut job = map(1, 2);
    job.take = Some(Take {
        results: 1,
        bias_ok: false,
    });
    bench.submit(job);
    bench.worker(7, 1, Vec::new(), 0);
    bench.ready(7, 1);
    bench.settle(JOB, &[0]);
    bench.restart();
    let (accepted, failed) = (RangeSet::from_iter([(0, 1)]), RangeSet::new());
    bench.say(Input::RelayRestored {
        job: JOB,
        accepted,
        failed,
    });
    let written = |effect: &Effect| matches!(effect, Effect::RelayFailed { .. });
    assert!(!bench.out.iter().any(written), "{:?}", bench.out);
}

#[test]
fn what_a_crash_took_back_is_not_mixed_up() {
    let mut bench = Bench::new();
    let mut queue = map(1, 0);
    queue.kind = JobKind::Queue;
    bench.submit(queue);
    let durable = bench.disk.len();
    let extent = Extent {
        put: 1,
        first_instance: 70,
        rollouts: 1,
    };
    bench.worker(7, 1, Vec::new(), 0);
    bench.ready(7, 1);
    bench.ask(RequestBody::Put { job: JOB, extent });
    let lease = bench.leases(7)[0].clone();
    bench.disk.truncate(durable); // The put was never synced, its lease had left.
    bench.restart();
    let other = Extent {
        put: 2,
        first_instance: 5,
        rollouts: 1,
    };
    bench.ask(RequestBody::Put {
        job: JOB,
        extent: other,
    });
    bench.worker(7, 1, vec![lease.attempt], 0);
    assert_eq!(
        revoked_in(&bench.out),
        [lease.attempt],
        "index 0 is another instance now"
    );
}

#[test]
fn records_are_json() {
    let mut bench = Bench::new();
    bench.submit(map(u128::MAX, 3));
    bench.learner(0..2);
    for record in &bench.disk {
        let text = serde_json::to_string(record).expect("records are plain data");
        let back: Record = serde_json::from_str(&text).expect("and come back");
        assert_eq!(back, *record, "{text}");
    }
    assert!(bench.disk.len() > 4);
}
