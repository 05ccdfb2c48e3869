//! Worker ↔ coordinator, learner ↔ coordinator, worker ↔ sink.

use volley_protocol::codec::Blob;
use volley_protocol::delivery::{FromSink, ToSink};
use volley_protocol::ids::Epoch;
use volley_protocol::learner::{FromLearner, ReceiptEntry, ToLearner, Verdict};
use volley_protocol::run::RunState;
use volley_protocol::worker::{FromWorker, Lease, LeasePolicy, SinkAddr, ToWorker, WorkerLoad};

use super::Sample;
use super::data::{self, JOB};

/// Both directions.
pub(crate) fn worker() -> Vec<Sample> {
    let mut samples = from_worker();
    samples.extend(to_worker());
    samples
}

/// Both directions.
pub(crate) fn learner() -> Vec<Sample> {
    let mut samples = from_learner();
    samples.extend(to_learner());
    samples
}

/// Both directions.
pub(crate) fn delivery() -> Vec<Sample> {
    let digest = data::digest(0xc0);
    let to = |name: &str, message: ToSink| Sample::of(format!("ToSink.{name}"), message);
    let from = |name: &str, message: FromSink| Sample::of(format!("FromSink.{name}"), message);
    vec![
        to("Fetch", ToSink::Fetch { digest }),
        from("Delivered", FromSink::Delivered { upto: 9 }),
        from("AdapterMissing", FromSink::AdapterMissing { digest }),
    ]
}

fn from_worker() -> Vec<Sample> {
    let sample = |name: &str, message| Sample::of(format!("FromWorker.{name}"), message);
    let register = FromWorker::Register {
        slots: 16,
        numerics: "cpu-f32-1".into(),
        base: data::digest(0x80),
        provision: 12,
        held: vec![data::attempt()],
        live: vec![data::digest(0xc0)],
    };
    let load = WorkerLoad {
        busy_slots: 1,
        undelivered_bytes: 2,
        episodes_total: 3,
        tokens_total: 4,
        prefill_tokens_total: 5,
        adapter_step: 6,
    };
    let heartbeat = FromWorker::Heartbeat {
        held: vec![data::attempt()],
        load,
    };
    let failed = FromWorker::AttemptFailed {
        attempt: data::attempt(),
        fault: data::fault(),
        retryable: true,
    };
    let version = data::version();
    vec![
        sample("Register", register),
        sample("Ready", FromWorker::Ready { credit_total: 32 }),
        sample("Heartbeat", heartbeat),
        sample("AttemptFailed", failed),
        sample("Live", FromWorker::Live { version }),
        sample("Drained", FromWorker::Drained),
    ]
}

fn to_worker() -> Vec<Sample> {
    let sample = |name: &str, message| Sample::of(format!("ToWorker.{name}"), message);
    let base = Lease {
        attempt: data::attempt(),
        instance: 101,
        seed: 0x0a0b_0c0d_0e0f_1011,
        policy: LeasePolicy::Base,
        sink: SinkAddr::Relay,
        lease_ms: 10_000,
        payload: Blob::default(),
    };
    let policy = LeasePolicy::Adapter {
        version: data::version(),
        source: data::addr_v4(),
    };
    let adapted = Lease {
        policy,
        sink: SinkAddr::Learner(data::addr_v6()),
        payload: Blob(b"2+2=".to_vec()),
        ..base
    };
    let lease = ToWorker::Lease {
        epoch: Epoch(3),
        leases: vec![base, adapted],
    };
    let announce = ToWorker::Announce {
        version: data::version(),
        source: data::addr_v4(),
    };
    let deadline_ms = 30_000;
    vec![
        sample("Job", ToWorker::Job(data::job())),
        sample("Lease", lease),
        sample("Revoke", ToWorker::Revoke(vec![data::attempt()])),
        sample("Forget", ToWorker::Forget(JOB)),
        sample("Announce", announce),
        sample("Retire", ToWorker::Retire(vec![data::digest(0xc0)])),
        sample("Drain", ToWorker::Drain { deadline_ms }),
        sample("Delivered", ToWorker::Delivered { upto: 9 }),
    ]
}

fn from_learner() -> Vec<Sample> {
    let sample = |name: &str, message| Sample::of(format!("FromLearner.{name}"), message);
    let register = FromLearner::Register {
        info: data::run_info(),
        sink: data::addr_v4(),
        versions: vec![data::entry()],
        state: RunState::Training,
    };
    let reconcile = FromLearner::Reconcile {
        job: JOB,
        accepted: vec![(0, 4), (6, 8)],
        failed: vec![(4, 5)],
    };
    let entry = |verdict| ReceiptEntry {
        rollout: data::rollout(),
        verdict,
    };
    let receipt = FromLearner::Receipt {
        seq: 1,
        entries: vec![entry(Verdict::Accepted), entry(Verdict::Failed)],
    };
    let collected = FromLearner::Collected(vec![data::digest(0x40)]);
    vec![
        sample("Register", register),
        sample("Submit", FromLearner::Submit(data::job())),
        sample("Reconcile", reconcile),
        sample("Admit", FromLearner::Admit { job: JOB, upto: 64 }),
        sample("Receipt", receipt),
        sample("Published", FromLearner::Published(data::entry())),
        sample("Progress", FromLearner::Progress(data::step_report())),
        sample("State", FromLearner::State(RunState::Finished)),
        sample("Collected", collected),
    ]
}

fn to_learner() -> Vec<Sample> {
    let sample = |name: &str, message| Sample::of(format!("ToLearner.{name}"), message);
    let submitted = |refused| ToLearner::Submitted { job: JOB, refused };
    let failed = ToLearner::RolloutFailed {
        rollout: data::rollout(),
        fault: data::fault(),
    };
    let collect = ToLearner::Collect(vec![data::digest(0x40)]);
    vec![
        sample("Submitted", submitted(None)),
        sample("Submitted.refused", submitted(Some(data::fault()))),
        sample("ReceiptAck", ToLearner::ReceiptAck { upto: 1 }),
        sample("RolloutFailed", failed),
        sample("Collect", collect),
        sample("Stop", ToLearner::Stop),
    ]
}
