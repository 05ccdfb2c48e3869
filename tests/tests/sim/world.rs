//! The cluster: nodes, network, time.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use volley_testkit::{Lane, Net, NetEvent, Rng, Schedule, Trace};

use crate::client_node::ClientNode;
use crate::coordinator_node::CoordinatorNode;
use crate::events::{Event, Node, Wire, event_number};
use crate::learner_node::LearnerNode;
use crate::ledger::Ledger;
use crate::outcome::Outcome;
use crate::plants::Plant;
use crate::topology::Topology;
use crate::worker_node::WorkerNode;

/// Length of a run, if its work is done by then.
const RUN_MS: u64 = 3_600_000;
/// Slow workers may need longer.
const RUN_MS_MAX: u64 = 4 * RUN_MS;
/// When nothing goes wrong any more, something is finished within this time: the longest episode
/// takes one minute, and a worker that is alone gives up after another.
const STUCK_MS: u64 = 240_000;
/// Longest sync of a disk that is well.
pub(crate) const SYNC_MS: u64 = 15;
/// Nodes that have not opened a session dial again after this long.
pub(crate) const REDIAL_MS: u64 = 7_000;
/// Between two looks at the time when all is done.
const IDLE_TICK_MS: u64 = 2_000;
/// Full scans happen every so many events.
const SCAN_EVENTS: u64 = 1_000;

pub(crate) struct World {
    pub(crate) topology: Topology,
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
    /// Processes that stand still: which stall, and what waits for their going on.
    pub(crate) stalled: BTreeMap<Node, (u64, VecDeque<Event>)>,
    pub(crate) outcome: Outcome,
    /// A clock has jumped or a process stood still: until then leases may have ended before
    /// their time.
    pub(crate) unsettled_until_ms: u64,
    /// What a worker frees now was delivered.
    pub(crate) delivering: bool,
    done_at_ms: Option<u64>,
    /// What has been finished, and since when it is no more.
    progress: (u64, u64),
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, trace: Rc<RefCell<Trace>>) -> Self {
        let mut rng = Rng::new(seed);
        let topology = Topology::draw(&mut rng);
        let chaos_until_ms = rng.between(120_000, 900_000);
        let mut world = Self {
            schedule: Schedule::default(),
            net: Net::new(topology.net()),
            ledger: Ledger::default(),
            trace,
            plant,
            coordinator: CoordinatorNode::new(&mut rng, &topology),
            learner: LearnerNode::new(&mut rng, &topology),
            client: ClientNode::new(&mut rng, &topology, chaos_until_ms),
            workers: BTreeMap::new(),
            next_peer: 100,
            chaos_until_ms,
            stalled: BTreeMap::new(),
            outcome: Outcome::default(),
            unsettled_until_ms: 0,
            delivering: false,
            done_at_ms: None,
            progress: (0, chaos_until_ms),
            topology,
            rng,
        };
        world.start_coordinator();
        world.start_learner();
        world.start_client();
        world.schedule.at(5_000, Event::Chaos);
        world
    }

    pub(crate) fn run(mut self) -> Outcome {
        while let Some(event) = self.schedule.pop() {
            let now = self.schedule.now_ms();
            if now >= RUN_MS && (self.done_at_ms.is_some() || now >= RUN_MS_MAX) {
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
        self.watch_the_end();
        self.everything_ends();
        self.finish()
    }

    pub(crate) fn handle(&mut self, event: Event) {
        if let Some(node) = event.node()
            && let Some((_, waiting)) = self.stalled.get_mut(&node)
        {
            waiting.push_back(event);
            return;
        }
        match event {
            Event::Net(event) => {
                if self.net.happens(&mut self.schedule, &mut self.rng, &event) {
                    self.net_event(event);
                }
            }
            Event::Tick(node, life) => self.tick(node, life),
            Event::Committed(life) => self.committed(life),
            Event::CommitFailed(life) => self.commit_failed(life),
            Event::RelaySynced { life, write } => self.relay_synced(life, write),
            Event::WorkerStarts { provision, life } => self.worker_starts(provision, life),
            Event::WorkerExited { provision, life } => self.worker_exit_seen(provision, life),
            Event::EpisodeEnds { worker, attempt } => self.episode_ends(worker, attempt),
            Event::IntakeSynced { life, number } => self.intake_synced(life, number),
            Event::IntakeFailed(life) => self.intake_failed(life),
            Event::StepEnds { life, batch } => self.step_ends(life, batch),
            Event::CrashCoordinator(life) => {
                if self.coordinator.life == life {
                    self.crash_coordinator();
                }
            }
            Event::Restart(Node::Coordinator) => self.start_coordinator(),
            Event::Restart(Node::Learner) => self.start_learner(),
            Event::Restart(Node::Client) => self.start_client(),
            Event::Restart(Node::Worker(_)) => {}
            Event::Resume(node, number) => self.resume(node, number),
            Event::Silent(node, number) => self.silent(node, number),
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
                Node::Client => self.client_hears(message),
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
            Node::Client => self.tick_client(life),
            Node::Worker(worker) => self.tick_worker(worker),
        };
        if alive {
            let pause_ms = if self.is_idle() {
                IDLE_TICK_MS
            } else {
                self.topology.tick_ms
            };
            self.schedule.after(pause_ms, Event::Tick(node, life));
        }
    }

    /// Everything is over and nobody is left: time may be looked at rarely.
    fn is_idle(&self) -> bool {
        self.done_at_ms.is_some() && self.workers.is_empty()
    }

    /// Is there a process?
    pub(crate) fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Coordinator => self.coordinator.core.is_some(),
            Node::Learner => self.learner.core.is_some(),
            Node::Client => self.client.is_up(),
            Node::Worker(worker) => self.workers.contains_key(&worker),
        }
    }

    pub(crate) fn note(&self, numbers: &[u64], line: &dyn std::fmt::Display) {
        self.trace
            .borrow_mut()
            .note(self.schedule.now_ms(), numbers, line);
    }

    pub(crate) fn send(&mut self, session: u64, from: Node, message: Wire) {
        let lane = match message {
            Wire::Results { .. } | Wire::Adapter(_) => Lane::Bulk,
            _ => Lane::Control,
        };
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

    fn watch_the_end(&mut self) {
        let now = self.schedule.now_ms();
        if self.done_at_ms.is_none() && now > self.chaos_until_ms {
            let learner = self.learner.progress();
            let finished = self.outcome.settled + self.outcome.read + learner;
            if finished != self.progress.0 || self.client.has_plans() {
                self.progress = (finished, now);
            }
            if self.is_done() {
                self.done_at_ms = Some(now);
                self.ledgers_agree();
            } else if now > self.progress.1 + STUCK_MS {
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

    /// Has everything been seen to be done?
    pub(crate) const fn is_over(&self) -> bool {
        self.done_at_ms.is_some()
    }

    fn finish(mut self) -> Outcome {
        self.outcome.hash = self.trace.borrow().hash();
        self.outcome.text_hash = self.trace.borrow().text_hash();
        self.outcome.simulated_ms = self.schedule.now_ms();
        self.outcome.steps = self.learner.steps();
        self.outcome
    }
}
