//! Worker processes: the real core, episodes of random length, results in memory.

use std::collections::{BTreeMap, BTreeSet};

use volley_learner_core::Arrival;
use volley_protocol::delivery::FromSink;
use volley_protocol::worker::{FromWorker, Lease, LeasePolicy, ToWorker};
use volley_protocol::{AttemptId, Digest, Epoch, ErrorCode, Fault, JobSpec};
use volley_worker::core::{Config, Effect, Input, Millis, SessionId, Worker};

use crate::events::{Event, Node, Wire};
use crate::learner_node::SINK;
use crate::world::{REDIAL_MS, World};

/// A lease is renewed by word from its worker; it lasts ten seconds.
const WELL_KNOWN_MS: u64 = 6_000;

/// One process.
#[derive(Debug)]
pub(crate) struct WorkerNode {
    pub(crate) core: Worker,
    pub(crate) provision: u64,
    pub(crate) started_ms: u64,
    /// What it last told the coordinator that it holds, less what it was told to drop.
    pub(crate) said_held: BTreeSet<AttemptId>,
    coordinator: Option<u64>,
    /// When the coordinator heard last, in the present session, what it holds.
    heard_ms: Option<u64>,
    /// How many times slower than others its episodes are.
    slowness: u64,
    /// Life of the coordinator that started it: only that one watches the process.
    parent: u64,
    clock_ahead_ms: u64,
    dialled_ms: Option<u64>,
    sink: Option<u64>,
    sink_dialled_ms: Option<u64>,
    running: BTreeMap<AttemptId, Option<Fault>>,
    results: BTreeMap<AttemptId, Arrival>,
}

impl WorkerNode {
    /// The coordinator has heard what it holds, and has not lost it since.
    pub(crate) fn is_well_known(&self, now_ms: u64, sessions: &BTreeMap<u64, Node>) -> bool {
        let open = self
            .coordinator
            .is_some_and(|session| sessions.contains_key(&session));
        let recently = |at: u64| at < now_ms && now_ms < at + WELL_KNOWN_MS;
        open && self.heard_ms.is_some_and(recently)
    }

    /// Its `Register` or `Heartbeat` arrived.
    pub(crate) fn heard(&mut self, session: u64, now_ms: u64) {
        if self.coordinator == Some(session) {
            self.heard_ms = Some(now_ms);
        }
    }

    /// It does not hold that any more, or was told not to.
    pub(crate) fn forget_held(&mut self, attempt: &AttemptId) {
        self.said_held.remove(attempt);
    }
}

impl World {
    pub(crate) fn provision(&mut self, provision: u64) {
        let life = self.coordinator.life;
        let start_ms = self.rng.between(50, 2_000);
        self.schedule
            .after(start_ms, Event::WorkerStarts { provision, life });
    }

    pub(crate) fn worker_starts(&mut self, provision: u64, life: u64) {
        let chaotic = self.schedule.now_ms() < self.chaos_until_ms;
        if chaotic && self.rng.chance(30) {
            if self.coordinator.life == life {
                let reason = "no memory left".to_owned();
                self.coordinate(volley_coordinator_core::Input::ProvisionFailed {
                    provision,
                    reason,
                });
            }
            return;
        }
        let id = self.next_peer;
        self.next_peer += 1;
        let slots = self.rng.between(2, 4) as u32;
        let mut config = Config::new(slots, "sim-1", Digest::default());
        config.provision = provision;
        config.prefetch = self.rng.between(0, u64::from(slots)) as u32;
        let slow = self.rng.chance(self.topology.slow_of_thousand);
        let slowness = if slow { self.rng.between(4, 20) } else { 1 };
        let node = WorkerNode {
            slowness,
            core: Worker::new(config),
            provision,
            started_ms: self.schedule.now_ms(),
            said_held: BTreeSet::new(),
            coordinator: None,
            heard_ms: None,
            parent: life,
            clock_ahead_ms: 0,
            dialled_ms: None,
            sink: None,
            sink_dialled_ms: None,
            running: BTreeMap::new(),
            results: BTreeMap::new(),
        };
        self.workers.insert(id, node);
        self.net.start(Node::Worker(id));
        self.note(
            &[21, id],
            &format_args!("worker {id} starts for {provision:x}"),
        );
        self.schedule.after(1, Event::Tick(Node::Worker(id), 0));
    }

    /// The process ends, asked or not.
    pub(crate) fn end_worker(&mut self, id: u64) {
        let Some(node) = self.workers.remove(&id) else {
            return;
        };
        self.note(&[22, id], &format_args!("worker {id} ends"));
        self.outcome.worker_deaths += 1;
        self.is_gone(Node::Worker(id));
        let seen_ms = self.rng.between(1, 30);
        let (provision, life) = (node.provision, node.parent);
        self.schedule
            .after(seen_ms, Event::WorkerExited { provision, life });
    }

