//! Queues: payloads, their bounds, what survives of them, and who is served first.

mod common;

use common::{Bench, code_of, map};
use volley_coordinator_core::{CoordinatorConfig, Effect, Input, LEASED_PAYLOAD_BYTES_MAX};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::job::Extent;
use volley_protocol::limits::{LEASE_PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use volley_protocol::payload::PayloadWriter;
use volley_protocol::worker::{Lease, ToWorker};
use volley_protocol::{ErrorCode, Fault, JobId, JobKind, JobSpec, RangeSet};

const QUEUE: JobId = JobId(1);

fn queue(id: u128, priority: i8) -> JobSpec {
    JobSpec {
        kind: JobKind::Queue,
        priority,
        ..map(id, 0)
    }
}

fn payloads(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> PayloadWriter {
    let mut writer = PayloadWriter::default();
    for text in texts {
        assert!(writer.push(text.as_ref()));
    }
    writer
}

fn put_into(job: JobId, put: u128, mut payloads: PayloadWriter) -> RequestBody {
    let extent = Extent {
        put,
        first_instance: 0,
        rollouts: payloads.count() as u64,
    };
    let payloads = payloads.take();
    RequestBody::PutPayloads {
        job,
        extent,
        payloads,
    }
}

fn put(id: u128, texts: &[&str]) -> RequestBody {
    put_into(QUEUE, id, payloads(texts))
}

fn accepted(existed: bool) -> Option<ReplyBody> {
    let job = QUEUE;
    Some(ReplyBody::Accepted { job, existed })
}

fn texts(leases: &[Lease]) -> Vec<&str> {
    let payloads = leases.iter().map(|lease| lease.payload.0.as_slice());
    payloads
        .map(|payload| std::str::from_utf8(payload).expect("a text"))
        .collect()
}

fn done(bench: &Bench) -> Vec<u64> {
    let done = bench.out.iter().filter_map(|effect| match effect {
        Effect::PayloadsDone { start, .. } => Some(*start),
        _ => None,
    });
    done.collect()
}

#[test]
fn a_payload_goes_with_every_lease_of_its_rollout() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 0));
    assert_eq!(bench.ask(put(1, &["a", "bc", ""])), accepted(false));
    assert_eq!(bench.ask(put(1, &["a", "bc", ""])), accepted(true));
    bench.worker(7, 4, vec![], 0);
    assert_eq!(texts(&bench.ready(7, 4)), ["a", "bc", ""]);
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: true,
    });
    bench.worker(8, 4, vec![], 0);
    assert_eq!(texts(&bench.ready(8, 2)), ["a", "bc"], "tried again");
}

#[test]
fn payloads_are_deleted_with_the_record_that_closes_their_put() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 0));
    bench.ask(put(1, &["a", "b"]));
    bench.ask(put(2, &["c"]));
    bench.worker(7, 4, vec![], 0);
    bench.ready(7, 4);
    bench.settle(QUEUE, &[0]);
    assert_eq!(done(&bench), [0; 0]);
    bench.settle(QUEUE, &[1]);
    assert_eq!(done(&bench), [0]);
    bench.restart();
    let accepted = RangeSet::from_iter([(0, 2)]);
    bench.say(Input::RelayRestored {
        job: QUEUE,
        accepted,
        failed: RangeSet::new(),
    });
    bench.pass(bench.config.restore_grace_ms);
    bench.worker(8, 4, vec![], 0);
    assert_eq!(texts(&bench.ready(8, 4)), ["c"]);
    bench.ask(RequestBody::JobCancel(QUEUE));
    assert_eq!(done(&bench), [2]);
    bench.restart();
    assert_eq!(bench.counts(QUEUE), (0, 0, 2, 0), "cancelled, not failed");
}

