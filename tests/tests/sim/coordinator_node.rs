//! The coordinator's process: the real core, a disk, the relay.

use std::collections::BTreeMap;

use volley_coordinator_core::{
    Coordinator, CoordinatorConfig, Effect, Input, Millis, Record, ScalingConfig, SessionId,
};
use volley_protocol::job::JobState;
use volley_protocol::learner::{FromLearner, ToLearner};
use volley_protocol::worker::{FromWorker, Lease, ToWorker};
use volley_protocol::{Epoch, PeerId};
use volley_testkit::Rng;

use crate::events::{Event, Node, Wire};
use crate::plants::Plant;
use crate::relay::Relay;
use crate::topology::Topology;
use crate::world::{SYNC_MS, World};

/// Where the world's time stands on a clock that is right: hours may be taken off it.
const CLOCK_BASE_MS: u64 = 1_000 * 3_600_000;

/// The process and its disk.
#[derive(Debug)]
pub(crate) struct CoordinatorNode {
    pub(crate) core: Option<Coordinator>,
    pub(crate) life: u64,
    /// How far its clock is from the world's time.
    pub(crate) clock_off_ms: i64,
    pub(crate) sessions: BTreeMap<u64, Node>,
    pub(crate) relay: Relay,
    /// Its disk takes nothing until then.
    pub(crate) disk_full_until_ms: u64,
    config: CoordinatorConfig,
    pub(crate) disk: Vec<Record>,
    batch: Vec<Record>,
    held: Vec<Effect>,
    flying: Option<(Vec<Record>, Vec<Effect>)>,
    /// Credit as [`Plant::AddUpCredit`] counts it.
    credit: BTreeMap<u64, u64>,
}

impl CoordinatorNode {
    pub(crate) fn new(rng: &mut Rng, topology: &Topology) -> Self {
        let config = CoordinatorConfig {
            scaling: ScalingConfig {
                max_workers: topology.workers_max,
                keep_warm: rng.between(1, 4).min(u64::from(topology.workers_max)) as u32,
                slots_per_worker: 2,
                ..ScalingConfig::default()
            },
            ..CoordinatorConfig::default()
        };
        Self {
            core: None,
            life: 0,
            clock_off_ms: 0,
            sessions: BTreeMap::new(),
            relay: Relay::default(),
            disk_full_until_ms: 0,
            config,
            disk: Vec::new(),
            batch: Vec::new(),
            held: Vec::new(),
            flying: None,
            credit: BTreeMap::new(),
        }
    }

    fn clock(&self, now_ms: u64) -> Millis {
        Millis((CLOCK_BASE_MS + now_ms).saturating_add_signed(self.clock_off_ms))
    }
}

impl World {
    pub(crate) fn start_coordinator(&mut self) {
        let node = &mut self.coordinator;
        node.life += 1;
        let epoch = Epoch(node.life);
        let records = node.disk.clone();
        let restored = Coordinator::restore(node.config.clone(), epoch, records);
        // A compacted log tells the same story.
        let compacted = restored.compacted();
        let again = Coordinator::restore(node.config.clone(), epoch, compacted.clone());
        assert_eq!(again.compacted(), compacted, "compaction_is_faithful");
        self.ledger.coordinator_restarts(&compacted);
        if self.rng.chance(300) {
            node.disk = compacted
                .into_iter()
                .filter(|record| !matches!(record, Record::Epoch(_)))
                .collect();
        }
        node.core = Some(restored);
        self.net.start(Node::Coordinator);
        self.note(&[7, self.coordinator.life], &"the coordinator starts");
        self.coordinate(Input::Start);
        let life = self.coordinator.life;
        self.schedule.after(1, Event::Tick(Node::Coordinator, life));
        self.results_are_of_their_instance();
    }

    pub(crate) fn crash_coordinator(&mut self) {
        if self.coordinator.core.take().is_none() {
            return;
        }
        self.outcome.coordinator_crashes += 1;
        self.is_gone(Node::Coordinator);
        let node = &mut self.coordinator;
        node.sessions.clear();
        node.credit.clear();
        node.batch.clear();
        node.held.clear();
        // A commit is one transaction: the one under way reached the disk, or nothing of it did.
        if let Some((records, _)) = node.flying.take() {
            if self.rng.chance(500) {
                node.disk.extend(records);
            } else {
                self.outcome.torn_tails += 1;
            }
        }
        self.relay_crashes();
        // The next life reads the wall clock anew: it may have been set, also back.
        if self.rng.chance(100) {
            let hour_ms = 3_600_000;
            self.coordinator.clock_off_ms = self.rng.below(2 * hour_ms) as i64 - hour_ms as i64;
            self.outcome.clock_jumps += 1;
        }
        let pause_ms = self.rng.between(100, 5_000);
        self.schedule
            .after(pause_ms, Event::Restart(Node::Coordinator));
    }

