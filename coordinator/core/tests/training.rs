//! Training: admission, versions, receipts, and a learner that comes and goes.

mod common;

use common::{
    Bench, LEARNER, RUN, SINK, code_of, entry, map, revoked_in, to_learner_in, training, version,
};
use volley_coordinator_core::{Effect, Input};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::learner::{FromLearner, ToLearner, Verdict};
use volley_protocol::run::{RunState, StepReport};
use volley_protocol::worker::{LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{ErrorCode, Fault, JobId, PolicyRef, SinkRef};

const JOB: JobId = JobId(1);

/// A learner with versions 0..=1, a training job of four groups of two, and a hungry worker.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.worker(7, 8, Vec::new(), 0);
    bench.ready(7, 100);
    bench.learner(0..2);
    bench.learner_says(FromLearner::Submit(training(1, 8, 2)));
    bench
}

fn admit(bench: &mut Bench, upto: u64) {
    bench.learner_says(FromLearner::Admit { job: JOB, upto });
}

#[test]
fn nothing_is_leased_that_is_not_admitted() {
    let mut bench = bench();
    assert_eq!(bench.counts(JOB), (8, 0, 0, 0));
    admit(&mut bench, 3);
    let leases = bench.leases(7);
    assert_eq!(leases.len(), 3);
    assert!(
        leases
            .iter()
            .all(|lease| lease.sink == SinkAddr::Learner(SINK))
    );
    admit(&mut bench, 2);
    assert!(bench.leases(7).is_empty(), "admission never falls");
    admit(&mut bench, 4);
    assert_eq!(bench.leases(7).len(), 1);
}

#[test]
fn a_group_keeps_the_version_it_was_first_leased_with() {
    let mut bench = bench();
    admit(&mut bench, 1);
    let first = bench.leases(7)[0].clone();
    let held = bench.out.iter().any(|effect| {
        matches!(
            effect,
            Effect::ToWorker {
                message: ToWorker::Lease { .. },
                after_commit: true,
                ..
            }
        )
    });
    assert!(held, "a pin is durable before anybody plays with it");
    bench.learner_says(FromLearner::Published(entry(2)));
    let announced = bench.out.iter().any(|effect| {
        matches!(
            effect,
            Effect::ToWorker {
                message: ToWorker::Announce { .. },
                ..
            }
        )
    });
    assert!(announced);
    admit(&mut bench, 3);
    let leases = bench.leases(7);
    let played = |lease: &volley_protocol::worker::Lease| match lease.policy {
        LeasePolicy::Adapter { version, .. } => version.step,
        LeasePolicy::Base => u64::MAX,
    };
    assert_eq!(
        (played(&first), played(&leases[0]), played(&leases[1])),
        (1, 1, 2)
    );
}

#[test]
fn pinned_versions_stay_until_their_groups_are_closed() {
    let mut bench = bench();
    admit(&mut bench, 2);
    let mut collected = Vec::new();
    for step in 2..6 {
        bench.learner_says(FromLearner::Published(entry(step)));
        collected.extend(to_learner_in(&bench.out));
    }
    let digests =
        |steps: &[u64]| ToLearner::Collect(steps.iter().map(|s| version(*s).digest).collect());
    assert_eq!(
        collected,
        [digests(&[0]), digests(&[2]), digests(&[3])],
        "1 is pinned, two are retained"
    );
    let delete = RequestBody::AdapterDelete { run: RUN, step: 1 };
    assert_eq!(code_of(bench.ask(delete)), Some(ErrorCode::AdapterPinned));
    bench.receipt(1, JOB, &[(0, Verdict::Accepted), (1, Verdict::Accepted)]);
    let said = to_learner_in(&bench.out);
    assert_eq!(said, [digests(&[1]), ToLearner::ReceiptAck { upto: 1 }]);
    let head = RequestBody::AdapterDelete { run: RUN, step: 5 };
    assert_eq!(code_of(bench.ask(head)), Some(ErrorCode::AdapterPinned));
    assert_eq!(
        bench.ask(RequestBody::AdapterDelete { run: RUN, step: 4 }),
        Some(ReplyBody::Done)
    );
}

#[test]
fn a_broken_chain_is_refused() {
    let mut bench = bench();
    let mut fork = entry(2);
    fork.parent = version(0).digest;
    bench.learner_says(FromLearner::Published(fork));
    let closed = bench.out.iter().any(|e| {
        matches!(
            e,
            Effect::CloseSession {
                session: LEARNER,
                ..
            }
        )
    });
    assert!(closed);
}

