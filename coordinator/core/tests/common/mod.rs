//! A coordinator on a bench: inputs in, effects out, by hand.

#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use volley_coordinator_core::{
    Coordinator, CoordinatorConfig, Effect, Input, Millis, Record, SessionId,
};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::client::{ClientRequest, ReplyBody, RequestBody};
use volley_protocol::learner::{FromLearner, ReceiptEntry, ToLearner, Verdict};
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::snapshot::ClusterSnapshot;
use volley_protocol::worker::{FromWorker, Lease, ToWorker, WorkerLoad};
use volley_protocol::{
    AdapterVersion, AttemptId, Digest, EnvSpec, Epoch, ErrorCode, Fault, JobId, JobKind, JobSpec,
    PeerId, PolicyRef, RetryPolicy, RolloutId, RunId, SamplingSpec, SinkRef, Split,
};

pub(crate) const RUN: RunId = RunId(5);
pub(crate) const SINK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7);
pub(crate) const LEARNER: SessionId = SessionId(500);
const CLIENT: SessionId = SessionId(900);

pub(crate) struct Bench {
    pub(crate) core: Coordinator,
    pub(crate) now: u64,
    /// Effects of the last input.
    pub(crate) out: Vec<Effect>,
    /// Everything recorded.
    pub(crate) disk: Vec<Record>,
    pub(crate) config: CoordinatorConfig,
    last_session: u64,
    sessions: BTreeMap<u64, SessionId>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(CoordinatorConfig::default())
    }

    pub(crate) fn with(config: CoordinatorConfig) -> Self {
        let core = Coordinator::new(config.clone(), Epoch(1));
        let mut bench = Self {
            core,
            now: 1_000,
            out: Vec::new(),
            disk: Vec::new(),
            config,
            last_session: 0,
            sessions: BTreeMap::new(),
        };
        bench.say(Input::Start);
        bench
    }

    /// The process dies and comes back with what was recorded.
    pub(crate) fn restart(&mut self) {
        let epoch = Epoch(self.core.epoch().0 + 1);
        self.core = Coordinator::restore(self.config.clone(), epoch, self.disk.clone());
        self.sessions.clear();
        self.say(Input::Start);
    }

    pub(crate) fn say(&mut self, input: Input) -> &[Effect] {
        self.out.clear();
        self.core.apply(Millis(self.now), input, &mut self.out);
        let records = self.out.iter().filter_map(|effect| match effect {
            Effect::Persist(record) => Some(record.clone()),
            _ => None,
        });
        self.disk.extend(records);
        let done = self.out.iter().filter_map(|effect| match effect {
            Effect::PayloadsDone { job, start } => Some((*job, *start)),
            _ => None,
        });
        let done: Vec<_> = done.collect();
        for record in &mut self.disk {
            if let Record::Put {
                job,
                start,
                payloads,
                ..
            } = record
                && done.contains(&(*job, *start))
            {
                *payloads = None;
            }
        }
        self.core
            .check_invariants()
            .expect("invariants hold after every input");
        &self.out
    }

    /// Time passes, with ticks.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<Effect> {
        let until = self.now + ms;
        let mut all = Vec::new();
        while self.now < until {
            self.now = (self.now + 100).min(until);
            all.extend_from_slice(self.say(Input::Tick));
        }
        all
    }

    pub(crate) fn session(&self, worker: u64) -> SessionId {
        self.sessions[&worker]
    }

    /// A worker's session opens.
    pub(crate) fn worker(&mut self, id: u64, slots: u32, held: Vec<AttemptId>, provision: u64) {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.sessions.insert(id, session);
        let (worker, name) = (PeerId(id), format!("worker-{id}"));
        self.say(Input::WorkerUp {
            session,
            worker,
            name,
            pid: id as u32,
        });
        let register = FromWorker::Register {
            slots,
            numerics: "test".into(),
            base: Digest::default(),
            provision,
            held,
            live: Vec::new(),
        };
        self.worker_says(id, register);
    }

    pub(crate) fn worker_says(&mut self, id: u64, message: FromWorker) -> &[Effect] {
        let session = self.session(id);
        self.say(Input::Worker { session, message })
    }

    /// A worker allows leases; gives back those it got.
    pub(crate) fn ready(&mut self, id: u64, credit_total: u64) -> Vec<Lease> {
        self.worker_says(id, FromWorker::Ready { credit_total });
        self.leases(id)
    }

    pub(crate) fn heartbeat(&mut self, id: u64, held: Vec<AttemptId>) {
        let load = WorkerLoad::default();
        self.worker_says(id, FromWorker::Heartbeat { held, load });
    }

    pub(crate) fn fail(&mut self, id: u64, attempt: AttemptId, code: ErrorCode, retryable: bool) {
        let fault = Fault::new(code, "as planned");
        self.worker_says(
            id,
            FromWorker::AttemptFailed {
                attempt,
                fault,
                retryable,
            },
        );
    }

    /// Leases in the last effects for a worker.
    pub(crate) fn leases(&self, id: u64) -> Vec<Lease> {
        leases_in(&self.out, self.session(id))
    }

    pub(crate) fn ask(&mut self, body: RequestBody) -> Option<ReplyBody> {
        self.ask_as(body, false)
    }

    pub(crate) fn ask_as(&mut self, body: RequestBody, monitor: bool) -> Option<ReplyBody> {
        let request = ClientRequest { id: 3, body };
        self.say(Input::Client {
            session: CLIENT,
            request,
            monitor,
        });
        reply_in(&self.out)
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> ReplyBody {
        self.ask(RequestBody::Submit(spec))
            .expect("submits are answered at once")
    }

    pub(crate) fn settle(&mut self, job: JobId, indices: &[u64]) {
        let entries = indices
            .iter()
            .map(|index| RolloutId { job, index: *index })
            .collect();
        self.say(Input::RelaySettled { entries });
    }

    pub(crate) fn snapshot(&self) -> ClusterSnapshot {
        self.core.snapshot(Millis(self.now))
    }

    /// (queued, leased, accepted, failed) of a job.
    pub(crate) fn counts(&self, job: JobId) -> (u64, u64, u64, u64) {
        let jobs = self.snapshot().jobs;
        let job = jobs
            .iter()
            .find(|summary| summary.job == job)
            .expect("it is known");
        (job.queued, job.leased, job.accepted, job.failed)
    }

    /// The run's learner connects with these steps published.
    pub(crate) fn learner(&mut self, steps: std::ops::Range<u64>) {
        self.say(Input::LearnerUp {
            session: LEARNER,
            peer: PeerId(50),
            pid: 50,
        });
        let register = FromLearner::Register {
            info: run_info(),
            sink: SINK,
            versions: steps.map(entry).collect(),
            state: RunState::Training,
        };
        self.learner_says(register);
    }

    pub(crate) fn learner_says(&mut self, message: FromLearner) -> &[Effect] {
        self.say(Input::Learner {
            session: LEARNER,
            message,
        })
    }

    pub(crate) fn receipt(&mut self, seq: u64, job: JobId, entries: &[(u64, Verdict)]) {
        let entry = |(index, verdict): &(u64, Verdict)| ReceiptEntry {
            rollout: RolloutId { job, index: *index },
            verdict: *verdict,
        };
        let entries = entries.iter().map(entry).collect();
        self.learner_says(FromLearner::Receipt { seq, entries });
    }
}