    pub(crate) fn tick_coordinator(&mut self, life: u64) -> bool {
        let alive = self.coordinator.core.is_some() && self.coordinator.life == life;
        if alive {
            self.coordinate(Input::Tick);
        }
        alive
    }

    /// One event for the core, and what it wants done.
    pub(crate) fn coordinate(&mut self, input: Input) {
        let now = self.coordinator.clock(self.schedule.now_ms());
        let Some(core) = &mut self.coordinator.core else {
            return;
        };
        let mut effects = Vec::new();
        core.apply(now, input, &mut effects);
        let cancelled = effects.iter().find_map(|effect| match effect {
            Effect::Persist(Record::JobClosed { job, state, .. }) => {
                (*state == JobState::Cancelled).then_some(*job)
            }
            _ => None,
        });
        let unrecorded = cancelled.filter(|_| self.plant == Some(Plant::CancelUnrecorded));
        let early = self.plant == Some(Plant::AnswerEarly);
        for effect in effects {
            self.note(
                &[11, effect_number(&effect)],
                &format_args!("  coordinator: {effect:?}"),
            );
            if let Effect::ToWorker {
                session,
                message: ToWorker::Lease { leases, .. },
                ..
            } = &effect
            {
                self.leases_are_right(session.0, leases);
            }
            match effect {
                Effect::Persist(record) => {
                    self.ledger.recorded(&record);
                    let lost = match &record {
                        Record::GroupPinned { .. } => self.plant == Some(Plant::ForgetPins),
                        Record::Closed { job, .. } | Record::JobClosed { job, .. } => {
                            unrecorded == Some(*job)
                        }
                        _ => false,
                    };
                    if !lost {
                        self.coordinator.batch.push(record);
                    }
                }
                Effect::ToWorker {
                    after_commit: true, ..
                }
                | Effect::ToLearner {
                    after_commit: true, ..
                }
                | Effect::Reply {
                    after_commit: true, ..
                } if !early => {
                    self.coordinator.held.push(effect);
                }
                effect => self.carry(effect),
            }
        }
        self.begin_commit();
    }

    fn begin_commit(&mut self) {
        let node = &mut self.coordinator;
        if node.flying.is_some() || (node.batch.is_empty() && node.held.is_empty()) {
            return;
        }
        let told = |record: &Record| {
            matches!(record, Record::JobAccepted { .. } | Record::Extended { .. })
        };
        let tells_a_client = node.batch.iter().any(told);
        node.flying = Some((
            std::mem::take(&mut node.batch),
            std::mem::take(&mut node.held),
        ));
        let life = node.life;
        // What clients are told about is where a slow disk, and a crash, hurt most.
        let drags = tells_a_client && self.hurts(250);
        let sync_ms = if drags {
            self.rng.between(SYNC_MS, 6_000)
        } else {
            self.sync_ms()
        };
        let event = if self.disk_fails(Node::Coordinator) || (tells_a_client && self.hurts(30)) {
            Event::CommitFailed(life)
        } else {
            Event::Committed(life)
        };
        self.schedule.after(sync_ms, event);
        let of_thousand = match (tells_a_client, sync_ms > SYNC_MS) {
            (true, true) => 500,
            (true, false) => 60,
            (false, true) => 20,
            (false, false) => 1,
        };
        if self.hurts(of_thousand) {
            let within_ms = self.rng.below(sync_ms);
            self.schedule
                .after(within_ms, Event::CrashCoordinator(life));
        }
    }

    pub(crate) fn committed(&mut self, life: u64) {
        if self.coordinator.life != life || self.coordinator.core.is_none() {
            return;
        }
        if let Some((records, held)) = self.coordinator.flying.take() {
            for record in &records {
                if let Record::Extended { job, start, extent } = record {
                    self.relay_is_durable(*job, start + extent.rollouts);
                }
            }
            self.coordinator.disk.extend(records);
            held.into_iter().for_each(|effect| self.carry(effect));
        }
        self.begin_commit();
    }