#[test]
fn failures_are_told_until_they_are_settled() {
    let mut bench = bench();
    admit(&mut bench, 2);
    let attempt = bench.leases(7)[0].attempt;
    bench.fail(7, attempt, ErrorCode::EnvUnknown, false);
    let failed = |bench: &Bench| {
        let said = to_learner_in(&bench.out);
        said.iter()
            .filter(|m| matches!(m, ToLearner::RolloutFailed { .. }))
            .count()
    };
    assert_eq!(failed(&bench), 1);
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.learner(0..2);
    bench.learner_says(FromLearner::Submit(training(1, 8, 2)));
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![],
        failed: vec![],
    });
    assert_eq!(failed(&bench), 1, "told again");
    bench.receipt(1, JOB, &[(0, Verdict::Failed)]);
    let acknowledged = bench.out.iter().any(|effect| {
        let ack = ToLearner::ReceiptAck { upto: 1 };
        *effect
            == Effect::ToLearner {
                session: LEARNER,
                message: ack,
                after_commit: true,
            }
    });
    assert!(acknowledged);
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![],
        failed: vec![(0, 1)],
    });
    assert_eq!(failed(&bench), 0);
    assert_eq!(bench.counts(JOB), (6, 1, 0, 1));
}

#[test]
fn without_its_learner_a_job_waits_and_wants_nobody() {
    let mut bench = bench();
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.pass(7_000);
    let problems = bench.snapshot().problems;
    assert!(
        problems
            .iter()
            .any(|p| p == "learner of demo disconnected for 7 s: training rollouts wait"),
        "{problems:?}"
    );
    bench.learner(0..2);
    bench.learner_says(FromLearner::Submit(training(1, 8, 2)));
    assert_eq!(bench.snapshot().dispatchable, 0);
    // It has said nothing of what it settled, but had time to.
    admit(&mut bench, 2);
    assert_eq!(bench.leases(7).len(), 2);
}

#[test]
fn reconcile_overrules_the_ledger() {
    let mut bench = bench();
    admit(&mut bench, 8);
    let leases = bench.leases(7);
    assert_eq!(leases.len(), 8);
    bench.receipt(1, JOB, &[(0, Verdict::Accepted), (1, Verdict::Failed)]);
    assert_eq!(bench.counts(JOB), (0, 6, 1, 1));
    let reconcile = FromLearner::Reconcile {
        job: JOB,
        accepted: vec![(1, 4)],
        failed: vec![(5, 6)],
    };
    bench.learner_says(reconcile);
    assert_eq!(revoked_in(&bench.out).len(), 3, "2, 3 and 5 are settled");
    assert_eq!(
        bench.counts(JOB),
        (0, 4, 3, 1),
        "0 is open, and leased, again"
    );
}

fn reports_in(bench: &Bench) -> Vec<String> {
    let reports = bench.out.iter().filter_map(|effect| match effect {
        Effect::Report { fault } => Some(fault.to_string()),
        _ => None,
    });
    reports.collect()
}

#[test]
fn acknowledged_results_that_their_sink_has_no_longer_are_reported_and_played_again() {
    let mut bench = bench();
    admit(&mut bench, 8);
    bench.leases(7);
    bench.receipt(1, JOB, &[(0, Verdict::Accepted), (1, Verdict::Failed)]);
    bench.receipt(2, JOB, &[(2, Verdict::Accepted), (3, Verdict::Accepted)]);
    let says = |accepted: &[(u64, u64)], failed: &[(u64, u64)]| FromLearner::Reconcile {
        job: JOB,
        accepted: accepted.to_vec(),
        failed: failed.to_vec(),
    };
    bench.learner_says(says(&[(0, 1), (2, 4)], &[(1, 2)]));
    assert_eq!(reports_in(&bench), [""; 0], "it has everything");
    bench.learner_says(says(&[(0, 1), (2, 4)], &[]));
    assert_eq!(reports_in(&bench), [""; 0], "a failure is no result");
    bench.learner_says(says(&[(0, 1)], &[]));
    let reports = reports_in(&bench);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(
        reports[0].starts_with("RESULTS_LOST: 2 acknowledged results of job"),
        "{reports:?}"
    );
    assert!(reports[0].contains("played again"), "{reports:?}");
    assert_eq!(bench.counts(JOB).2, 1, "two are open again");
    let notices = bench.snapshot().notices;
    assert!(
        notices
            .iter()
            .any(|notice| notice.text.starts_with("RESULTS_LOST"))
    );
    // Once.
    bench.learner_says(says(&[(0, 1)], &[]));
    assert_eq!(reports_in(&bench), [""; 0]);
}

