//! Rollouts that end without a result: time-outs, dead letters and trying them anew, enough results.

mod common;

use common::*;
use volley_coordinator_core::{Coordinator, Effect, Input, Record};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::{Extent, JobState};
use volley_protocol::learner::{FromLearner, ToLearner, Verdict};
use volley_protocol::snapshot::JobSummary;
use volley_protocol::{Epoch, ErrorCode, JobId, JobKind, JobSpec, Take};

const JOB: JobId = JobId(1);
const ANEW: JobId = JobId(9);

fn summary(bench: &Bench, job: JobId) -> JobSummary {
    let jobs = bench.snapshot().jobs;
    jobs.into_iter()
        .find(|summary| summary.job == job)
        .expect("it is known")
}

fn letters(bench: &mut Bench, job: JobId) -> Vec<DeadLetter> {
    match bench.ask(RequestBody::DeadLetters(job)) {
        Some(ReplyBody::DeadLetters(letters)) => letters,
        other => panic!("no letters: {other:?}"),
    }
}

fn relay_failures(effects: &[Effect]) -> Vec<(u64, ErrorCode)> {
    let failed = effects.iter().filter_map(|effect| match effect {
        Effect::RelayFailed { rollout, fault } => Some((rollout.index, fault.code)),
        _ => None,
    });
    failed.collect()
}

#[test]
fn whoever_waits_too_long_for_a_worker_is_given_up() {
    let mut bench = Bench::new();
    let mut spec = map(1, 5);
    spec.retry.schedule_to_start_ms = 2_000;
    bench.submit(spec);
    bench.worker(7, 1, Vec::new(), 0);
    let attempt = bench.ready(7, 1)[0].attempt;
    bench.pass(1_900);
    assert_eq!(bench.counts(JOB), (4, 1, 0, 0));
    let failures = relay_failures(&bench.pass(200));
    let code = ErrorCode::ScheduleToStartTimeout;
    assert_eq!(failures, [1, 2, 3, 4].map(|index| (index, code)));
    assert_eq!(
        bench.counts(JOB),
        (0, 1, 0, 4),
        "what has started may go on"
    );
    // Before its next attempt the time counts anew, from the end of the wait.
    bench.fail(7, attempt, ErrorCode::EnvFailed, true);
    bench.pass(1_900);
    assert_eq!(bench.counts(JOB), (1, 0, 0, 4));
    bench.pass(400);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 5));
    assert_eq!(summary(&bench, JOB).state, JobState::Done);
    let letter = &letters(&mut bench, JOB)[4];
    assert_eq!(
        (letter.index, letter.failures, letter.fault.code),
        (0, 1, code)
    );
    assert!(
        letter.fault.message.contains("2000 ms: 1 attempts failed"),
        "{}",
        letter.fault
    );
}

#[test]
fn whoever_takes_too_long_with_everything_is_given_up_wherever_it_is() {
    let mut bench = Bench::new();
    let mut spec = map(1, 3);
    spec.retry.schedule_to_close_ms = 5_000;
    (spec.retry.backoff_ms, spec.retry.backoff_max_ms) = (60_000, 60_000);
    bench.submit(spec);
    bench.worker(7, 2, Vec::new(), 0);
    let leases = bench.ready(7, 2);
    bench.fail(7, leases[0].attempt, ErrorCode::EnvFailed, true);
    assert_eq!(
        bench.counts(JOB),
        (2, 1, 0, 0),
        "backing off, fresh, leased"
    );
    bench.pass(4_000);
    bench.heartbeat(7, vec![leases[1].attempt]);
    assert_eq!(bench.counts(JOB), (2, 1, 0, 0));
    let effects = bench.pass(1_100);
    let code = ErrorCode::ScheduleToCloseTimeout;
    assert_eq!(
        relay_failures(&effects),
        [0, 1, 2].map(|index| (index, code))
    );
    assert_eq!(revoked_in(&effects), [leases[1].attempt]);
    assert_eq!(summary(&bench, JOB).state, JobState::Done);
}

