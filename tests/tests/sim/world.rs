//! The cluster: nodes, network, time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use volley_learner_core::Batch;
use volley_protocol::client::{ClientReply, ClientRequest};
use volley_protocol::delivery::FromSink;
use volley_protocol::learner::{FromLearner, ToLearner};
use volley_protocol::worker::{FromWorker, ToWorker};
use volley_protocol::{AdapterVersion, AttemptId, RolloutId};
use volley_testkit::{Net, NetConfig, NetEvent, Rng, Schedule, Trace};

use crate::client_node::ClientNode;
use crate::coordinator_node::CoordinatorNode;
use crate::learner_node::LearnerNode;
use crate::ledger::Ledger;
use crate::worker_node::WorkerNode;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Coordinator,
    Learner,
    Client,
    /// By peer id.
    Worker(u64),
}

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    FromWorker(FromWorker),
    ToWorker(Box<ToWorker>),
    FromLearner(Box<FromLearner>),
    ToLearner(ToLearner),
    Request(Box<ClientRequest>),
    Reply(Box<ClientReply>),
    FromSink(FromSink),
    Fetch(AdapterVersion),
    Adapter(AdapterVersion),
    /// Trajectories, on the bulk lane.
    Results {
        first_seq: u64,
        records: Vec<volley_learner_core::Arrival>,
    },
}

/// What can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Net(NetEvent<Node, Wire>),
    /// Time is looked at, by that life of a node.
    Tick(Node, u64),
    /// The coordinator's group commit is on the disk.
    Committed(u64),
    /// The relay has synced results of a worker's session up to a sequence number.
    RelaySynced {
        life: u64,
        session: u64,
        upto: u64,
        rollouts: Vec<RolloutId>,
    },
    /// A worker process was asked for.
    WorkerStarts {
        provision: u64,
        life: u64,
    },
    /// pidfd says so, to that life of the coordinator.
    WorkerExited {
        provision: u64,
        life: u64,
    },
    EpisodeEnds {
        worker: u64,
        attempt: AttemptId,
    },
    IntakeSynced {
        life: u64,
        number: u64,
    },
    StepEnds {
        life: u64,
        batch: Batch,
    },
    Restart(Node),
    /// In the middle of a commit.
    CrashCoordinator(u64),
    /// Something goes wrong.
    Chaos,
}

impl From<NetEvent<Node, Wire>> for Event {
    fn from(event: NetEvent<Node, Wire>) -> Self {
        Self::Net(event)
    }
}

/// A defect that is planted, to prove that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The coordinator believes in two leases more than a worker allows.
    IgnoreCredit,
    /// The versions of groups are not recorded.
    ForgetPins,
    /// Answers leave before the commit.
    AcknowledgeEarly,
    /// The relay keeps every result of a rollout.
    KeepDuplicates,
    /// Workers that come back do not say what they hold.
    ForgetHeld,
    /// The relay's word does not reach the core.
    LoseReceipts,
}

/// What a run amounted to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Of its trace; not added up.
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) settled: u64,
    pub(crate) steps: u64,
    pub(crate) retries: u64,
    pub(crate) coordinator_crashes: u64,
    pub(crate) learner_crashes: u64,
    pub(crate) worker_deaths: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) clock_jumps: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.simulated_ms += other.simulated_ms;
        self.settled += other.settled;
        self.steps += other.steps;
        self.retries += other.retries;
        self.coordinator_crashes += other.coordinator_crashes;
        self.learner_crashes += other.learner_crashes;
        self.worker_deaths += other.worker_deaths;
        self.sessions_lost += other.sessions_lost;
        self.clock_jumps += other.clock_jumps;
    }
}

/// Length of a run.
const RUN_MS: u64 = 3_600_000;
/// Afterwards everything must end within this time.
const PATIENCE_MS: u64 = 2_400_000;
/// Nodes that have not opened a session dial again after this long.
pub(crate) const REDIAL_MS: u64 = 7_000;
/// Between two looks at the time, busy and idle.
const TICK_MS: u64 = 200;
const IDLE_TICK_MS: u64 = 2_000;
/// Full scans happen every so many events.
const SCAN_EVENTS: u64 = 1_000;