#[test]
fn what_the_relay_lost_fails_when_its_payload_is_gone() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 0));
    bench.ask(put(1, &["a", "b"]));
    bench.worker(7, 4, vec![], 0);
    bench.ready(7, 4);
    bench.settle(QUEUE, &[0, 1]);
    bench.restart();
    let restored = Input::RelayRestored {
        job: QUEUE,
        accepted: RangeSet::from_iter([(0, 1)]),
        failed: RangeSet::new(),
    };
    let effects = bench.say(restored);
    let failed = effects.iter().find_map(|effect| match effect {
        Effect::RelayFailed { rollout, fault } => Some((rollout.index, fault.code)),
        _ => None,
    });
    assert_eq!(failed, Some((1, ErrorCode::StoreFailed)));
    assert_eq!(bench.counts(QUEUE), (0, 0, 1, 1));
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut bench = Bench::with(CoordinatorConfig {
        payloads_max: 3,
        ..CoordinatorConfig::default()
    });
    bench.submit(queue(1, 0));
    assert_eq!(bench.ask(put(1, &["a", "b"])), accepted(false));
    let busy = |body: Option<ReplyBody>| match body {
        Some(ReplyBody::Busy {
            fault: Fault { code, message, .. },
            retry_after_ms,
        }) => (code, message, retry_after_ms),
        other => panic!("{other:?}"),
    };
    let (code, message, after_ms) = busy(bench.ask(put(2, &["c", "d"])));
    assert_eq!((code, after_ms), (ErrorCode::QueueFull, 1_000));
    assert!(message.contains("bound of 3"), "{message}");
    assert_eq!(bench.ask(put(1, &["a", "b"])), accepted(true), "a repeat");
    assert_eq!(bench.ask(put(3, &["c"])), accepted(false), "one has room");
    bench.worker(7, 4, vec![], 0);
    bench.ready(7, 4);
    bench.settle(QUEUE, &[0, 1]);
    let (_, _, after_ms) = busy(bench.ask(put(2, &["c", "d", "e"])));
    assert_eq!(after_ms, 100, "it moves");
    assert_eq!(bench.ask(put(2, &["c", "d"])), accepted(false));
}

#[test]
fn bytes_are_bounded_too_and_so_are_puts_without_any() {
    let mut bench = Bench::with(CoordinatorConfig {
        payload_bytes_max: 2_000,
        ..CoordinatorConfig::default()
    });
    bench.submit(queue(1, 0));
    let large = "x".repeat(1_400);
    assert_eq!(bench.ask(put(1, &[&large])), accepted(false));
    let full = |body| matches!(body, Some(ReplyBody::Busy { .. }));
    assert!(full(bench.ask(put(2, &["a", &large]))));
    let empty = |put| {
        let extent = Extent {
            put,
            first_instance: 0,
            rollouts: 1,
        };
        RequestBody::Put { job: QUEUE, extent }
    };
    assert_eq!(bench.ask(empty(3)), accepted(false));
    assert!(full(bench.ask(empty(4))), "a put alone takes memory");
}

#[test]
fn malformed_payloads_are_refused_and_change_nothing() {
    let mut bench = Bench::new();
    bench.submit(JobSpec {
        group_size: 2,
        ..queue(1, 0)
    });
    let two = put(1, &["a", "b"]);
    assert_eq!(
        code_of(bench.ask(two)),
        Some(ErrorCode::InvalidRequest),
        "two rollouts are one group, which has one payload"
    );
    bench.submit(map(2, 1));
    let into_a_map = put_into(JobId(2), 1, payloads(["a"]));
    assert_eq!(
        code_of(bench.ask(into_a_map)),
        Some(ErrorCode::InvalidRequest)
    );
    let by_a_monitor = bench.ask_as(put(3, &["a"]), true);
    assert_eq!(code_of(by_a_monitor), Some(ErrorCode::Forbidden));
    assert_eq!(bench.counts(QUEUE), (0, 0, 0, 0));
}