#[test]
fn each_extent_has_its_own_time_also_after_a_restart() {
    let mut bench = Bench::new();
    let mut spec = map(1, 0);
    spec.kind = JobKind::Queue;
    spec.retry.schedule_to_start_ms = 10_000;
    bench.submit(spec);
    for put in 0..2 {
        let extent = Extent {
            put,
            first_instance: 0,
            rollouts: 2,
        };
        bench.ask(RequestBody::Put { job: JOB, extent });
        bench.pass(4_000);
    }
    let before = bench.core.compacted();
    bench.restart();
    let known = |accepted: &[(u64, u64)]| accepted.iter().copied().collect();
    bench.say(Input::RelayRestored {
        job: JOB,
        accepted: known(&[]),
        failed: known(&[]),
    });
    bench.pass(1_900);
    assert_eq!(bench.counts(JOB), (4, 0, 0, 0));
    assert_eq!(
        relay_failures(&bench.pass(200)).len(),
        2,
        "the clock went on"
    );
    bench.pass(3_500);
    assert_eq!(bench.counts(JOB), (2, 0, 0, 2));
    bench.pass(500);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 4));
    let waves = |records: &[Record]| {
        let waves = records
            .iter()
            .filter(|r| matches!(r, Record::Scheduled { .. }));
        waves.count()
    };
    assert_eq!(waves(&before), 2, "a shorter log knows them too");
}

#[test]
fn a_learner_that_is_away_times_nothing_out() {
    let mut bench = Bench::new();
    bench.learner(0..1);
    let mut spec = training(1, 8, 4);
    spec.retry.schedule_to_start_ms = 2_000;
    bench.learner_says(FromLearner::Submit(spec));
    bench.learner_says(FromLearner::Admit { job: JOB, upto: 4 });
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.pass(60_000);
    assert_eq!(bench.counts(JOB).3, 0, "nobody could have played it");
    bench.learner(0..1);
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![],
        failed: vec![],
    });
    let told = to_learner_in(&bench.pass(300));
    let failed = told.iter().filter(|message| {
        matches!(message, ToLearner::RolloutFailed { fault, .. }
            if fault.code == ErrorCode::ScheduleToStartTimeout)
    });
    assert_eq!(failed.count(), 4, "what was admitted waited for a minute");
    let verdicts: Vec<_> = (0..4).map(|index| (index, Verdict::Failed)).collect();
    bench.receipt(1, JOB, &verdicts);
    assert_eq!(letters(&mut bench, JOB).len(), 4);
    // The next ones have their own time.
    bench.learner_says(FromLearner::Admit { job: JOB, upto: 8 });
    bench.pass(1_500);
    assert_eq!(bench.counts(JOB), (4, 0, 0, 4));
}

#[test]
fn a_job_of_a_billion_is_timed_out_bit_by_bit() {
    let mut bench = Bench::new();
    let mut spec = map(1, 1_000_000_000);
    spec.retry.schedule_to_start_ms = 1_000;
    bench.submit(spec);
    bench.now += 1_000;
    bench.say(Input::Tick);
    let first = relay_failures(&bench.out).len();
    assert!(first > 0 && first <= 4_096, "{first}");
    bench.pass(200);
    assert_eq!(bench.counts(JOB).3, 3 * first as u64);
}

