//! The promises of a worker: each by name, then all of them under random histories.

use std::net::SocketAddr;

use volley_protocol::codec::Blob;
use volley_protocol::delivery::FromSink;
use volley_protocol::worker::{FromWorker, Lease, LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{
    AdapterVersion, AttemptId, Digest, EnvSpec, Epoch, ErrorCode, Fault, JobId, JobKind, JobSpec,
    PolicyRef, RetryPolicy, RolloutId, RunId, SamplingSpec, SinkRef, Split,
};

use super::*;

mod histories;
mod world;

const JOB: JobId = JobId(7);
const RUN: RunId = RunId(1);

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn spec() -> JobSpec {
    JobSpec {
        job: JOB,
        name: "train".into(),
        kind: JobKind::Train,
        env: EnvSpec {
            name: "add".into(),
            split: Split::Train,
            config: std::collections::BTreeMap::new(),
        },
        first_instance: 0,
        rollouts: 1 << 20,
        group_size: 1,
        policy: PolicyRef::Latest(RUN),
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Learner(RUN),
        keep_ms: 0,
        take: None,
        priority: 0,
    }
}

fn attempt(index: u64) -> AttemptId {
    AttemptId {
        rollout: RolloutId { job: JOB, index },
        epoch: Epoch(1),
        number: 1,
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

fn lease(index: u64, policy: LeasePolicy, sink: SinkAddr) -> Lease {
    Lease {
        attempt: attempt(index),
        instance: index,
        seed: index,
        policy,
        sink,
        lease_ms: 10_000,
        payload: Blob::default(),
    }
}

fn with(step: u64) -> LeasePolicy {
    LeasePolicy::Adapter {
        version: version(step),
        source: addr(1),
    }
}

/// A worker and what it asked for since the last look.
struct Bench {
    worker: Worker,
    now: Millis,
    effects: Vec<Effect>,
}

impl Bench {
    fn new(config: Config) -> Self {
        Self {
            worker: Worker::new(config),
            now: Millis(0),
            effects: Vec::new(),
        }
    }

    /// A connected worker that was told the job.
    fn connected(slots: u32) -> Self {
        let mut bench = Self::new(Config::new(slots, "test", Digest::default()));
        bench.connect(1, 1);
        bench
    }

    fn connect(&mut self, session: u64, epoch: u64) {
        self.apply(Input::CoordinatorUp {
            session: SessionId(session),
            epoch: Epoch(epoch),
        });
        self.say(session, ToWorker::Job(spec()));
    }

    fn apply(&mut self, input: Input) {
        self.worker.apply(self.now, input, &mut self.effects);
        self.worker.check_invariants();
    }

    fn say(&mut self, session: u64, message: ToWorker) {
        let message = Box::new(message);
        let session = SessionId(session);
        self.apply(Input::Coordinator { session, message });
    }

    fn lease(&mut self, session: u64, leases: Vec<Lease>) {
        let epoch = Epoch(1);
        self.say(session, ToWorker::Lease { epoch, leases });
    }

    fn done(&mut self, index: u64) {
        self.apply(Input::EpisodeDone {
            attempt: attempt(index),
            record_bytes: 1_000,
            tokens: 10,
            prefill_tokens: 5,
        });
    }

    fn tick_at(&mut self, now: u64) {
        self.now = Millis(now);
        self.apply(Input::Tick);
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn started(&mut self) -> Vec<u64> {
        let started = self.take().into_iter().filter_map(|effect| match effect {
            Effect::StartEpisode { lease, .. } => Some(lease.attempt.rollout.index),
            _ => None,
        });
        started.collect()
    }
}

fn base(indices: std::ops::Range<u64>) -> Vec<Lease> {
    let relay = |index| lease(index, LeasePolicy::Base, SinkAddr::Relay);
    indices.map(relay).collect()
}

#[test]
fn slots_fill_in_order_and_the_queue_feeds_them() {
    let mut bench = Bench::connected(2);
    assert!(
        bench
            .take()
            .contains(&Effect::Send(FromWorker::Ready { credit_total: 4 }))
    );
    bench.lease(1, base(0..4));
    assert_eq!(bench.started(), [0, 1]);
    bench.done(0);
    assert!(
        bench
            .effects
            .contains(&Effect::Send(FromWorker::Ready { credit_total: 5 }))
    );
    assert_eq!(bench.started(), [2]);
    assert_eq!(bench.worker.load().busy_slots, 2);
}

#[test]
fn leases_above_the_credit_or_of_an_older_epoch_are_ignored() {
    let mut bench = Bench::connected(2);
    bench.lease(1, base(0..9));
    assert_eq!(bench.worker.slots.len(), 4);
    let mut bench = Bench::new(Config::new(2, "test", Digest::default()));
    bench.connect(1, 5);
    bench.lease(1, base(0..1));
    assert!(bench.started().is_empty());
}

#[test]
fn an_episode_waits_for_its_adapter_and_is_overtaken_meanwhile() {
    let mut bench = Bench::connected(2);
    let first = lease(0, with(3), SinkAddr::Relay);
    bench.lease(1, vec![first, base(1..2)[0].clone()]);
    assert!(bench.effects.contains(&Effect::DialSink { addr: addr(1) }));
    assert_eq!(bench.started(), [1]);
    let session = SessionId(50);
    bench.apply(Input::SinkUp {
        addr: addr(1),
        session,
    });
    let fetch = Effect::FetchAdapter {
        version: version(3),
        source: addr(1),
        session,
    };
    assert_eq!(bench.take(), [fetch]);
    bench.apply(Input::AdapterReady {
        version: version(3),
    });
    let live = Effect::Send(FromWorker::Live {
        version: version(3),
    });
    assert!(bench.effects.contains(&live));
    assert_eq!(bench.started(), [0]);
}

#[test]
fn a_pinned_adapter_outlives_its_retirement() {
    let mut bench = Bench::connected(1);
    bench.lease(1, vec![lease(0, with(3), SinkAddr::Relay)]);
    bench.apply(Input::AdapterReady {
        version: version(3),
    });
    bench.say(1, ToWorker::Retire(vec![version(3).digest]));
    let dropped = Effect::DropAdapters(vec![version(3).digest]);
    assert!(!bench.take().contains(&dropped));
    bench.done(0);
    assert!(bench.take().contains(&dropped));
}

#[test]
fn an_adapter_that_cannot_be_had_fails_its_attempts_retryably() {
    let mut bench = Bench::connected(2);
    bench.lease(1, vec![lease(0, with(3), SinkAddr::Relay)]);
    let session = SessionId(50);
    bench.apply(Input::SinkUp {
        addr: addr(1),
        session,
    });
    bench.take();
    let digest = version(3).digest;
    bench.apply(Input::Sink {
        addr: addr(1),
        session,
        message: FromSink::AdapterMissing { digest },
    });
    let failed = bench.take().into_iter().any(|effect| {
        matches!(effect, Effect::Send(FromWorker::AttemptFailed { attempt: a, retryable: true, fault })
            if a == attempt(0) && fault.code == ErrorCode::AdapterUnavailable)
    });
    assert!(failed);
}

#[test]
fn an_episode_may_take_its_time_counted_from_its_start() {
    let mut bench = Bench::connected(1);
    let mut spec = spec();
    spec.retry.start_to_close_ms = 5_000;
    bench.say(1, ToWorker::Job(spec));
    bench.lease(1, base(0..2));
    let mut ended = Vec::new();
    for at in (0..=10_000).step_by(100) {
        bench.now = Millis(at);
        bench.apply(Input::Tick);
        for effect in bench.take() {
            match effect {
                Effect::CancelEpisode { attempt } => ended.push((at, attempt)),
                Effect::Send(FromWorker::AttemptFailed {
                    attempt,
                    fault,
                    retryable,
                }) => {
                    assert_eq!((ended.last(), retryable), (Some(&(at, attempt)), true));
                    assert_eq!(fault.code, ErrorCode::AttemptTimeout);
                    assert!(fault.message.contains("5000 ms"), "{fault}");
                }
                _ => {}
            }
        }
    }
    // The second one waited in the queue for five seconds, which are not its own.
    assert_eq!(ended, [(5_000, attempt(0)), (10_000, attempt(1))]);
}

#[test]
fn what_is_undelivered_goes_again_under_new_numbers() {
    let mut bench = Bench::connected(4);
    bench.lease(1, base(0..3));
    (0..3).for_each(|index| bench.done(index));
    bench.say(1, ToWorker::Delivered { upto: 1 });
    assert!(bench.effects.contains(&Effect::Free {
        attempts: vec![attempt(0)]
    }));
    bench.apply(Input::CoordinatorDown {
        session: SessionId(1),
    });
    bench.take();
    bench.connect(2, 2);
    let effects = bench.take();
    let held = effects.iter().find_map(|effect| match effect {
        Effect::Send(FromWorker::Register { held, .. }) => Some(held.clone()),
        _ => None,
    });
    assert_eq!(held, Some(vec![attempt(1), attempt(2)]));
    let again = Effect::Deliver {
        sink: SinkAddr::Relay,
        session: SessionId(2),
        first_seq: 1,
        attempts: vec![attempt(1), attempt(2)],
    };
    assert!(effects.contains(&again));
}

#[test]
fn results_gather_while_the_sink_is_busy() {
    let mut bench = Bench::connected(8);
    bench.lease(1, base(0..8));
    bench.take();
    (0..8).for_each(|index| bench.done(index));
    let sizes = |effects: Vec<Effect>| -> Vec<usize> {
        let sizes = effects.into_iter().filter_map(|effect| match effect {
            Effect::Deliver { attempts, .. } => Some(attempts.len()),
            _ => None,
        });
        sizes.collect()
    };
    assert_eq!(sizes(bench.take()), [1, 1, 1, 1]);
    bench.say(1, ToWorker::Delivered { upto: 2 });
    assert_eq!(sizes(bench.take()), [4]);
}

#[test]
fn credit_is_withheld_while_results_pile_up() {
    let mut config = Config::new(4, "test", Digest::default());
    config.undelivered_bytes_max = 1_500;
    let mut bench = Bench::new(config);
    bench.connect(1, 1);
    bench.lease(1, base(0..8));
    bench.take();
    let ready = |effect: &Effect| matches!(effect, Effect::Send(FromWorker::Ready { .. }));
    (0..4).for_each(|index| bench.done(index));
    assert!(!bench.take().iter().any(ready));
    bench.say(1, ToWorker::Delivered { upto: 4 });
    assert!(bench.take().iter().any(ready));
}

#[test]
fn results_follow_a_learner_that_moved() {
    let mut bench = Bench::connected(2);
    bench.lease(1, vec![lease(0, with(3), SinkAddr::Learner(addr(1)))]);
    let session = SessionId(50);
    bench.apply(Input::SinkUp {
        addr: addr(1),
        session,
    });
    bench.apply(Input::AdapterReady {
        version: version(3),
    });
    bench.apply(Input::SinkDown {
        addr: addr(1),
        session,
    });
    bench.done(0);
    bench.take();
    let announce = ToWorker::Announce {
        version: version(4),
        source: addr(2),
    };
    bench.say(1, announce);
    assert!(bench.effects.contains(&Effect::DialSink { addr: addr(2) }));
    assert!(
        bench
            .effects
            .contains(&Effect::HangUpSink { addr: addr(1) })
    );
    let session = SessionId(51);
    bench.apply(Input::SinkUp {
        addr: addr(2),
        session,
    });
    let delivered = |effect: &Effect| {
        matches!(effect, Effect::Deliver { sink, .. }
        if *sink == SinkAddr::Learner(addr(2)))
    };
    assert!(bench.take().iter().any(delivered));
}

#[test]
fn an_old_session_acknowledges_nothing() {
    let mut bench = Bench::connected(1);
    let addr = addr(1);
    bench.lease(
        1,
        vec![lease(0, LeasePolicy::Base, SinkAddr::Learner(addr))],
    );
    for session in [SessionId(50), SessionId(51)] {
        bench.apply(Input::SinkUp { addr, session });
    }
    bench.done(0);
    bench.take();
    for (session, freed) in [(SessionId(50), false), (SessionId(51), true)] {
        let message = FromSink::Delivered { upto: 1 };
        bench.apply(Input::Sink {
            addr,
            session,
            message,
        });
        let free = |effect: &Effect| matches!(effect, Effect::Free { .. });
        assert_eq!(bench.take().iter().any(free), freed);
    }
}

#[test]
fn an_unreachable_learner_is_dialled_ever_more_slowly_and_nothing_is_lost() {
    let mut bench = Bench::connected(2);
    let sink = SinkAddr::Learner(addr(1));
    bench.lease(1, vec![lease(0, LeasePolicy::Base, sink)]);
    bench.done(0);
    bench.take();
    (1..=1_200).for_each(|tick| bench.tick_at(tick * 50));
    let dials = bench.take();
    let dials = dials
        .iter()
        .filter(|e| matches!(e, Effect::DialSink { .. }))
        .count();
    assert!((20..30).contains(&dials), "{dials} dials in a minute");
    assert_eq!(bench.worker.load().undelivered_bytes, 1_000);
}

#[test]
fn a_drained_worker_finishes_delivers_and_leaves() {
    let mut bench = Bench::connected(1);
    bench.lease(1, base(0..2));
    bench.say(1, ToWorker::Drain { deadline_ms: 1_000 });
    bench.done(0);
    assert_eq!(bench.started(), [0, 1]);
    bench.tick_at(1_000);
    let effects = bench.take();
    assert!(effects.contains(&Effect::CancelEpisode {
        attempt: attempt(1)
    }));
    bench.say(1, ToWorker::Delivered { upto: 1 });
    let reason = ExitReason::Drained;
    let end = [Effect::Send(FromWorker::Drained), Effect::Exit { reason }];
    assert!(bench.take().ends_with(&end));
}

#[test]
fn a_lonely_worker_leaves_unless_the_coordinator_comes_back() {
    let mut bench = Bench::connected(1);
    bench.lease(1, base(0..1));
    bench.apply(Input::CoordinatorDown {
        session: SessionId(1),
    });
    bench.tick_at(60_000);
    assert!(bench.worker.draining());
    bench.connect(2, 2);
    assert!(!bench.worker.draining());
    bench.apply(Input::CoordinatorDown {
        session: SessionId(2),
    });
    bench.tick_at(120_000);
    bench.tick_at(200_000);
    let reason = ExitReason::Alone;
    assert_eq!(bench.take().last(), Some(&Effect::Exit { reason }));
}

#[test]
fn a_failure_is_told_in_the_next_session() {
    let mut bench = Bench::connected(1);
    bench.lease(1, base(0..1));
    bench.apply(Input::CoordinatorDown {
        session: SessionId(1),
    });
    let fault = Fault::new(ErrorCode::EnvFailed, "no");
    bench.apply(Input::EpisodeFailed {
        attempt: attempt(0),
        fault: fault.clone(),
        retryable: false,
    });
    bench.take();
    bench.connect(2, 1);
    let told = Effect::Send(FromWorker::AttemptFailed {
        attempt: attempt(0),
        fault,
        retryable: false,
    });
    assert!(bench.take().contains(&told));
}

#[test]
fn a_heartbeat_names_everything_held() {
    let mut bench = Bench::connected(1);
    bench.lease(1, base(0..2));
    bench.done(0);
    bench.take();
    bench.tick_at(1_000);
    let held = bench.take().into_iter().find_map(|effect| match effect {
        Effect::Send(FromWorker::Heartbeat { held, .. }) => Some(held),
        _ => None,
    });
    assert_eq!(held, Some(vec![attempt(1), attempt(0)]));
}

#[test]
fn a_result_that_is_too_large_fails_for_good() {
    let mut bench = Bench::connected(1);
    bench.lease(1, base(0..1));
    bench.take();
    bench.apply(Input::EpisodeDone {
        attempt: attempt(0),
        record_bytes: 1 << 30,
        tokens: 1,
        prefill_tokens: 1,
    });
    let effects = bench.take();
    assert!(effects.contains(&Effect::Free {
        attempts: vec![attempt(0)]
    }));
    let failed = |e: &Effect| {
        matches!(
            e,
            Effect::Send(FromWorker::AttemptFailed {
                retryable: false,
                ..
            })
        )
    };
    assert!(effects.iter().any(failed));
}
