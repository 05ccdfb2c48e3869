//! Jobs of clients: from submit to the end, with everything that can happen between.

mod common;

use common::{Bench, code_of, leases_in, map, revoked_in};
use volley_coordinator_core::{Effect, Input, Record};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::job::{Extent, JobState};
use volley_protocol::worker::{FromWorker, ToWorker};
use volley_protocol::{ErrorCode, JobId, JobKind};

const JOB: JobId = JobId(1);

#[test]
fn a_map_runs_to_its_end() {
    let mut bench = Bench::new();
    bench.worker(7, 2, Vec::new(), 0);
    let accepted = bench.submit(map(1, 3));
    assert_eq!(
        accepted,
        ReplyBody::Accepted {
            job: JOB,
            existed: false
        }
    );
    let waits = bench.out.iter().any(|e| {
        matches!(
            e,
            Effect::Reply {
                after_commit: true,
                ..
            }
        )
    });
    assert!(waits, "an acknowledged job is durable");
    let leases = bench.ready(7, 2);
    assert_eq!(
        leases.iter().map(|l| l.instance).collect::<Vec<_>>(),
        [0, 1]
    );
    let first = bench.out.iter().position(|e| {
        matches!(
            e,
            Effect::ToWorker {
                message: ToWorker::Job(_),
                ..
            }
        )
    });
    let then = bench.out.iter().position(|e| {
        matches!(
            e,
            Effect::ToWorker {
                message: ToWorker::Lease { .. },
                ..
            }
        )
    });
    assert!(
        first < then,
        "a job's specification precedes its first lease"
    );
    bench.settle(JOB, &[0, 1]);
    assert_eq!(
        bench.counts(JOB),
        (1, 0, 2, 0),
        "credit is used up: the third waits"
    );
    assert_eq!(bench.ready(7, 3).len(), 1);
    bench.settle(JOB, &[2]);
    assert!(bench.out.contains(&Effect::RelayComplete { job: JOB }));
    let done = Record::JobClosed {
        job: JOB,
        state: JobState::Done,
        cancelled: Vec::new(),
    };
    assert!(bench.disk.contains(&done));
}

#[test]
fn a_billion_seeds_cost_nothing() {
    let mut bench = Bench::new();
    bench.worker(7, 4, Vec::new(), 0);
    bench.submit(map(1, 1_000_000_000));
    let leases = bench.ready(7, 4);
    assert_eq!(leases.len(), 4);
    bench.settle(JOB, &[0, 1, 2]);
    assert_eq!(bench.counts(JOB), (999_999_996, 1, 3, 0));
    assert!(bench.core.compacted().len() < 10);
}

#[test]
fn repeating_a_request_changes_nothing() {
    let mut bench = Bench::new();
    bench.submit(map(1, 3));
    assert_eq!(
        bench.submit(map(1, 3)),
        ReplyBody::Accepted {
            job: JOB,
            existed: true
        }
    );
    assert_eq!(
        code_of(Some(bench.submit(map(1, 4)))),
        Some(ErrorCode::JobConflict)
    );
    let mut queue = map(2, 0);
    queue.kind = JobKind::Queue;
    bench.submit(queue);
    let extent = Extent {
        put: 9,
        first_instance: 50,
        rollouts: 2,
    };
    let put = RequestBody::Put {
        job: JobId(2),
        extent,
    };
    let put_again = |existed| {
        Some(ReplyBody::Accepted {
            job: JobId(2),
            existed,
        })
    };
    assert_eq!(bench.ask(put.clone()), put_again(false));
    assert_eq!(bench.ask(put), put_again(true));
    assert_eq!(bench.counts(JobId(2)).0, 2);
    let to_a_map = RequestBody::Put { job: JOB, extent };
    assert_eq!(
        code_of(bench.ask(to_a_map)),
        Some(ErrorCode::InvalidRequest)
    );
}

#[test]
fn monitors_only_read() {
    let mut bench = Bench::new();
    let forbidden = code_of(bench.ask_as(RequestBody::Submit(map(1, 3)), true));
    assert_eq!(forbidden, Some(ErrorCode::Forbidden));
    assert!(
        matches!(bench.ask_as(RequestBody::JobList, true), Some(ReplyBody::Jobs(jobs)) if jobs.is_empty())
    );
    assert!(matches!(
        bench.ask_as(RequestBody::Snapshot, true),
        Some(ReplyBody::Snapshot(_))
    ));
}

#[test]
fn jobs_share_and_workers_share() {
    let mut bench = Bench::new();
    bench.worker(7, 4, Vec::new(), 0);
    bench.worker(8, 4, Vec::new(), 0);
    bench.ready(7, 8);
    bench.ready(8, 8);
    bench.submit(map(1, 4));
    let (one, other) = (bench.leases(7).len(), bench.leases(8).len());
    assert_eq!(
        (one, other),
        (2, 2),
        "little work spreads over many workers"
    );
    bench.submit(map(2, 1_000));
    bench.submit(map(3, 1_000));
    let mut seen = [0u64, 0];
    for total in 9..400 {
        for lease in bench.ready(7, total) {
            seen[lease.attempt.rollout.job.0 as usize - 2] += 1;
        }
    }
    assert!(seen[0].abs_diff(seen[1]) <= 1, "jobs take turns: {seen:?}");
}