#[test]
fn poison_is_a_dead_letter_that_survives_a_restart() {
    let mut bench = Bench::new();
    bench.submit(map(1, 2));
    for killer in 0..4 {
        bench.worker(10 + killer, 1, Vec::new(), 0);
        let leases = bench.ready(10 + killer, 1);
        assert_eq!(leases[0].attempt.rollout.index, 0, "retries go first");
        let session = bench.session(10 + killer);
        bench.say(Input::WorkerDown {
            session,
            process_dead: true,
        });
        bench.pass(1_000);
    }
    let kept = letters(&mut bench, JOB);
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (kept[0].losses, kept[0].fault.code),
        (4, ErrorCode::PoisonRollout)
    );
    assert!(
        kept[0].fault.message.contains("worker-13 was lost"),
        "{}",
        kept[0].fault
    );
    assert!(kept[0].at_ms > 1_000 && kept[0].at_ms <= bench.now);
    let text = serde_json::to_string(&bench.disk).expect("JSON");
    bench.disk = serde_json::from_str(&text).expect("its own records");
    bench.restart();
    assert_eq!(letters(&mut bench, JOB), kept);
    assert_eq!(
        summary(&bench, JOB).last_failure.map(|f| f.0),
        Some(ErrorCode::PoisonRollout)
    );
    assert_eq!(bench.snapshot().dead_letters, 1);
    let compacted = Coordinator::restore(bench.config.clone(), Epoch(7), bench.core.compacted());
    assert_eq!(
        compacted
            .snapshot(volley_coordinator_core::Millis(0))
            .dead_letters,
        1
    );
    bench.ask(RequestBody::JobCancel(JOB));
    bench.pass(61_000);
    assert_eq!(bench.snapshot().dead_letters, 0, "forgotten with its job");
    assert_eq!(
        code_of(bench.ask(RequestBody::DeadLetters(JOB))),
        Some(ErrorCode::NotFound)
    );
}

#[test]
fn a_result_that_came_after_all_takes_the_letter_away() {
    let mut bench = Bench::new();
    bench.submit(map(1, 1));
    bench.worker(7, 1, Vec::new(), 0);
    let attempt = bench.ready(7, 1)[0].attempt;
    bench.fail(7, attempt, ErrorCode::EnvUnknown, false);
    assert_eq!(letters(&mut bench, JOB).len(), 1);
    bench.settle(JOB, &[0]);
    assert!(letters(&mut bench, JOB).is_empty());
    bench.restart();
    assert!(letters(&mut bench, JOB).is_empty());
}

/// A job of which 2, 3 and 5 are dead and the rest is accepted.
fn with_dead_letters() -> Bench {
    let mut bench = Bench::new();
    bench.submit(JobSpec {
        first_instance: 100,
        keep_ms: 600_000,
        ..map(1, 6)
    });
    bench.worker(7, 8, Vec::new(), 0);
    for lease in bench.ready(7, 8) {
        if [2, 3, 5].contains(&lease.attempt.rollout.index) {
            bench.fail(7, lease.attempt, ErrorCode::EnvUnknown, false);
        }
    }
    bench.settle(JOB, &[0, 1, 4]);
    bench
}

fn retry(indices: &[u64]) -> RequestBody {
    RequestBody::JobRetry {
        job: JOB,
        retry: ANEW,
        indices: indices.to_vec(),
    }
}