#[test]
fn results_of_a_finished_job_that_are_gone_are_reported() {
    let mut bench = bench();
    admit(&mut bench, 8);
    bench.leases(7);
    bench.receipt(1, JOB, &[(0, Verdict::Accepted), (1, Verdict::Accepted)]);
    bench.learner_says(FromLearner::State(RunState::Finished));
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![(0, 1)],
        failed: vec![],
    });
    let reports = reports_in(&bench);
    assert!(reports[0].contains("1 acknowledged results"), "{reports:?}");
    assert!(reports[0].contains("not played again"), "{reports:?}");
}

#[test]
fn a_version_that_its_learner_forgot_is_reported_and_may_be_made_again() {
    let mut bench = bench();
    bench.learner_says(FromLearner::Published(entry(2)));
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.learner(0..3);
    assert_eq!(reports_in(&bench), [""; 0], "it has everything");
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.learner(0..2);
    let reports = reports_in(&bench);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(
        reports[0].contains("no record of version 0.2"),
        "{reports:?}"
    );
    bench.learner_says(FromLearner::Collected(vec![version(2).digest]));
    bench.learner_says(FromLearner::Published(entry(2)));
    let Some(ReplyBody::Adapters { entries, .. }) = bench.ask(RequestBody::AdapterList(RUN)) else {
        panic!("a list");
    };
    assert_eq!(entries.last(), Some(&entry(2)));
}

#[test]
fn a_finished_run_ends_its_jobs() {
    let mut bench = bench();
    admit(&mut bench, 4);
    bench.learner_says(FromLearner::State(RunState::Finished));
    assert_eq!(revoked_in(&bench.out).len(), 4);
    assert_eq!(bench.counts(JOB), (0, 0, 0, 0));
    assert_eq!(bench.snapshot().jobs[0].cancelled, 8, "wanted by nobody");
    assert_eq!(bench.snapshot().leased, 0);
}

#[test]
fn a_cancelled_training_job_stops_its_learner() {
    let mut bench = bench();
    admit(&mut bench, 2);
    bench.ask(RequestBody::JobCancel(JOB));
    let said = to_learner_in(&bench.out);
    assert_eq!(said.len(), 3, "two failures and a stop: {said:?}");
    assert_eq!(said[2], ToLearner::Stop);
    bench.learner_says(FromLearner::Submit(training(1, 8, 2)));
    let refused = to_learner_in(&bench.out);
    let is_cancelled =
        |fault: &Option<Fault>| fault.as_ref().map(|f| f.code) == Some(ErrorCode::JobCancelled);
    assert!(matches!(&refused[0], ToLearner::Submitted { refused, .. } if is_cancelled(refused)));
    bench.learner_says(FromLearner::Reconcile {
        job: JOB,
        accepted: vec![(0, 1)],
        failed: vec![],
    });
    assert_eq!(
        to_learner_in(&bench.out).len(),
        1,
        "1 is still to be settled"
    );
    assert_eq!(bench.counts(JOB), (0, 0, 1, 0));
    assert_eq!(bench.snapshot().jobs[0].cancelled, 7);
}

#[test]
fn clients_may_play_versions_but_not_feed_learners() {
    let mut bench = bench();
    let mut feed = map(2, 4);
    feed.sink = SinkRef::Learner(RUN);
    assert_eq!(
        code_of(Some(bench.submit(feed))),
        Some(ErrorCode::Forbidden)
    );
    let mut gone = map(3, 4);
    gone.policy = PolicyRef::Version(version(9));
    assert_eq!(
        code_of(Some(bench.submit(gone))),
        Some(ErrorCode::AdapterUnavailable)
    );
    let mut plays = map(4, 2);
    plays.policy = PolicyRef::Version(version(0));
    bench.submit(plays);
    let leases = bench.leases(7);
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|l| l.policy
        == LeasePolicy::Adapter {
            version: version(0),
            source: SINK
        }));
    for step in 2..5 {
        bench.learner_says(FromLearner::Published(entry(step)));
    }
    let Some(ReplyBody::Adapters { entries, .. }) = bench.ask(RequestBody::AdapterList(RUN)) else {
        panic!("a list");
    };
    assert_eq!(
        entries.iter().map(|e| e.version.step).collect::<Vec<_>>(),
        [0, 3, 4]
    );
}