    /// The disk did not take it: nothing more is acknowledged, the process ends and begins anew.
    pub(crate) fn commit_failed(&mut self, life: u64) {
        if self.coordinator.life != life || self.coordinator.core.is_none() {
            return;
        }
        self.outcome.disk_faults += 1;
        self.note(&[8, life], &"the coordinator's disk fails: STORE_FAILED");
        if self.plant == Some(Plant::IgnoreStoreFailure) {
            if let Some((_, held)) = self.coordinator.flying.take() {
                held.into_iter().for_each(|effect| self.carry(effect));
            }
            return self.begin_commit();
        }
        self.crash_coordinator();
    }

    fn carry(&mut self, effect: Effect) {
        match effect {
            Effect::ToWorker {
                session, message, ..
            } => self.say_worker(session.0, message),
            Effect::ToLearner {
                session, message, ..
            } => {
                let failure = matches!(message, ToLearner::RolloutFailed { .. });
                if !(failure && self.plant == Some(Plant::LoseFailures)) {
                    let message = Wire::ToLearner(Box::new(message));
                    self.send(session.0, Node::Coordinator, message);
                }
            }
            Effect::Reply { session, reply, .. } => {
                self.send(session.0, Node::Coordinator, Wire::Reply(Box::new(reply)));
            }
            Effect::RelayOpen { spec, known } => {
                self.relay_open(spec.job, known, spec.rollouts.max(known));
            }
            Effect::RelayGrew { job, rollouts } => self.relay_grew(job, rollouts),
            Effect::RelayFailed { rollout, .. } => self.relay_fails(rollout),
            Effect::RelayComplete { job } => self.relay_complete(job),
            Effect::RelayExpire { job } => {
                self.ledger.expired(job);
                self.coordinator.relay.jobs.remove(&job);
            }
            Effect::ResultsQuery {
                session,
                id,
                job,
                cursor,
                ..
            } => {
                let page = self.relay_page(id, job, cursor);
                self.send(session.0, Node::Coordinator, Wire::Page(Box::new(page)));
            }
            Effect::StartWorker { provision } => self.provision(provision),
            Effect::KillWorker { provision, .. } => self.kill_provision(provision),
            Effect::CloseSession { session, fault } => {
                self.note(&[12], &format_args!("  closes {session:?}: {fault}"));
                self.coordinator.sessions.remove(&session.0);
                self.hang_up(session.0, Node::Coordinator);
            }
            Effect::PayloadsDone { .. } => {}
            // These disks keep what was synced: a report would be a false alarm.
            Effect::Report { fault } => panic!("{fault}"),
            Effect::Persist(_) => unreachable!("persisted above"),
        }
    }

    /// The core has decided who gets what.
    fn leases_are_right(&mut self, session: u64, leases: &[Lease]) {
        let now = self.schedule.now_ms();
        self.ledger.leases_within_credit(session, leases.len());
        self.ledger.is_to_be_leased(leases);
        self.outcome.retries += leases.iter().filter(|l| l.attempt.number > 1).count() as u64;
        if now >= self.unsettled_until_ms {
            let sessions = &self.coordinator.sessions;
            let workers = self.workers.values();
            let workers = workers.filter(|worker| worker.is_well_known(now, sessions));
            let held = workers.flat_map(|worker| worker.said_held.iter());
            self.ledger.held_is_not_leased_again(held, leases);
        }
    }

    fn say_worker(&mut self, session: u64, message: ToWorker) {
        if let (ToWorker::Revoke(attempts), Some(Node::Worker(worker))) =
            (&message, self.coordinator.sessions.get(&session))
            && let Some(node) = self.workers.get_mut(worker)
        {
            attempts
                .iter()
                .for_each(|attempt| node.forget_held(attempt));
        }
        self.send(
            session,
            Node::Coordinator,
            Wire::ToWorker(Box::new(message)),
        );
    }

