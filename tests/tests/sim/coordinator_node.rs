//! The coordinator's process: the real core, a disk, the relay.

use std::collections::{BTreeMap, BTreeSet};

use volley_coordinator_core::{
    Coordinator, CoordinatorConfig, Effect, Input, Millis, Record, ScalingConfig, SessionId,
};
use volley_learner_core::Arrival;
use volley_protocol::client::{ClientReply, ReplyBody, ResultPage};
use volley_protocol::job::{JobKind, JobState};
use volley_protocol::worker::{FromWorker, ToWorker};
use volley_protocol::{Epoch, JobId, PeerId, RangeSet, RolloutId};
use volley_testkit::Rng;

use crate::ledger::Ledger;
use crate::world::{Event, Node, Plant, Wire, World};

/// Results of one job, as the relay's segments hold them.
#[derive(Debug, Default)]
struct Segments {
    accepted: RangeSet,
    failed: RangeSet,
    /// Written, not yet synced.
    staged: BTreeSet<u64>,
    known: u64,
    rollouts: u64,
}

/// The process and its disk.
#[derive(Debug)]
pub(crate) struct CoordinatorNode {
    pub(crate) core: Option<Coordinator>,
    pub(crate) life: u64,
    pub(crate) clock_ahead_ms: u64,
    pub(crate) sessions: BTreeMap<u64, Node>,
    config: CoordinatorConfig,
    disk: Vec<Record>,
    relay: BTreeMap<JobId, Segments>,
    relay_sync_ms: u64,
    batch: Vec<Record>,
    held: Vec<Effect>,
    flying: Option<(Vec<Record>, Vec<Effect>)>,
}