#[test]
fn progress_is_told_when_there_is_some() {
    let mut bench = bench();
    let poll = |after_step| RequestBody::RunProgress {
        run: RUN,
        after_step,
        wait_ms: 5_000,
    };
    assert_eq!(bench.ask(poll(0)), None);
    let report = StepReport {
        step: 1,
        groups: 10,
        groups_zero_variance: 7,
        ..StepReport::default()
    };
    bench.learner_says(FromLearner::Progress(report));
    let answered = |bench: &Bench| common::reply_in(&bench.out);
    assert!(
        matches!(answered(&bench), Some(ReplyBody::Progress { reports, .. }) if reports.len() == 1)
    );
    let problems = bench.snapshot().problems;
    assert!(
        problems.contains(&"demo: reward std 0 in 70 % of groups: no gradient".into()),
        "{problems:?}"
    );
    assert_eq!(bench.ask(poll(1)), None);
    let late = bench.pass(5_100);
    assert!(
        matches!(common::reply_in(&late), Some(ReplyBody::Progress { reports, .. }) if reports.is_empty())
    );
    assert_eq!(bench.ask(poll(1)), None);
    bench.learner_says(FromLearner::State(RunState::Stopped));
    assert!(matches!(
        answered(&bench),
        Some(ReplyBody::Progress {
            state: RunState::Stopped,
            ..
        })
    ));
}

#[test]
fn the_newest_session_of_a_run_is_its_learner() {
    let mut bench = bench();
    bench.say(Input::LearnerUp {
        session: volley_coordinator_core::SessionId(501),
        peer: volley_protocol::PeerId(51),
        pid: 51,
    });
    let register = FromLearner::Register {
        info: common::run_info(),
        sink: SINK,
        versions: vec![entry(0), entry(1)],
        state: RunState::Training,
    };
    bench.say(Input::Learner {
        session: volley_coordinator_core::SessionId(501),
        message: register,
    });
    let closed = bench.out.iter().any(|e| {
        matches!(
            e,
            Effect::CloseSession {
                session: LEARNER,
                ..
            }
        )
    });
    assert!(closed);
    bench.say(Input::LearnerDown { session: LEARNER });
    assert_eq!(bench.snapshot().learner_pids, [51]);
}

#[test]
fn a_worker_that_comes_back_hears_where_the_learner_of_its_results_listens_now() {
    let mut bench = bench();
    admit(&mut bench, 2);
    let held: Vec<_> = bench.leases(7).iter().map(|lease| lease.attempt).collect();
    assert_eq!(held.len(), 2, "nothing else is left to lease");
    let session = bench.session(7);
    bench.say(Input::WorkerDown {
        session,
        process_dead: false,
    });
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.say(Input::LearnerUp {
        session: LEARNER,
        peer: volley_protocol::PeerId(51),
        pid: 51,
    });
    let elsewhere = "127.0.0.1:9".parse().expect("an address");
    bench.learner_says(FromLearner::Register {
        info: common::run_info(),
        sink: elsewhere,
        versions: (0..2).map(entry).collect(),
        state: RunState::Training,
    });
    bench.worker(7, 4, held, 0);
    let session = bench.session(7);
    let told = bench.out.iter().any(|effect| {
        matches!(effect, Effect::ToWorker { session: to, message: ToWorker::Announce { source, .. }, .. }
            if *to == session && *source == elsewhere)
    });
    assert!(told, "{:?}", bench.out);
}

#[test]
fn a_learner_that_comes_back_is_announced_to_those_who_hold_results_for_it() {
    let mut bench = bench();
    admit(&mut bench, 2);
    assert_eq!(bench.leases(7).len(), 2, "nothing else is left to lease");
    bench.say(Input::LearnerDown { session: LEARNER });
    bench.say(Input::LearnerUp {
        session: LEARNER,
        peer: volley_protocol::PeerId(51),
        pid: 51,
    });
    let elsewhere = "127.0.0.1:9".parse().expect("an address");
    bench.learner_says(FromLearner::Register {
        info: common::run_info(),
        sink: elsewhere,
        versions: (0..2).map(entry).collect(),
        state: RunState::Training,
    });
    let announced = bench.out.iter().any(|effect| {
        matches!(effect, Effect::ToWorker { message: ToWorker::Announce { source, .. }, .. }
            if *source == elsewhere)
    });
    assert!(announced);
}