#[test]
fn dead_letters_are_tried_anew_in_a_job_of_their_own() {
    let mut bench = with_dead_letters();
    let accepted = |existed| Some(ReplyBody::Accepted { job: ANEW, existed });
    assert_eq!(bench.ask(retry(&[])), accepted(false));
    let grew = |effect: &&Effect| matches!(effect, Effect::RelayGrew { job: ANEW, .. });
    assert_eq!(
        bench.out.iter().filter(grew).count(),
        2,
        "instances in a row are one extent"
    );
    let leases = bench.leases(7);
    bench.restart();
    bench.worker(7, 8, leases.iter().map(|lease| lease.attempt).collect(), 0);
    let nothing = || [].into_iter().collect();
    bench.say(Input::RelayRestored {
        job: ANEW,
        accepted: nothing(),
        failed: nothing(),
    });
    bench.pass(2_000);
    let mut instances: Vec<u64> = leases.iter().map(|lease| lease.instance).collect();
    instances.extend(bench.ready(7, 8).iter().map(|lease| lease.instance));
    instances.sort_unstable();
    assert_eq!(instances, [102, 103, 105]);
    assert_eq!(bench.ask(retry(&[])), accepted(true), "asked for again");
    assert_eq!(summary(&bench, ANEW).rollouts, 3);
    bench.settle(ANEW, &[0, 1, 2]);
    let anew = summary(&bench, ANEW);
    assert_eq!(
        (anew.state, anew.kind, &*anew.name),
        (JobState::Done, JobKind::Retry, "retry of job-1")
    );
    let told = letters(&mut bench, JOB);
    assert!(told.iter().all(|letter| letter.retried_as == Some(ANEW)));
    let again = RequestBody::JobRetry {
        job: JOB,
        retry: JobId(10),
        indices: vec![],
    };
    assert_eq!(
        code_of(bench.ask(again)),
        Some(ErrorCode::NotFound),
        "nothing is left"
    );
    let chosen = RequestBody::JobRetry {
        job: JOB,
        retry: JobId(11),
        indices: vec![3, 3],
    };
    bench.ask(chosen);
    assert_eq!(
        summary(&bench, JobId(11)).rollouts,
        1,
        "one by name may be tried any number of times"
    );
}

#[test]
fn what_cannot_be_tried_anew_is_refused() {
    let mut bench = with_dead_letters();
    assert_eq!(
        code_of(bench.ask(retry(&[0]))),
        Some(ErrorCode::NotFound),
        "it is accepted"
    );
    let other = RequestBody::JobRetry {
        job: JOB,
        retry: JOB,
        indices: vec![],
    };
    assert_eq!(code_of(bench.ask(other)), Some(ErrorCode::JobConflict));
    let none = RequestBody::JobRetry {
        job: JobId(77),
        retry: ANEW,
        indices: vec![],
    };
    assert_eq!(code_of(bench.ask(none)), Some(ErrorCode::NotFound));
    assert_eq!(
        code_of(bench.ask_as(retry(&[]), true)),
        Some(ErrorCode::Forbidden)
    );
    let made_up = JobSpec {
        kind: JobKind::Retry,
        ..map(5, 1)
    };
    let refused = code_of(Some(bench.submit(made_up)));
    assert_eq!(refused, Some(ErrorCode::InvalidRequest));
    bench.learner(0..1);
    bench.learner_says(FromLearner::Submit(training(2, 4, 4)));
    let learners = RequestBody::JobRetry {
        job: JobId(2),
        retry: ANEW,
        indices: vec![],
    };
    assert_eq!(
        code_of(bench.ask(learners)),
        Some(ErrorCode::InvalidRequest)
    );
    assert!(
        bench
            .snapshot()
            .jobs
            .iter()
            .all(|job| job.kind != JobKind::Retry)
    );
}

fn first(results: u64) -> Option<Take> {
    Some(Take {
        results,
        bias_ok: false,
    })
}

#[test]
fn a_job_with_enough_results_is_done() {
    let mut bench = Bench::new();
    bench.submit(JobSpec {
        take: first(3),
        ..map(1, 10)
    });
    bench.worker(7, 5, Vec::new(), 0);
    let leases = bench.ready(7, 5);
    bench.fail(7, leases[4].attempt, ErrorCode::EnvUnknown, false);
    bench.settle(JOB, &[0, 1]);
    assert_eq!(summary(&bench, JOB).state, JobState::Open);
    bench.settle(JOB, &[2]);
    let job = summary(&bench, JOB);
    assert_eq!(
        (job.state, job.accepted, job.failed, job.cancelled),
        (JobState::Done, 3, 1, 6)
    );
    assert_eq!(revoked_in(&bench.out), [leases[3].attempt]);
    assert!(bench.out.contains(&Effect::RelayComplete { job: JOB }));
    assert_eq!(
        letters(&mut bench, JOB).len(),
        1,
        "what nobody wants is no dead letter"
    );
    // One that was on its way is kept, and is no longer counted as cancelled.
    bench.settle(JOB, &[3]);
    bench.restart();
    let job = summary(&bench, JOB);
    assert_eq!(
        (job.accepted, job.failed, job.cancelled, job.take),
        (4, 1, 5, 3)
    );
}

