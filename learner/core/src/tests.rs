//! The promises of a learner: each by name, then all of them under random histories with crashes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::learner::{FromLearner, ReceiptEntry, ToLearner, Verdict};
use volley_protocol::run::{RunInfo, RunState, StepReport};
use volley_protocol::{
    AttemptId, Digest, EnvSpec, Epoch, ErrorCode, Fault, GroupIndex, JobId, JobKind, JobSpec,
    PolicyRef, RetryPolicy, RolloutId, RunId, SamplingSpec, SinkRef, Split,
};

use crate::*;

mod histories;
mod world;

const JOB: JobId = JobId(7);
const RUN: RunId = RunId(1);
const COORDINATOR: SessionId = SessionId(1);
const WORKER: SessionId = SessionId(2);

/// Two groups of two in a step.
fn config(schedule: Schedule, steps: u64) -> Config {
    Config {
        run: RunInfo {
            run: RUN,
            name: "test".into(),
            environment: "add".into(),
            base: Digest::default(),
            steps_total: steps,
            rank: 4,
            retain_versions: 2,
        },
        job: JobSpec {
            job: JOB,
            name: "test".into(),
            kind: JobKind::Train,
            env: EnvSpec {
                name: "add".into(),
                split: Split::Train,
                config: BTreeMap::new(),
            },
            first_instance: 0,
            rollouts: steps * 4,
            group_size: 2,
            policy: PolicyRef::Latest(RUN),
            sampling: SamplingSpec::default(),
            retry: RetryPolicy::default(),
            sink: SinkRef::Learner(RUN),
            keep_ms: 0,
            take: None,
            priority: 0,
        },
        first_step: 0,
        groups_per_step: 2,
        schedule,
        min_group_size: 2,
        checkpoint_every: 2,
        numerics: "test".into(),
        sink_addr: SocketAddr::from(([127, 0, 0, 1], 1)),
    }
}

fn version(step: u64) -> AdapterVersion {
    AdapterVersion {
        run: RUN,
        lineage: 0,
        step,
        digest: Digest([step as u8 + 1; 32]),
    }
}

fn entry(step: u64) -> AdapterEntry {
    let parent = step.checked_sub(1).map(|parent| version(parent).digest);
    AdapterEntry {
        version: version(step),
        parent: parent.unwrap_or_default(),
        bytes: 100,
    }
}

fn rollout(index: u64) -> RolloutId {
    RolloutId { job: JOB, index }
}

fn arrival(index: u64, step: u64) -> Arrival {
    Arrival {
        attempt: AttemptId {
            rollout: rollout(index),
            epoch: Epoch(1),
            number: 1,
        },
        version: Some(version(step)),
        numerics: "test".into(),
        reward: 1.0,
    }
}

fn group(index: u64, members: &[u64]) -> Group {
    Group {
        index: GroupIndex(index),
        members: members.iter().copied().map(rollout).collect(),
        degraded: members.len() < 2,
    }
}

/// A new run: version 0 and nothing else.
fn fresh() -> Restored {
    Restored {
        versions: vec![entry(0)],
        intake_first: 1,
        intake_next: 1,
        ..Restored::default()
    }
}

/// A learner and what it asked for since the last look.
struct Bench {
    learner: Learner,
    now: u64,
    seq: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn new(config: Config) -> Self {
        Self::restored(config, fresh())
    }

    fn restored(config: Config, restored: Restored) -> Self {
        Self {
            learner: Learner::new(config, restored).expect("valid"),
            now: 0,
            seq: 1,
            effects: Vec::new(),
        }
    }

    /// A learner with a coordinator, after the first words.
    fn connected(config: Config) -> Self {
        let mut bench = Self::new(config);
        bench.apply(Input::CoordinatorUp {
            session: COORDINATOR,
        });
        bench.take();
        bench
    }