#[test]
fn a_dead_worker_costs_no_time_and_a_poisonous_rollout_is_found() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    for life in 1..=4 {
        bench.worker(life, 1, Vec::new(), 0);
        bench.pass(30_000);
        let session = bench.session(life);
        let mut leases = bench.ready(life, 1);
        if leases.is_empty() {
            leases = leases_in(&bench.pass(30_000), session);
        }
        assert_eq!(leases.len(), 1, "life {life}");
        bench.say(Input::WorkerDown {
            session,
            process_dead: true,
        });
    }
    assert_eq!(bench.counts(JOB), (0, 0, 0, 1));
    let code = bench.out.iter().find_map(|effect| match effect {
        Effect::RelayFailed { fault, .. } => Some(fault.code),
        _ => None,
    });
    assert_eq!(code, Some(ErrorCode::PoisonRollout));
}

#[test]
fn a_lost_session_keeps_its_leases_for_a_while() {
    let mut bench = Bench::new();
    bench.submit(map(1, 2));
    bench.worker(7, 2, Vec::new(), 0);
    let leases = bench.ready(7, 2);
    let held: Vec<_> = leases.iter().map(|lease| lease.attempt).collect();
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: false,
    });
    bench.pass(9_000);
    assert_eq!(bench.counts(JOB).1, 2, "the grace is not over");
    bench.worker(7, 2, vec![held[0]], 0);
    assert_eq!(
        bench.counts(JOB),
        (1, 1, 0, 0),
        "what it does not hold is open again"
    );
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: false,
    });
    bench.pass(10_500);
    assert_eq!(bench.counts(JOB), (2, 0, 0, 0));
    bench.worker(7, 2, held, 0);
    assert_eq!(
        bench.counts(JOB),
        (0, 2, 0, 0),
        "nobody else has them: taken back"
    );
    assert!(revoked_in(&bench.out).is_empty());
}

#[test]
fn heartbeats_renew_and_silence_ends() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    bench.worker(7, 1, Vec::new(), 0);
    let attempt = bench.ready(7, 1)[0].attempt;
    for _ in 0..30 {
        bench.pass(1_000);
        bench.heartbeat(7, vec![attempt]);
    }
    assert_eq!(bench.counts(JOB).1, 1);
    bench.pass(10_100);
    assert_eq!(
        bench.counts(JOB),
        (1, 0, 0, 0),
        "not named for a lease's time"
    );
    bench.heartbeat(7, vec![attempt]);
    assert_eq!(bench.counts(JOB), (0, 1, 0, 0), "it lives after all");
}

#[test]
fn a_job_may_ask_for_a_heartbeat_of_its_own() {
    let mut bench = Bench::new();
    let mut spec = map(1, 1);
    (spec.retry.heartbeat_ms, spec.retry.losses) = (3_000, 1);
    bench.submit(spec);
    bench.worker(7, 2, Vec::new(), 0);
    let lease = bench.ready(7, 5)[0].clone();
    assert_eq!(lease.lease_ms, 3_000);
    for _ in 0..5 {
        bench.pass(1_000);
        bench.heartbeat(7, vec![lease.attempt]);
    }
    let session = bench.session(7);
    let again = leases_in(&bench.pass(3_000), session);
    assert_eq!(again.len(), 1, "lost with nobody's renewal, leased anew");
    let last = bench.snapshot().jobs[0].last_failure.clone();
    let (code, why) = last.expect("it is told");
    assert_eq!(code, ErrorCode::HeartbeatTimeout);
    assert!(
        why.contains("worker-7 did not renew it for 3000 ms"),
        "{why}"
    );
    // A lost session does not make the job wait for the worker's grace.
    bench.say(Input::WorkerDown {
        session,
        process_dead: false,
    });
    bench.pass(3_000);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 1), "poison after two losses");
    let last = bench.snapshot().jobs[0].last_failure.clone();
    let (code, why) = last.expect("it is told");
    assert_eq!(code, ErrorCode::PoisonRollout);
    assert!(why.contains("HEARTBEAT_TIMEOUT"), "{why}");
}

#[test]
fn an_attempt_may_not_take_for_ever() {
    let mut bench = Bench::new();
    let mut spec = map(1, 1);
    spec.retry.start_to_close_ms = 5_000;
    bench.submit(spec);
    bench.worker(7, 1, Vec::new(), 0);
    let attempt = bench.ready(7, 1)[0].attempt;
    let mut revoked = Vec::new();
    for _ in 0..20 {
        revoked.extend(revoked_in(&bench.pass(1_000)));
        bench.heartbeat(7, vec![attempt]);
    }
    assert_eq!(revoked, [attempt]);
    assert_eq!(bench.counts(JOB), (1, 0, 0, 0));
    assert!(
        revoked_in(&bench.out).contains(&attempt),
        "named again, revoked again"
    );
}