fn told_failed(effects: &[Effect]) -> Vec<(u64, ErrorCode)> {
    let told = to_learner_in(effects).into_iter();
    told.filter_map(|message| match message {
        ToLearner::RolloutFailed { rollout, fault } => Some((rollout.index, fault.code)),
        _ => None,
    })
    .collect()
}

#[test]
fn a_learner_does_not_take_the_first_results_by_accident() {
    let mut bench = Bench::new();
    bench.learner(0..1);
    let spec = JobSpec {
        take: first(4),
        ..training(1, 8, 4)
    };
    bench.learner_says(FromLearner::Submit(spec.clone()));
    let refused = to_learner_in(&bench.out)
        .into_iter()
        .find_map(|message| match message {
            ToLearner::Submitted { refused, .. } => refused,
            _ => None,
        });
    let fault = refused.expect("refused");
    assert_eq!(fault.code, ErrorCode::InvalidRequest);
    assert!(fault.message.contains("length bias"), "{fault}");
    let take = Some(Take {
        results: 2,
        bias_ok: true,
    });
    bench.learner_says(FromLearner::Submit(JobSpec { take, ..spec }));
    bench.learner_says(FromLearner::Admit { job: JOB, upto: 4 });
    bench.receipt(1, JOB, &[(0, Verdict::Accepted), (2, Verdict::Accepted)]);
    let unwanted = [1, 3].map(|index| (index, ErrorCode::JobCancelled));
    assert_eq!(told_failed(&bench.out), unwanted);
    assert_eq!(summary(&bench, JOB).state, JobState::Done);
    // A learner that missed it hears it again.
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![(0, 1), (2, 3)],
        failed: vec![(1, 2)],
    });
    assert_eq!(told_failed(&bench.out), unwanted[1..]);
}

#[test]
fn a_cancelled_job_tells_failures_from_what_was_not_wanted() {
    let mut bench = Bench::new();
    bench.submit(map(1, 5));
    bench.worker(7, 2, Vec::new(), 0);
    let leases = bench.ready(7, 2);
    bench.fail(7, leases[0].attempt, ErrorCode::EnvUnknown, false);
    bench.ask(RequestBody::JobCancel(JOB));
    bench.restart();
    let job = summary(&bench, JOB);
    assert_eq!(
        (job.state, job.failed, job.cancelled),
        (JobState::Cancelled, 1, 4)
    );
}

#[test]
fn records_of_before_are_still_read() {
    let policy = r#"{"retries":3,"losses":3,"backoff_ms":100,"backoff_max_ms":10000,
        "start_to_close_ms":600000}"#;
    let policy: volley_protocol::RetryPolicy = serde_json::from_str(policy).expect("readable");
    assert_eq!(policy, volley_protocol::RetryPolicy::default());
    let closed = r#"{"JobClosed":{"job":"00000000000000000000000000000001","state":"Done"}}"#;
    let shown = serde_json::to_string(&JOB).expect("JSON");
    let closed = closed.replace("\"00000000000000000000000000000001\"", &shown);
    let record: Record = serde_json::from_str(&closed).expect("readable");
    let state = JobState::Done;
    assert_eq!(
        record,
        Record::JobClosed {
            job: JOB,
            state,
            cancelled: Vec::new()
        }
    );
    let mut spec = serde_json::to_value(map(1, 2)).expect("JSON");
    spec.as_object_mut().expect("an object").remove("take");
    assert_eq!(
        serde_json::from_value::<JobSpec>(spec).expect("readable"),
        map(1, 2)
    );
}