    fn apply(&mut self, input: Input) {
        self.learner
            .apply(Millis(self.now), input, &mut self.effects);
        self.learner.check_invariants();
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn say(&mut self, message: ToLearner) {
        let session = COORDINATOR;
        self.apply(Input::Coordinator { session, message });
    }

    fn arrive(&mut self, arrivals: &[(u64, u64)]) {
        let records = arrivals
            .iter()
            .map(|(index, step)| Ok(arrival(*index, *step)));
        let first_seq = self.seq;
        self.seq += arrivals.len() as u64;
        self.apply(Input::Arrived {
            session: WORKER,
            first_seq,
            records: records.collect(),
        });
    }

    /// Results arrive and are synced.
    fn settle(&mut self, arrivals: &[(u64, u64)]) {
        self.arrive(arrivals);
        self.sync();
    }

    fn sync(&mut self) {
        let upto = self.learner.ledger.last_write();
        self.apply(Input::Synced { upto });
    }

    fn fail(&mut self, index: u64, code: ErrorCode) {
        self.say(ToLearner::RolloutFailed {
            rollout: rollout(index),
            fault: Fault::new(code, "no"),
        });
    }

    fn step_done(&mut self, step: u64) {
        self.apply(Input::StepDone {
            report: Box::default(),
            entry: entry(step),
        });
    }

    fn batch(&mut self) -> Option<Batch> {
        self.take().into_iter().find_map(|effect| match effect {
            Effect::Step(batch) => Some(batch),
            _ => None,
        })
    }
}

fn receipt(seq: u64, entries: &[(u64, Verdict)]) -> Effect {
    let entries = entries.iter().map(|(index, verdict)| ReceiptEntry {
        rollout: rollout(*index),
        verdict: *verdict,
    });
    let entries = entries.collect();
    Effect::Send(FromLearner::Receipt { seq, entries })
}

fn delivered(upto: u64) -> Effect {
    let session = WORKER;
    Effect::Delivered { session, upto }
}

#[test]
fn a_session_begins_with_everything_the_coordinator_must_know() {
    let mut bench = Bench::new(config(Schedule::Sync, 2));
    bench.settle(&[(1, 0)]);
    bench.take();
    bench.apply(Input::CoordinatorUp {
        session: COORDINATOR,
    });
    let said = bench.take();
    let said = said.into_iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(message),
        _ => None,
    });
    let said: Vec<_> = said.collect();
    assert!(
        matches!(&said[0], FromLearner::Register { versions, state: RunState::Training, .. }
        if *versions == [entry(0)])
    );
    assert!(matches!(&said[1], FromLearner::Submit(spec) if spec.job == JOB));
    assert!(
        matches!(&said[2], FromLearner::Reconcile { accepted, failed, .. }
        if *accepted == [(1, 2)] && failed.is_empty())
    );
    assert_eq!(said[3], FromLearner::Admit { job: JOB, upto: 4 });
}

#[test]
fn nothing_is_told_before_it_is_synced() {
    let mut bench = Bench::connected(config(Schedule::Sync, 1));
    bench.arrive(&[(1, 0)]);
    let keep = vec![Keep {
        record: 0,
        rollout: rollout(1),
    }];
    let intake = Effect::Intake {
        number: 1,
        keep,
        failed: vec![],
    };
    assert_eq!(bench.take(), [intake]);
    bench.sync();
    let told = [delivered(1), receipt(1, &[(1, Verdict::Accepted)])];
    assert_eq!(bench.take(), told);
}

#[test]
fn a_duplicate_gets_the_same_answers_and_is_not_kept() {
    let mut bench = Bench::connected(config(Schedule::Sync, 1));
    bench.settle(&[(1, 0)]);
    bench.take();
    bench.arrive(&[(1, 0)]);
    let told = [delivered(2), receipt(2, &[(1, Verdict::Accepted)])];
    assert_eq!(bench.take(), told);
    assert_eq!(bench.learner.counters().duplicates, 1);
}

#[test]
fn a_duplicate_of_what_is_being_written_waits_for_it() {
    let mut bench = Bench::connected(config(Schedule::Sync, 1));
    bench.arrive(&[(1, 0), (1, 0)]);
    bench.arrive(&[(1, 0)]);
    assert!(
        !bench
            .take()
            .iter()
            .any(|e| matches!(e, Effect::Delivered { .. }))
    );
    bench.sync();
    assert!(bench.take().contains(&delivered(3)));
}

#[test]
fn a_failure_is_settled_once_and_never_beats_a_result() {
    let mut bench = Bench::connected(config(Schedule::Sync, 1));
    bench.settle(&[(0, 0)]);
    bench.take();
    bench.fail(0, ErrorCode::EnvFailed);
    assert_eq!(bench.take(), [receipt(2, &[(0, Verdict::Accepted)])]);
    bench.fail(1, ErrorCode::EnvFailed);
    bench.fail(1, ErrorCode::EnvFailed);
    let intake = Effect::Intake {
        number: 2,
        keep: vec![],
        failed: vec![rollout(1)],
    };
    assert_eq!(bench.take(), [intake]);
    bench.sync();
    bench.settle(&[(1, 0)]);
    assert!(bench.take().contains(&receipt(4, &[(1, Verdict::Failed)])));
}

#[test]
fn a_synchronous_batch_is_in_order_whatever_came_first() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    bench.settle(&[(3, 0), (1, 0)]);
    bench.settle(&[(2, 0)]);
    assert!(bench.batch().is_none());
    bench.now = 70;
    bench.settle(&[(0, 0)]);
    let batch = bench.batch().expect("both groups are whole");
    assert_eq!(batch.groups, [group(0, &[0, 1]), group(1, &[2, 3])]);
    assert_eq!(
        (batch.step, batch.parent, batch.wait_ms),
        (1, version(0), 70)
    );
}