impl CoordinatorNode {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let config = CoordinatorConfig {
            scaling: ScalingConfig {
                max_workers: rng.between(1, 4) as u32,
                keep_warm: 1,
                slots_per_worker: 2,
                ..ScalingConfig::default()
            },
            ..CoordinatorConfig::default()
        };
        Self {
            core: None,
            life: 0,
            clock_ahead_ms: 0,
            sessions: BTreeMap::new(),
            config,
            disk: Vec::new(),
            relay: BTreeMap::new(),
            relay_sync_ms: 0,
            batch: Vec::new(),
            held: Vec::new(),
            flying: None,
        }
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
        if self.rng.chance(300) {
            node.disk = compacted
                .into_iter()
                .filter(|record| !matches!(record, Record::Epoch(_)))
                .collect();
        }
        node.core = Some(restored);
        for segments in node.relay.values_mut() {
            segments.staged.clear();
        }
        self.net.start(Node::Coordinator);
        self.note(&[7, self.coordinator.life], &"the coordinator starts");
        self.coordinate(Input::Start);
        let life = self.coordinator.life;
        self.schedule.after(1, Event::Tick(Node::Coordinator, life));
        let known = self.totals();
        self.ledger
            .acknowledged_is_durable(|job| known.get(&job).copied());
    }

    pub(crate) fn crash_coordinator(&mut self) {
        if self.coordinator.core.take().is_none() {
            return;
        }
        self.outcome.coordinator_crashes += 1;
        self.net
            .crash::<Wire, Event>(&mut self.schedule, &mut self.rng, Node::Coordinator);
        let node = &mut self.coordinator;
        node.sessions.clear();
        node.batch.clear();
        node.held.clear();
        // The commit that was under way reached the disk, or a first part of it did.
        if let Some((records, _)) = node.flying.take() {
            let kept = self.rng.below(records.len() as u64 + 1) as usize;
            node.disk.extend(records.into_iter().take(kept));
        }
        let pause_ms = self.rng.between(100, 5_000);
        self.schedule
            .after(pause_ms, Event::Restart(Node::Coordinator));
    }

    /// Rollouts of every job that the coordinator knows.
    fn totals(&self) -> BTreeMap<JobId, u64> {
        let records = self.coordinator.core.as_ref().map(Coordinator::compacted);
        let mut totals = BTreeMap::new();
        for record in records.into_iter().flatten() {
            match record {
                Record::JobAccepted { spec, .. } => {
                    totals.insert(spec.job, spec.rollouts);
                }
                Record::Extended { job, extent, .. } => {
                    *totals.entry(job).or_default() += extent.rollouts
                }
                _ => {}
            }
        }
        totals
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
        let now = Millis(self.schedule.now_ms() + self.coordinator.clock_ahead_ms);
        let Some(core) = &mut self.coordinator.core else {
            return;
        };
        let mut effects = Vec::new();
        core.apply(now, input, &mut effects);
        for effect in effects {
            self.note(
                &[11, effect_number(&effect)],
                &format_args!("  coordinator: {effect:?}"),
            );
            let early = self.plant == Some(Plant::AcknowledgeEarly);
            match effect {
                Effect::Persist(Record::GroupPinned { .. })
                    if self.plant == Some(Plant::ForgetPins) => {}
                Effect::Persist(record) => self.coordinator.batch.push(record),
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
        // Mostly a good disk, sometimes a bad one.
        let slow = self.rng.chance(20);
        let sync_ms = if slow {
            self.rng.between(15, 800)
        } else {
            self.rng.between(1, 15)
        };
        self.schedule.after(sync_ms, Event::Committed(life));
        let chaotic = self.schedule.now_ms() < self.chaos_until_ms;
        // What clients are told about is where a crash hurts most.
        let of_thousand = if tells_a_client {
            60
        } else {
            u64::from(slow) * 20 + 1
        };
        if chaotic && self.rng.chance(of_thousand) {
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
            self.coordinator.disk.extend(records);
            held.into_iter().for_each(|effect| self.carry(effect));
        }
        self.begin_commit();
    }

    fn carry(&mut self, effect: Effect) {
        match effect {
            Effect::ToWorker {
                session, message, ..
            } => self.say_worker(session.0, message),
            Effect::ToLearner {
                session, message, ..
            } => {
                self.send(session.0, Node::Coordinator, Wire::ToLearner(message));
            }
            Effect::Reply { session, reply, .. } => {
                self.send(session.0, Node::Coordinator, Wire::Reply(Box::new(reply)));
            }
            Effect::RelayOpen { spec, known } => {
                self.relay_open(spec.job, known, spec.rollouts.max(known));
            }
            Effect::RelayGrew { job, rollouts } => {
                if let Some(segments) = self.coordinator.relay.get_mut(&job) {
                    segments.rollouts = segments.rollouts.max(rollouts);
                }
            }
            Effect::RelayFailed { rollout, .. } => {
                let segments = self.coordinator.relay.entry(rollout.job).or_default();
                let staged = segments.staged.contains(&rollout.index);
                if !segments.accepted.contains(rollout.index) && !staged {
                    segments.failed.insert(rollout.index);
                }
            }
            Effect::RelayComplete { .. } => {}
            Effect::RelayExpire { job } => {
                self.ledger.expired(job);
                self.coordinator.relay.remove(&job);
            }
            Effect::ResultsQuery { session, id, .. } => {
                let body = ReplyBody::Results(ResultPage::default());
                let reply = Box::new(ClientReply { id, body });
                self.send(session.0, Node::Coordinator, Wire::Reply(reply));
            }
            Effect::StartWorker { provision } => self.provision(provision),
            Effect::KillWorker { provision, .. } => self.kill_provision(provision),
            Effect::CloseSession { session, fault } => {
                self.note(&[12], &format_args!("  closes {session:?}: {fault}"));
                self.coordinator.sessions.remove(&session.0);
                self.hang_up(session.0, Node::Coordinator);
            }
            Effect::Persist(_) => unreachable!("persisted above"),
        }
    }

    fn say_worker(&mut self, session: u64, message: ToWorker) {
        if let ToWorker::Lease { leases, .. } = &message {
            self.ledger
                .leases_within_credit(session, leases.len() as u64);
            self.outcome.retries += leases.iter().filter(|l| l.attempt.number > 1).count() as u64;
            if !self.jumped {
                let (now, sessions) = (self.schedule.now_ms(), &self.coordinator.sessions);
                let workers = self.workers.values();
                let workers = workers.filter(|worker| worker.is_well_known(now, sessions));
                let held = workers.flat_map(|worker| worker.said_held.iter().copied());
                Ledger::held_is_not_leased_again(held, leases);
            }
        }
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

    fn relay_open(&mut self, job: JobId, known: u64, rollouts: u64) {
        let segments = self.coordinator.relay.entry(job).or_default();
        (segments.known, segments.rollouts) = (known, rollouts);
        // What lies beyond belongs to extents that a crash took back.
        let cut = |set: &RangeSet| -> RangeSet {
            set.ranges()
                .map(|(from, to)| (from, to.min(known)))
                .filter(|(from, to)| from < to)
                .collect()
        };
        (segments.accepted, segments.failed) = (cut(&segments.accepted), cut(&segments.failed));
        let (accepted, failed) = (segments.accepted.clone(), segments.failed.clone());
        self.ledger.taken_back(job, known);
        // New jobs need no answer; one that comes all the same does no harm.
        self.coordinate(Input::RelayRestored {
            job,
            accepted,
            failed,
        });
    }

    /// A worker's results for the relay.
    fn relay_takes(&mut self, session: u64, first_seq: u64, records: &[Arrival]) {
        let epoch = self.coordinator.life;
        let mut fresh = Vec::new();
        for record in records {
            let RolloutId { job, index } = record.rollout();
            let Some(segments) = self.coordinator.relay.get_mut(&job) else {
                continue;
            };
            let of = record.attempt.epoch.0;
            assert!(
                of != epoch || index < segments.rollouts,
                "a lease of rollout {index} before the relay knew that there are as many"
            );
            let valid = of == epoch || (of + 1 == epoch && index < segments.known);
            let settled = segments.accepted.contains(index) || segments.failed.contains(index);
            let twice = self.plant == Some(Plant::KeepDuplicates);
            if valid && (twice || (!settled && segments.staged.insert(index))) {
                fresh.push(record.rollout());
            }
        }
        let now = self.schedule.now_ms();
        let sync_ms = (now + self.rng.between(1, 10)).max(self.coordinator.relay_sync_ms);
        self.coordinator.relay_sync_ms = sync_ms;
        let upto = first_seq + records.len() as u64 - 1;
        let life = self.coordinator.life;
        self.schedule.at(
            sync_ms,
            Event::RelaySynced {
                life,
                session,
                upto,
                rollouts: fresh,
            },
        );
    }

    pub(crate) fn relay_synced(
        &mut self,
        life: u64,
        session: u64,
        upto: u64,
        rollouts: Vec<RolloutId>,
    ) {
        if self.coordinator.life != life || self.coordinator.core.is_none() {
            return;
        }
        for rollout in &rollouts {
            let Some(segments) = self.coordinator.relay.get_mut(&rollout.job) else {
                continue;
            };
            segments.staged.remove(&rollout.index);
            segments.accepted.insert(rollout.index);
            self.ledger.closed_once(*rollout);
            self.outcome.settled += 1;
        }
        self.send(
            session,
            Node::Coordinator,
            Wire::ToWorker(Box::new(ToWorker::Delivered { upto })),
        );
        let lost = self.plant == Some(Plant::LoseReceipts) && self.rng.chance(20);
        if !lost && !rollouts.is_empty() {
            self.coordinate(Input::RelaySettled { entries: rollouts });
        }
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
        if !self.coordinator.sessions.contains_key(&session) {
            return;
        }
        let id = SessionId(session);
        match message {
            Wire::FromWorker(mut message) => {
                if let FromWorker::Register { .. } = message
                    && let Some(Node::Worker(worker)) = self.coordinator.sessions.get(&session)
                    && let Some(node) = self.workers.get_mut(worker)
                {
                    node.heard(session, self.schedule.now_ms());
                }
                self.plant_in(&mut message);
                self.coordinate(Input::Worker {
                    session: id,
                    message,
                });
            }
            Wire::FromLearner(message) => self.coordinate(Input::Learner {
                session: id,
                message: *message,
            }),
            Wire::Request(request) => {
                self.coordinate(Input::Client {
                    session: id,
                    request: *request,
                    monitor: false,
                });
            }
            Wire::Results { first_seq, records } => self.relay_takes(session, first_seq, &records),
            other => panic!("the coordinator heard {other:?}"),
        }
    }

    fn plant_in(&self, message: &mut FromWorker) {
        match (self.plant, message) {
            (Some(Plant::IgnoreCredit), FromWorker::Ready { credit_total }) => *credit_total += 2,
            (Some(Plant::ForgetHeld), FromWorker::Register { held, .. }) => held.clear(),
            _ => {}
        }
    }

    pub(crate) fn coordinator_closed(&mut self, session: u64) {
        let Some(peer) = self.coordinator.sessions.remove(&session) else {
            return;
        };
        self.outcome.sessions_lost += 1;
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

    /// Every job has ended, or is a queue with nothing left in it.
    pub(crate) fn jobs_are_done(&self) -> bool {
        let Some(core) = &self.coordinator.core else {
            return false;
        };
        core.snapshot(Millis(0)).jobs.iter().all(|job| {
            let empty = job.accepted + job.failed == job.rollouts;
            job.state != JobState::Open || (job.kind == JobKind::Queue && empty)
        })
    }

    /// The coordinator's ledger is what the relay decided.
    pub(crate) fn ledgers_agree(&self) {
        let Some(core) = &self.coordinator.core else {
            return;
        };
        for record in core.compacted() {
            let Record::Closed { job, accepted, .. } = record else {
                continue;
            };
            let Some(segments) = self.coordinator.relay.get(&job) else {
                continue;
            };
            let accepted: RangeSet = accepted.into_iter().collect();
            assert_eq!(accepted, segments.accepted, "ledgers_agree: job {job}");
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