    pub(crate) fn coordinator_opened(&mut self, session: u64, peer: Node) {
        self.coordinator.sessions.insert(session, peer);
        let id = SessionId(session);
        match peer {
            Node::Worker(worker) => {
                let name = format!("worker-{worker}");
                let worker = PeerId(worker);
                self.coordinate(Input::WorkerUp {
                    session: id,
                    worker,
                    name,
                    pid: worker.0 as u32,
                });
            }
            Node::Learner => {
                let peer = PeerId(1_000_000 + self.learner.life);
                self.coordinate(Input::LearnerUp {
                    session: id,
                    peer,
                    pid: 2,
                });
            }
            Node::Client | Node::Coordinator => {}
        }
    }

    pub(crate) fn coordinator_hears(&mut self, session: u64, message: Wire) {
        let Some(peer) = self.coordinator.sessions.get(&session).copied() else {
            return;
        };
        let id = SessionId(session);
        match message {
            Wire::FromWorker(mut message) => {
                let names_held = matches!(
                    *message,
                    FromWorker::Register { .. } | FromWorker::Heartbeat { .. }
                );
                if let (true, Node::Worker(worker)) = (names_held, peer)
                    && let Some(node) = self.workers.get_mut(&worker)
                {
                    node.heard(session, self.schedule.now_ms());
                }
                self.plant_in(session, &mut message);
                let message = *message;
                self.coordinate(Input::Worker {
                    session: id,
                    message,
                });
            }
            Wire::FromLearner(message) => {
                self.ledger.learner_said(&message);
                let reconciles = matches!(*message, FromLearner::Reconcile { .. });
                if !(reconciles && self.plant == Some(Plant::IgnoreReconcile)) {
                    let message = *message;
                    self.coordinate(Input::Learner {
                        session: id,
                        message,
                    });
                }
            }
            Wire::Request(request) => {
                let mut request = *request;
                self.plant_in_request(&mut request.body);
                self.coordinate(Input::Client {
                    session: id,
                    request,
                    monitor: false,
                });
            }
            Wire::Results { first_seq, records } => self.relay_takes(session, first_seq, &records),
            other => panic!("the coordinator heard {other:?}"),
        }
    }

    fn plant_in(&mut self, session: u64, message: &mut FromWorker) {
        match (self.plant, message) {
            (Some(Plant::AddUpCredit), FromWorker::Ready { credit_total }) => {
                let sum = self.coordinator.credit.entry(session).or_default();
                *sum += *credit_total;
                *credit_total = *sum;
            }
            (Some(Plant::ForgetHeld), FromWorker::Register { held, .. }) => held.clear(),
            _ => {}
        }
    }

    fn plant_in_request(&self, body: &mut volley_protocol::client::RequestBody) {
        if let (Some(Plant::EndlessRetries), volley_protocol::client::RequestBody::Submit(spec)) =
            (self.plant, body)
        {
            spec.retry.losses = 1_000;
        }
    }

    pub(crate) fn coordinator_closed(&mut self, session: u64) {
        let Some(peer) = self.coordinator.sessions.remove(&session) else {
            return;
        };
        self.outcome.sessions_lost += 1;
        self.coordinator.relay.session_gone(session);
        let id = SessionId(session);
        match peer {
            Node::Worker(worker) => {
                let process_dead = !self.workers.contains_key(&worker) && self.rng.chance(500);
                self.coordinate(Input::WorkerDown {
                    session: id,
                    process_dead,
                });
            }
            Node::Learner => self.coordinate(Input::LearnerDown { session: id }),
            Node::Client | Node::Coordinator => self.coordinate(Input::ClientDown { session: id }),
        }
    }
}

fn effect_number(effect: &Effect) -> u64 {
    match effect {
        Effect::Persist(_) => 1,
        Effect::ToWorker {
            session,
            message: ToWorker::Lease { leases, .. },
            ..
        } => {
            let sum: u64 = leases
                .iter()
                .map(|lease| lease.attempt.rollout.index + 1)
                .sum();
            session.0 * 16 + 2 + (sum << 24)
        }
        Effect::ToWorker { session, .. } => session.0 * 16 + 3,
        Effect::ToLearner { session, .. } => session.0 * 16 + 4,
        Effect::Reply { session, .. } => session.0 * 16 + 5,
        Effect::StartWorker { provision } => provision * 16 + 6,
        Effect::KillWorker { provision, .. } => provision * 16 + 7,
        Effect::RelayFailed { rollout, .. } => rollout.index * 16 + 8,
        _ => 9,
    }
}