#[test]
fn a_step_is_published_before_the_next_rollouts_are_admitted() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    bench.settle(&[(0, 0), (1, 0), (2, 0), (3, 0)]);
    bench.take();
    bench.arrive(&[(4, 0)]);
    assert_eq!(bench.learner.counters().unusable, 1, "it was not admitted");
    bench.take();
    bench.step_done(1);
    let next = [
        Effect::Send(FromLearner::Published(entry(1))),
        Effect::Send(FromLearner::Progress(StepReport::default())),
        Effect::Discard(vec![rollout(0), rollout(1)]),
        Effect::Discard(vec![rollout(2), rollout(3)]),
        Effect::Send(FromLearner::Admit { job: JOB, upto: 8 }),
    ];
    assert_eq!(bench.take(), next);
}

#[test]
fn a_finished_run_is_checkpointed_and_stays_until_it_is_stopped() {
    let mut bench = Bench::connected(config(Schedule::Sync, 1));
    bench.settle(&[(0, 0), (1, 0), (2, 0), (3, 0)]);
    bench.step_done(1);
    let effects = bench.take();
    assert!(effects.contains(&Effect::Checkpoint { step: 1 }));
    assert!(effects.contains(&Effect::TrimIntake { below: 2 }));
    let finished = RunState::Finished;
    assert_eq!(
        effects.last(),
        Some(&Effect::Send(FromLearner::State(finished.clone())))
    );
    bench.say(ToLearner::Stop);
    assert!(bench.take().is_empty(), "a receipt is not acknowledged");
    bench.say(ToLearner::ReceiptAck { upto: 1 });
    assert_eq!(bench.take(), [Effect::Exit(finished)]);
}

#[test]
fn a_group_that_lost_members_is_degraded_or_dropped() {
    for (least, groups) in [
        (1, vec![group(0, &[0]), group(1, &[2, 3])]),
        (2, vec![group(1, &[2, 3])]),
    ] {
        let mut config = config(Schedule::Sync, 1);
        config.min_group_size = least;
        let mut bench = Bench::connected(config);
        bench.fail(1, ErrorCode::EnvFailed);
        bench.settle(&[(0, 0), (2, 0), (3, 0)]);
        let batch = bench.batch().expect("every rollout is settled");
        assert_eq!(batch.groups, groups);
        assert_eq!(batch.failed, [rollout(1)]);
        assert_eq!(batch.dropped.is_empty(), least == 1);
    }
}

#[test]
fn a_step_without_any_group_is_made_all_the_same() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    (0..4).for_each(|index| bench.fail(index, ErrorCode::EnvFailed));
    bench.sync();
    let batch = bench.batch().expect("nothing is left to wait for");
    assert!(batch.groups.is_empty());
    assert_eq!(batch.dropped, [GroupIndex(0), GroupIndex(1)]);
    bench.step_done(1);
    assert_eq!(bench.learner.chain.head().version, version(1));
}

#[test]
fn a_result_of_another_version_is_a_failed_member() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    let mut foreign = arrival(0, 0);
    foreign.version = None;
    bench.apply(Input::Arrived {
        session: WORKER,
        first_seq: 1,
        records: vec![Ok(foreign), Ok(arrival(1, 1)), Err("not finite".into())],
    });
    bench.sync();
    let failed = [(0, Verdict::Failed), (1, Verdict::Failed)];
    let effects = bench.take();
    assert!(effects.contains(&receipt(1, &failed)) && effects.contains(&delivered(3)));
    assert_eq!(bench.learner.counters().mismatched, 2);
}

#[test]
fn an_asynchronous_run_takes_whole_groups_as_they_come() {
    let mut bench = Bench::connected(config(Schedule::Async { max_staleness: 1 }, 4));
    assert_eq!(bench.learner.admitted, 8);
    bench.settle(&[(6, 0), (7, 0), (2, 0)]);
    bench.settle(&[(3, 0)]);
    let batch = bench.batch().expect("two groups are whole");
    assert_eq!(batch.groups, [group(1, &[2, 3]), group(3, &[6, 7])]);
    bench.step_done(1);
    let admit = Effect::Send(FromLearner::Admit { job: JOB, upto: 12 });
    assert!(bench.take().contains(&admit));
}

#[test]
fn the_lowest_groups_go_first_when_more_than_a_batch_wait() {
    let mut bench = Bench::connected(config(Schedule::Async { max_staleness: 2 }, 4));
    bench.settle(&[(8, 0), (9, 0), (10, 0), (11, 0)]);
    bench.settle(&[(4, 0), (5, 0), (2, 0), (3, 0), (0, 0), (1, 0)]);
    bench.take();
    bench.step_done(1);
    let batch = bench.batch().expect("three groups wait");
    assert_eq!(batch.groups, [group(0, &[0, 1]), group(1, &[2, 3])]);
}