pub(crate) fn leases_in(effects: &[Effect], of: SessionId) -> Vec<Lease> {
    let leases = effects.iter().filter_map(|effect| match effect {
        Effect::ToWorker {
            session,
            message: ToWorker::Lease { leases, .. },
            ..
        } if *session == of => Some(leases.clone()),
        _ => None,
    });
    leases.flatten().collect()
}

pub(crate) fn revoked_in(effects: &[Effect]) -> Vec<AttemptId> {
    let revoked = effects.iter().filter_map(|effect| match effect {
        Effect::ToWorker {
            message: ToWorker::Revoke(attempts),
            ..
        } => Some(attempts.clone()),
        _ => None,
    });
    revoked.flatten().collect()
}

pub(crate) fn to_learner_in(effects: &[Effect]) -> Vec<ToLearner> {
    let said = effects.iter().filter_map(|effect| match effect {
        Effect::ToLearner { message, .. } => Some(message.clone()),
        _ => None,
    });
    said.collect()
}

pub(crate) fn reply_in(effects: &[Effect]) -> Option<ReplyBody> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply { reply, .. } => Some(reply.body.clone()),
        _ => None,
    })
}

pub(crate) fn code_of(body: Option<ReplyBody>) -> Option<ErrorCode> {
    match body {
        Some(ReplyBody::Fault(fault)) => Some(fault.code),
        _ => None,
    }
}

/// A map for the relay.
pub(crate) fn map(job: u128, rollouts: u64) -> JobSpec {
    JobSpec {
        job: JobId(job),
        name: format!("job-{job}"),
        kind: JobKind::Map,
        env: EnvSpec {
            name: "echo".into(),
            split: Split::Train,
            config: BTreeMap::new(),
        },
        first_instance: 0,
        rollouts,
        group_size: 1,
        policy: PolicyRef::Base,
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 0,
        take: None,
        priority: 0,
    }
}

/// A training job of the bench's run.
pub(crate) fn training(job: u128, rollouts: u64, group_size: u32) -> JobSpec {
    JobSpec {
        kind: JobKind::Train,
        group_size,
        policy: PolicyRef::Latest(RUN),
        sink: SinkRef::Learner(RUN),
        ..map(job, rollouts)
    }
}

pub(crate) fn run_info() -> RunInfo {
    RunInfo {
        run: RUN,
        name: "demo".into(),
        environment: "echo".into(),
        base: Digest::default(),
        steps_total: 10,
        rank: 8,
        retain_versions: 2,
    }
}

pub(crate) fn version(step: u64) -> AdapterVersion {
    AdapterVersion {
        run: RUN,
        lineage: 0,
        step,
        digest: Digest::of(&step.to_le_bytes()),
    }
}

pub(crate) fn entry(step: u64) -> AdapterEntry {
    let parent = step
        .checked_sub(1)
        .map_or_else(Digest::default, |before| version(before).digest);
    AdapterEntry {
        version: version(step),
        parent,
        bytes: 1,
    }
}