    pub(crate) fn worker_exit_seen(&mut self, provision: u64, life: u64) {
        if self.coordinator.life == life {
            self.coordinate(volley_coordinator_core::Input::WorkerExited { provision, pid: 1 });
        }
    }

    pub(crate) fn kill_provision(&mut self, provision: u64) {
        let found = self
            .workers
            .iter()
            .find(|(_, worker)| worker.provision == provision);
        if let Some(id) = found.map(|(id, _)| *id) {
            self.end_worker(id);
        }
    }

    pub(crate) fn jump_worker_clock(&mut self, id: u64, ms: u64) {
        if let Some(node) = self.workers.get_mut(&id) {
            node.clock_ahead_ms += ms;
        }
    }

    pub(crate) fn tick_worker(&mut self, id: u64) -> bool {
        let now = self.schedule.now_ms();
        let Some(node) = self.workers.get_mut(&id) else {
            return false;
        };
        let due = node.dialled_ms.is_none_or(|at| now > at + REDIAL_MS);
        if node.coordinator.is_none() && due {
            node.dialled_ms = Some(now);
            self.dial(Node::Worker(id), Node::Coordinator);
        }
        self.work(id, Input::Tick);
        self.workers.contains_key(&id)
    }

    fn work(&mut self, id: u64, input: Input) {
        let now = self.schedule.now_ms();
        let Some(node) = self.workers.get_mut(&id) else {
            return;
        };
        let mut effects = Vec::new();
        node.core.apply(
            Millis(now - node.started_ms + node.clock_ahead_ms),
            input,
            &mut effects,
        );
        for effect in effects {
            self.note(&[23, id], &format_args!("  worker {id}: {effect:?}"));
            self.worker_does(id, effect);
        }
    }

    fn worker_does(&mut self, id: u64, effect: Effect) {
        let now = self.schedule.now_ms();
        let Some(node) = self.workers.get_mut(&id) else {
            return;
        };
        match effect {
            Effect::Send(message) => self.worker_says(id, message),
            Effect::StartEpisode { lease, spec } => self.episode_starts(id, lease, &spec),
            Effect::CancelEpisode { attempt } => {
                node.running.remove(&attempt);
                node.forget_held(&attempt);
            }
            Effect::FetchAdapter {
                version, session, ..
            } => {
                self.send(session.0, Node::Worker(id), Wire::Fetch(Box::new(version)));
            }
            Effect::DropAdapters(_) => {}
            Effect::DialSink { addr } => {
                assert_eq!(addr, SINK);
                if node.sink.is_none() && node.sink_dialled_ms.is_none_or(|at| now > at + REDIAL_MS)
                {
                    node.sink_dialled_ms = Some(now);
                    self.dial(Node::Worker(id), Node::Learner);
                }
            }
            Effect::HangUpSink { .. } => {
                node.sink_dialled_ms = None;
                if let Some(session) = node.sink.take() {
                    self.hang_up(session, Node::Worker(id));
                    self.work(
                        id,
                        Input::SinkDown {
                            addr: SINK,
                            session: SessionId(session),
                        },
                    );
                }
            }
            Effect::Deliver {
                session,
                first_seq,
                attempts,
                ..
            } => {
                let records = attempts
                    .iter()
                    .map(|attempt| node.results[attempt].clone())
                    .collect();
                self.send(
                    session.0,
                    Node::Worker(id),
                    Wire::Results { first_seq, records },
                );
            }
            Effect::Free { attempts } => {
                for attempt in &attempts {
                    node.results.remove(attempt);
                    node.forget_held(attempt);
                }
                if self.delivering {
                    for attempt in &attempts {
                        self.delivered_is_kept(attempt);
                    }
                }
            }
            Effect::Exit { .. } => self.end_worker(id),
        }
    }

    fn worker_says(&mut self, id: u64, message: FromWorker) {
        let Some(node) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(session) = node.coordinator else {
            return;
        };
        match &message {
            FromWorker::Register { held, .. } => {
                node.said_held = held.iter().copied().collect();
            }
            FromWorker::AttemptFailed { attempt, .. } => node.forget_held(attempt),
            FromWorker::Ready { credit_total } => self.ledger.allow(session, *credit_total),
            _ => {}
        }
        let message = Wire::FromWorker(Box::new(message));
        self.send(session, Node::Worker(id), message);
    }