pub(crate) struct World {
    pub(crate) schedule: Schedule<Event>,
    pub(crate) rng: Rng,
    pub(crate) net: Net<Node>,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Rc<RefCell<Trace>>,
    pub(crate) plant: Option<Plant>,
    pub(crate) coordinator: CoordinatorNode,
    pub(crate) learner: LearnerNode,
    pub(crate) client: ClientNode,
    pub(crate) workers: BTreeMap<u64, WorkerNode>,
    pub(crate) next_peer: u64,
    pub(crate) chaos_until_ms: u64,
    pub(crate) outcome: Outcome,
    /// Clocks have jumped: leases may have ended before their time.
    pub(crate) jumped: bool,
    done_at_ms: Option<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, trace: Rc<RefCell<Trace>>) -> Self {
        let mut rng = Rng::new(seed);
        let chaos_until_ms = rng.between(120_000, 900_000);
        let mut world = Self {
            schedule: Schedule::default(),
            net: Net::new(NetConfig::default()),
            ledger: Ledger::default(),
            trace,
            plant,
            coordinator: CoordinatorNode::new(&mut rng),
            learner: LearnerNode::new(&mut rng),
            client: ClientNode::new(&mut rng, chaos_until_ms),
            workers: BTreeMap::new(),
            next_peer: 100,
            chaos_until_ms,
            outcome: Outcome::default(),
            jumped: false,
            done_at_ms: None,
            rng,
        };
        world.start_coordinator();
        world.start_learner();
        world.schedule.at(1, Event::Tick(Node::Client, 0));
        world.schedule.at(5_000, Event::Chaos);
        world
    }

    pub(crate) fn run(mut self) -> Outcome {
        while let Some(event) = self.schedule.pop() {
            if self.schedule.now_ms() >= RUN_MS {
                break;
            }
            self.handle(event);
            self.outcome.events += 1;
            if self.outcome.events.is_multiple_of(SCAN_EVENTS) {
                self.scan();
                self.watch_the_end();
            }
        }
        self.scan();
        self.everything_ends();
        self.finish()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Net(event) => {
                if self.net.happens(&mut self.schedule, &mut self.rng, &event) {
                    self.net_event(event);
                }
            }
            Event::Tick(node, life) => self.tick(node, life),
            Event::Committed(life) => self.committed(life),
            Event::RelaySynced {
                life,
                session,
                upto,
                rollouts,
            } => {
                self.relay_synced(life, session, upto, rollouts);
            }
            Event::WorkerStarts { provision, life } => self.worker_starts(provision, life),
            Event::WorkerExited { provision, life } => self.worker_exit_seen(provision, life),
            Event::EpisodeEnds { worker, attempt } => self.episode_ends(worker, attempt),
            Event::IntakeSynced { life, number } => self.intake_synced(life, number),
            Event::StepEnds { life, batch } => self.step_ends(life, batch),
            Event::CrashCoordinator(life) => {
                if self.coordinator.life == life {
                    self.crash_coordinator();
                }
            }
            Event::Restart(Node::Coordinator) => self.start_coordinator(),
            Event::Restart(Node::Learner) => self.start_learner(),
            Event::Restart(_) => {}
            Event::Chaos => self.chaos(),
        }
    }

    fn net_event(&mut self, event: NetEvent<Node, Wire>) {
        self.note(&[event_number(&event)], &format_args!("{event:?}"));
        match event {
            NetEvent::Opened { session, at, peer } => match at {
                Node::Coordinator => self.coordinator_opened(session, peer),
                Node::Learner => self.learner_opened(session, peer),
                Node::Client => self.client_opened(session),
                Node::Worker(worker) => self.worker_opened(worker, session, peer),
            },
            NetEvent::Arrives {
                session,
                at,
                message,
            } => match at {
                Node::Coordinator => self.coordinator_hears(session, message),
                Node::Learner => self.learner_hears(session, message),
                Node::Client => self.client_hears(session, message),
                Node::Worker(worker) => self.worker_hears(worker, session, message),
            },
            NetEvent::Closed { session, at } => match at {
                Node::Coordinator => self.coordinator_closed(session),
                Node::Learner => self.learner_closed(session),
                Node::Client => self.client_closed(session),
                Node::Worker(worker) => self.worker_closed(worker, session),
            },
            NetEvent::Idle { .. } => {}
        }
    }

    fn tick(&mut self, node: Node, life: u64) {
        let alive = match node {
            Node::Coordinator => self.tick_coordinator(life),
            Node::Learner => self.tick_learner(life),
            Node::Client => self.tick_client(),
            Node::Worker(worker) => self.tick_worker(worker),
        };
        if alive {
            let pause_ms = if self.is_idle() {
                IDLE_TICK_MS
            } else {
                TICK_MS
            };
            self.schedule.after(pause_ms, Event::Tick(node, life));
        }
    }

    /// Everything is over and nobody is left: time may be looked at rarely.
    fn is_idle(&self) -> bool {
        self.done_at_ms.is_some() && self.workers.is_empty()
    }

    pub(crate) fn note(&self, numbers: &[u64], line: &dyn std::fmt::Display) {
        self.trace
            .borrow_mut()
            .note(self.schedule.now_ms(), numbers, line);
    }

    pub(crate) fn send(&mut self, session: u64, from: Node, message: Wire) {
        let lane = usize::from(matches!(message, Wire::Results { .. } | Wire::Adapter(_)));
        self.net.send(
            &mut self.schedule,
            &mut self.rng,
            session,
            from,
            lane,
            message,
        );
    }

    pub(crate) fn dial(&mut self, from: Node, to: Node) {
        self.net
            .dial::<Wire, Event>(&mut self.schedule, &mut self.rng, from, to);
    }

    pub(crate) fn hang_up(&mut self, session: u64, by: Node) {
        self.net
            .close::<Wire, Event>(&mut self.schedule, &mut self.rng, session, by);
    }

    /// Every node looks at everything it knows.
    fn scan(&mut self) {
        if let Some(core) = &self.coordinator.core {
            core.check_invariants()
                .unwrap_or_else(|violation| panic!("{violation}"));
        }
        if let Some(core) = &self.learner.core {
            core.check_invariants();
        }
        for worker in self.workers.values() {
            worker.core.check_invariants();
        }
    }

    fn watch_the_end(&mut self) {
        let now = self.schedule.now_ms();
        if self.done_at_ms.is_none() && now > self.chaos_until_ms {
            if self.is_done() {
                self.done_at_ms = Some(now);
                self.ledgers_agree();
            }
            let waited = now - self.chaos_until_ms;
            if waited > PATIENCE_MS {
                self.everything_ends();
            }
        }
        // (7) Idle window 30 s, drain 10 s, and the time of a start that is under way.
        if let Some(done) = self.done_at_ms
            && now > done + 120_000
        {
            assert!(
                self.workers.is_empty(),
                "roster_reaches_the_minimum: {:?}",
                self.workers.keys()
            );
        }
    }

    fn is_done(&self) -> bool {
        self.client.is_done() && self.learner.is_done() && self.jobs_are_done()
    }

    /// Liveness: once nothing goes wrong any more, everything comes to its end.
    fn everything_ends(&self) {
        let what = (
            self.client.is_done(),
            self.learner.is_done(),
            self.jobs_are_done(),
        );
        let jobs = self.coordinator.core.as_ref().map(|core| {
            let snapshot = core.snapshot(volley_coordinator_core::Millis(0));
            (snapshot.jobs, snapshot.workers, snapshot.problems)
        });
        assert!(
            self.done_at_ms.is_some(),
            "everything_ends: client, learner, jobs {what:?}; {jobs:#?}"
        );
    }

    fn finish(mut self) -> Outcome {
        self.outcome.hash = self.trace.borrow().hash();
        self.outcome.simulated_ms = RUN_MS;
        self.outcome.steps = self.learner.steps();
        self.outcome
    }
}

fn event_number(event: &NetEvent<Node, Wire>) -> u64 {
    let node = |node: Node| match node {
        Node::Coordinator => 1,
        Node::Learner => 2,
        Node::Client => 3,
        Node::Worker(id) => id,
    };
    match event {
        NetEvent::Opened { session, at, .. } => session * 8 + node(*at) * 4096,
        NetEvent::Arrives { session, at, .. } => session * 8 + 1 + node(*at) * 4096,
        NetEvent::Closed { session, at } => session * 8 + 2 + node(*at) * 4096,
        NetEvent::Idle { .. } => 3,
    }
}