#[test]
fn large_payloads_make_several_messages_and_a_worker_has_its_fill() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 5));
    bench.submit(map(2, 1_000));
    for id in 0..8 {
        let large = vec![b'x'; PAYLOAD_BYTES_MAX];
        assert_eq!(
            bench.ask(put_into(QUEUE, id, payloads(vec![large; 13]))),
            accepted(false)
        );
    }
    bench.worker(7, 200, vec![], 0);
    let leases = bench.ready(7, 200);
    assert_eq!(leases.len(), 200);
    let loaded = LEASED_PAYLOAD_BYTES_MAX / PAYLOAD_BYTES_MAX;
    let sizes: Vec<_> = leases.iter().map(|l| l.payload.0.len()).collect();
    assert!(
        sizes[..loaded]
            .iter()
            .all(|size| *size == PAYLOAD_BYTES_MAX)
    );
    assert_eq!(sizes.iter().filter(|size| **size > 0).count(), loaded);
    let messages = bench.out.iter().filter_map(|effect| match effect {
        Effect::ToWorker {
            message: ToWorker::Lease { leases, .. },
            ..
        } => Some(leases.iter().map(|l| l.payload.0.len()).sum::<usize>()),
        _ => None,
    });
    let messages: Vec<_> = messages.collect();
    assert!(
        messages
            .iter()
            .all(|bytes| *bytes <= LEASE_PAYLOAD_BYTES_MAX),
        "{messages:?}"
    );
    // Whatever ends makes room for as much.
    bench.settle(QUEUE, &[0, 1]);
    let more = bench.ready(7, 204);
    assert_eq!(more.iter().filter(|l| !l.payload.0.is_empty()).count(), 2);
}

#[test]
fn a_job_of_higher_priority_overtakes_a_million() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 0));
    for id in 0..250 {
        let many = payloads((0..4_000).map(|n| format!("{id:031} {n:032}")));
        assert_eq!(bench.ask(put_into(QUEUE, id, many)), accepted(false));
    }
    bench.worker(7, 2, vec![], 0);
    let first = bench.ready(7, 2);
    assert!(first.iter().all(|lease| lease.attempt.rollout.job == QUEUE));
    let urgent = JobId(9);
    bench.submit(JobSpec {
        priority: 1,
        ..map(9, 3)
    });
    bench.settle(QUEUE, &[0]);
    let next = bench.ready(7, 6);
    let jobs: Vec<_> = next.iter().map(|lease| lease.attempt.rollout.job).collect();
    assert_eq!(jobs, [urgent, urgent, urgent, QUEUE]);
    let summary = bench.ask(RequestBody::JobShow(urgent));
    let Some(ReplyBody::Jobs(jobs)) = summary else {
        panic!("{summary:?}");
    };
    assert_eq!(jobs[0].priority, 1);
    let too_high = JobSpec {
        priority: 101,
        ..map(10, 1)
    };
    let code = code_of(Some(bench.submit(too_high)));
    assert_eq!(code, Some(ErrorCode::InvalidRequest));
}

#[test]
fn a_dead_letter_is_tried_anew_with_its_payload_and_never_without() {
    let mut bench = Bench::new();
    bench.submit(queue(1, 0));
    bench.ask(put(1, &["a", "b"]));
    bench.worker(7, 4, vec![], 0);
    let attempt = bench.ready(7, 4)[0].attempt;
    bench.fail(7, attempt, ErrorCode::EnvFailed, false);
    let retry = |id| RequestBody::JobRetry {
        job: QUEUE,
        retry: JobId(id),
        indices: vec![0],
    };
    let answer = bench.ask(retry(8));
    assert!(
        matches!(answer, Some(ReplyBody::Accepted { .. })),
        "{answer:?}"
    );
    assert_eq!(texts(&bench.leases(7)), ["a"]);
    // Everything of the put is closed: its payloads are deleted.
    bench.ask(RequestBody::JobCancel(QUEUE));
    assert!(code_of(bench.ask(retry(9))).is_some(), "refused");
    bench.restart();
    assert!(code_of(bench.ask(retry(9))).is_some(), "refused for good");
}