    fn episode_starts(&mut self, id: u64, lease: Lease, spec: &JobSpec) {
        self.ledger.groups_keep_their_version(spec, &lease);
        let attempt = lease.attempt;
        let slowness = self.workers.get(&id).map_or(1, |node| node.slowness);
        let lasts_ms = self.rng.between(5, 3_000) * slowness;
        let fault = self.fate(attempt, spec);
        let version = match lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => Some(version),
        };
        let arrival = Arrival {
            attempt,
            version,
            numerics: "sim-1".into(),
            // What the sinks keep is compared with what was to be played.
            reward: lease.instance as f64,
        };
        if let Some(node) = self.workers.get_mut(&id) {
            node.running.insert(attempt, fault);
            node.results.insert(attempt, arrival);
        }
        self.schedule.after(
            lasts_ms,
            Event::EpisodeEnds {
                worker: id,
                attempt,
            },
        );
    }

    /// How an episode will fail, if it does. `WorkerLost` stands for the end of the process.
    fn fate(&mut self, attempt: AttemptId, spec: &JobSpec) -> Option<Fault> {
        let fault = |code| Some(Fault::new(code, "as planned"));
        let poison = spec.env.name == "poison" && attempt.rollout.index % 29 == 7;
        if poison {
            return fault(ErrorCode::WorkerLost);
        }
        match self.rng.below(1_000) {
            0..=29 => fault(ErrorCode::EnvFailed),
            30..=44 => fault(ErrorCode::EnvUnknown),
            45 => fault(ErrorCode::WorkerLost),
            _ => None,
        }
    }

    pub(crate) fn episode_ends(&mut self, worker: u64, attempt: AttemptId) {
        let Some(node) = self.workers.get_mut(&worker) else {
            return;
        };
        let Some(fault) = node.running.remove(&attempt) else {
            return;
        };
        match fault {
            None => {
                let done = Input::EpisodeDone {
                    attempt,
                    record_bytes: 4_600,
                    tokens: 100,
                    prefill_tokens: 50,
                };
                self.work(worker, done);
            }
            Some(fault) if fault.code == ErrorCode::WorkerLost => {
                if attempt.epoch.0 == self.coordinator.life {
                    self.ledger.died_of(attempt.rollout);
                }
                self.end_worker(worker);
            }
            Some(fault) => {
                node.results.remove(&attempt);
                let retryable = fault.code != ErrorCode::EnvUnknown;
                self.work(
                    worker,
                    Input::EpisodeFailed {
                        attempt,
                        fault,
                        retryable,
                    },
                );
            }
        }
    }

    pub(crate) fn worker_opened(&mut self, id: u64, session: u64, peer: Node) {
        let epoch = Epoch(self.coordinator.life);
        let Some(node) = self.workers.get_mut(&id) else {
            return;
        };
        if peer == Node::Learner {
            node.sink = Some(session);
            self.work(
                id,
                Input::SinkUp {
                    addr: SINK,
                    session: SessionId(session),
                },
            );
            return;
        }
        node.coordinator = Some(session);
        node.dialled_ms = None;
        self.work(
            id,
            Input::CoordinatorUp {
                session: SessionId(session),
                epoch,
            },
        );
    }

    pub(crate) fn worker_closed(&mut self, id: u64, session: u64) {
        let Some(node) = self.workers.get_mut(&id) else {
            return;
        };
        if node.sink == Some(session) {
            node.sink = None;
            node.sink_dialled_ms = None;
            self.work(
                id,
                Input::SinkDown {
                    addr: SINK,
                    session: SessionId(session),
                },
            );
        } else if node.coordinator == Some(session) {
            (node.coordinator, node.heard_ms, node.dialled_ms) = (None, None, None);
            self.work(
                id,
                Input::CoordinatorDown {
                    session: SessionId(session),
                },
            );
        }
    }

    pub(crate) fn worker_hears(&mut self, id: u64, session: u64, message: Wire) {
        let Some(_) = self.workers.get_mut(&id) else {
            return;
        };
        let session = SessionId(session);
        match message {
            Wire::ToWorker(message) => {
                self.delivering = matches!(*message, ToWorker::Delivered { .. });
                self.work(id, Input::Coordinator { session, message });
            }
            Wire::FromSink(message) => {
                self.delivering = matches!(message, FromSink::Delivered { .. });
                if let FromSink::AdapterMissing { .. } = message {
                    self.note(
                        &[24, id],
                        &format_args!("worker {id}: an adapter is missing"),
                    );
                }
                self.work(
                    id,
                    Input::Sink {
                        addr: SINK,
                        session,
                        message,
                    },
                );
            }
            Wire::Adapter(version) => self.work(id, Input::AdapterReady { version: *version }),
            other => panic!("a worker heard {other:?}"),
        }
        self.delivering = false;
    }
}