#[test]
fn nothing_beyond_the_staleness_bound_is_trained() {
    let mut bench = Bench::connected(config(Schedule::Async { max_staleness: 1 }, 4));
    bench.settle(&[(0, 0)]);
    bench.settle(&[(2, 0), (3, 0), (4, 0), (5, 0)]);
    bench.step_done(1);
    bench.settle(&[(6, 1), (7, 1), (8, 1), (9, 1)]);
    bench.step_done(2);
    bench.take();
    bench.settle(&[(1, 2)]);
    assert!(
        bench
            .take()
            .contains(&Effect::Discard(vec![rollout(0), rollout(1)]))
    );
    assert_eq!(bench.learner.counters().groups.stale, 1);
}

#[test]
fn a_step_that_cannot_be_made_fails_the_run_and_publishes_nothing() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    bench.settle(&[(0, 0), (1, 0), (2, 0), (3, 0)]);
    bench.take();
    let fault = Fault::new(ErrorCode::LossNonfinite, "NaN");
    bench.apply(Input::StepFailed {
        fault: fault.clone(),
    });
    let failed = RunState::Failed(fault);
    assert_eq!(
        bench.take(),
        [Effect::Send(FromLearner::State(failed.clone()))]
    );
    assert_eq!(bench.learner.state(), failed);
}

#[test]
fn a_stop_waits_for_the_running_step() {
    let mut bench = Bench::connected(config(Schedule::Sync, 3));
    bench.settle(&[(0, 0), (1, 0), (2, 0), (3, 0)]);
    bench.say(ToLearner::ReceiptAck { upto: 1 });
    bench.take();
    bench.apply(Input::Stop);
    assert!(bench.take().is_empty());
    bench.step_done(1);
    let effects = bench.take();
    let end = [
        Effect::Checkpoint { step: 1 },
        Effect::TrimIntake { below: 2 },
        Effect::Send(FromLearner::State(RunState::Stopped)),
        Effect::Exit(RunState::Stopped),
    ];
    assert!(effects.ends_with(&end), "{effects:?}");
}

#[test]
fn a_cancelled_or_refused_job_fails_the_run() {
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    bench.fail(7, ErrorCode::JobCancelled);
    assert!(
        matches!(bench.learner.state(), RunState::Failed(f) if f.code == ErrorCode::JobCancelled)
    );
    let mut bench = Bench::connected(config(Schedule::Sync, 2));
    bench.say(ToLearner::Submitted {
        job: JOB,
        refused: Some(Fault::new(ErrorCode::JobConflict, "no")),
    });
    assert!(
        matches!(bench.learner.state(), RunState::Failed(f) if f.code == ErrorCode::JobConflict)
    );
}

#[test]
fn the_head_is_never_deleted() {
    let mut restored = fresh();
    restored.versions = vec![entry(0), entry(1)];
    restored.closed.insert_range(0, 2);
    let mut bench = Bench::restored(config(Schedule::Sync, 2), restored);
    bench.apply(Input::CoordinatorUp {
        session: COORDINATOR,
    });
    bench.take();
    bench.say(ToLearner::Collect(vec![
        version(0).digest,
        version(1).digest,
    ]));
    let gone = vec![version(0).digest];
    let collected = Effect::Send(FromLearner::Collected(gone.clone()));
    assert_eq!(bench.take(), [Effect::DeleteAdapters(gone), collected]);
}

#[test]
fn what_contradicts_itself_is_not_taken_up() {
    let mut restored = fresh();
    restored.closed.insert_range(0, 1);
    let fault = Learner::new(config(Schedule::Sync, 2), restored).expect_err("half a step");
    assert_eq!(fault.code, ErrorCode::CheckpointInvalid);
    let fault = Learner::new(config(Schedule::Sync, 2), Restored::default());
    assert!(fault.is_err(), "no version");
    let mut other = config(Schedule::Sync, 2);
    other.job.rollouts = 6;
    let fault = Learner::new(other, fresh()).expect_err("too few rollouts");
    assert_eq!(fault.code, ErrorCode::ConfigInvalid);
}

#[test]
fn results_of_an_abandoned_lineage_are_let_go_after_a_restart() {
    let mut restored = fresh();
    let mut raised = entry(0);
    raised.version.lineage = 1;
    restored.versions = vec![raised];
    restored.pending = vec![arrival(0, 0)];
    (restored.intake_first, restored.intake_next) = (1, 2);
    let mut bench = Bench::restored(config(Schedule::Sync, 1), restored);
    bench.apply(Input::Tick);
    assert_eq!(bench.take(), [Effect::Discard(vec![rollout(0)])]);
    assert_eq!(bench.learner.ledger.verdict(0), Some(Verdict::Accepted));
}