#[test]
fn failures_are_tried_again_later_and_then_given_up() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    bench.worker(7, 1, Vec::new(), 0);
    let session = bench.session(7);
    let mut lease = bench.ready(7, 100)[0].clone();
    for wait_ms in [100, 200, 400] {
        bench.fail(7, lease.attempt, ErrorCode::EnvFailed, true);
        assert!(bench.leases(7).is_empty());
        let again = leases_in(&bench.pass(wait_ms * 5 / 4 + 100), session);
        lease = again[0].clone();
    }
    assert_eq!(lease.attempt.number, 4);
    bench.fail(7, lease.attempt, ErrorCode::EnvFailed, true);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 1));
    let job = &bench.snapshot().jobs[0];
    assert_eq!(
        job.last_failure.as_ref().map(|f| f.0),
        Some(ErrorCode::AttemptsExhausted)
    );
    assert_eq!(job.retries, 3);
    bench.submit(map(2, 1));
    let attempt = bench.leases(7)[0].attempt;
    bench.fail(7, attempt, ErrorCode::EnvUnknown, false);
    assert_eq!(
        bench.counts(JobId(2)),
        (0, 0, 0, 1),
        "a further attempt cannot go better"
    );
}

#[test]
fn the_sink_has_the_last_word() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    bench.worker(7, 1, Vec::new(), 0);
    let attempt = bench.ready(7, 1)[0].attempt;
    bench.fail(7, attempt, ErrorCode::EnvUnknown, false);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 1));
    bench.settle(JOB, &[0]);
    assert_eq!(
        bench.counts(JOB),
        (0, 0, 1, 0),
        "a late result corrects the ledger"
    );
    bench.settle(JOB, &[0]);
    bench.settle(JobId(99), &[0]);
    let nothing = bench
        .out
        .iter()
        .all(|effect| !matches!(effect, Effect::Persist(_)));
    assert!(nothing, "known and unknown change nothing");
}

#[test]
fn a_late_result_stops_the_second_attempt() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    bench.worker(7, 1, Vec::new(), 0);
    let first = bench.ready(7, 1)[0].attempt;
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: true,
    });
    bench.worker(8, 1, Vec::new(), 0);
    let second = bench.ready(8, 1)[0].attempt;
    assert_eq!((first.number, second.number), (1, 2));
    bench.settle(JOB, &[0]);
    assert_eq!(revoked_in(&bench.out), [second]);
}

#[test]
fn a_cancelled_job_is_over_at_once() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1_000_000));
    bench.worker(7, 2, Vec::new(), 0);
    let leases = bench.ready(7, 2);
    assert_eq!(
        bench.ask(RequestBody::JobCancel(JOB)),
        Some(ReplyBody::Done)
    );
    assert_eq!(revoked_in(&bench.out).len(), leases.len());
    assert_eq!(bench.counts(JOB), (0, 0, 0, 0), "nothing of it failed");
    assert_eq!(bench.snapshot().jobs[0].cancelled, 1_000_000);
    assert_eq!(
        bench.ask(RequestBody::JobCancel(JOB)),
        Some(ReplyBody::Done),
        "it is so"
    );
    bench.settle(JOB, &[0]);
    assert_eq!(bench.counts(JOB), (0, 0, 1, 0));
    assert_eq!(bench.snapshot().jobs[0].cancelled, 999_999);
    assert_eq!(
        code_of(bench.ask(RequestBody::JobCancel(JobId(9)))),
        Some(ErrorCode::NotFound)
    );
}

#[test]
fn stale_sessions_say_nothing() {
    let mut bench = Bench::new();
    bench.submit(map(1, 2));
    bench.worker(7, 1, Vec::new(), 0);
    let old = bench.session(7);
    bench.worker(7, 1, Vec::new(), 0);
    let message = FromWorker::Ready { credit_total: 5 };
    bench.say(Input::Worker {
        session: old,
        message,
    });
    assert_eq!(bench.counts(JOB).1, 0);
    bench.say(Input::WorkerDown {
        session: old,
        process_dead: true,
    });
    assert_eq!(
        bench.ready(7, 1).len(),
        1,
        "the newer session is not touched"
    );
}

#[test]
fn results_are_the_shells_to_read() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    let (job, cursor, wait_ms) = (JOB, 4, 1_000_000);
    let far = RequestBody::Results {
        job,
        cursor,
        wait_ms,
    };
    let near = RequestBody::ResultsNear {
        job,
        cursor,
        wait_ms,
    };
    for (ask, is_near) in [(far, false), (near, true)] {
        assert_eq!(bench.ask(ask), None);
        let query = bench.out.iter().find_map(|effect| match effect {
            Effect::ResultsQuery {
                cursor,
                wait_ms,
                near,
                ..
            } => Some((*cursor, *wait_ms, *near)),
            _ => None,
        });
        assert_eq!(query, Some((4, 20_000, is_near)));
    }
}
