//! The learner's process: the real core, an intake on a disk, steps that take time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use volley_learner_core::{
    Arrival, Config, Effect, Input, Learner, Millis, Restored, Schedule, SessionId,
};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::delivery::FromSink;
use volley_protocol::job::JobKind;
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::{
    AdapterVersion, Digest, EnvSpec, JobId, JobSpec, PolicyRef, RangeSet, RetryPolicy, RolloutId,
    RunId, SamplingSpec, SinkRef, Split,
};
use volley_testkit::Rng;

use crate::events::{Event, Node, Wire};
use crate::plants::Plant;
use crate::topology::Topology;
use crate::world::{REDIAL_MS, World};

/// Where the learner listens.
pub(crate) const SINK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7_001);
/// The only run.
pub(crate) const RUN: RunId = RunId(77);
/// Its training job.
pub(crate) const TRAIN: JobId = JobId(0x7472_6169_6E00);

/// One write to the intake.
#[derive(Clone, Debug, Default)]
pub(crate) struct Write {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) failed: Vec<RolloutId>,
}

/// What survives a crash.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) versions: Vec<AdapterEntry>,
    pub(crate) closed: RangeSet,
    pub(crate) failed: RangeSet,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) steps: u64,
    /// Groups of the newest step record.
    pub(crate) last_closed: Vec<u64>,
}

/// The process and its disk.
#[derive(Debug)]
pub(crate) struct LearnerNode {
    pub(crate) core: Option<Learner>,
    pub(crate) life: u64,
    pub(crate) clock_ahead_ms: u64,
    pub(crate) config: Config,
    started_ms: u64,
    coordinator: Option<u64>,
    dialled_ms: Option<u64>,
    sessions: BTreeMap<u64, Node>,
    pub(crate) disk: Disk,
    /// Its disk takes nothing until then.
    pub(crate) disk_full_until_ms: u64,
    staged: BTreeMap<u64, Write>,
    sync_ms: u64,
    /// The step that is made, in this life: when its record is on the disk.
    pub(crate) recording: Option<u64>,
}

impl LearnerNode {
    pub(crate) fn new(rng: &mut Rng, topology: &Topology) -> Self {
        let groups_per_step = rng.between(1, topology.work(4).min(24));
        let group_size = rng.between(1, 4) as u32;
        let steps = rng.between(4, 20);
        let staleness = rng.below(3);
        let spare = if staleness > 0 {
            groups_per_step * 3
        } else {
            0
        };
        let groups = steps * groups_per_step + spare;
        let run = RunInfo {
            run: RUN,
            name: "sim".into(),
            environment: "echo".into(),
            base: Digest::default(),
            steps_total: steps,
            rank: 8,
            retain_versions: rng.between(1, 3) as u32,
        };
        let job = training(groups, group_size);
        let config = Config {
            run,
            job,
            first_step: 0,
            groups_per_step,
            schedule: if staleness > 0 {
                Schedule::Async {
                    max_staleness: staleness,
                }
            } else {
                Schedule::Sync
            },
            min_group_size: rng.between(1, u64::from(group_size)) as u32,
            checkpoint_every: 3,
            numerics: "sim-1".into(),
            sink_addr: SINK,
        };
        let first = AdapterEntry {
            version: version(0, 0, &[]),
            parent: Digest::default(),
            bytes: 1,
        };
        Self {
            core: None,
            life: 0,
            clock_ahead_ms: 0,
            config,
            started_ms: 0,
            coordinator: None,
            dialled_ms: None,
            sessions: BTreeMap::new(),
            disk: Disk {
                versions: vec![first],
                first: 1,
                next: 1,
                ..Disk::default()
            },
            disk_full_until_ms: 0,
            staged: BTreeMap::new(),
            sync_ms: 0,
            recording: None,
        }
    }

    /// Does a crash leave this rollout settled?
    pub(crate) fn has_on_disk(&self, index: u64) -> bool {
        let size = u64::from(self.config.job.group_size);
        let written = |write: &Write| {
            let arrived = write.arrivals.iter().map(Arrival::rollout);
            arrived
                .chain(write.failed.iter().copied())
                .any(|rollout| rollout.index == index)
        };
        self.disk.closed.contains(index / size)
            || self.disk.failed.contains(index)
            || self.disk.writes.values().rev().any(written)
    }

    /// Rises with everything that goes on.
    pub(crate) const fn progress(&self) -> u64 {
        self.disk.steps + self.disk.next
    }

    pub(crate) fn steps(&self) -> u64 {
        self.disk.steps
    }

    pub(crate) fn is_done(&self) -> bool {
        self.core
            .as_ref()
            .is_some_and(|core| core.state() == RunState::Finished)
    }

    fn restored(&self, plant: Option<Plant>) -> Restored {
        let size = u64::from(self.config.job.group_size);
        let mut failed = self.disk.failed.clone();
        let mut closed = self.disk.closed.clone();
        let is_sync = self.config.schedule == Schedule::Sync;
        if plant == Some(Plant::ForgetClosedGroups) && !is_sync {
            let last = &self.disk.last_closed;
            let rest = closed.iter().filter(|group| !last.contains(group));
            closed = rest.map(|group| (group, group + 1)).collect();
        }
        let mut pending = Vec::new();
        for write in self.disk.writes.values() {
            for rollout in &write.failed {
                failed.insert(rollout.index);
            }
            let open = |arrival: &&Arrival| !closed.contains(arrival.rollout().index / size);
            pending.extend(write.arrivals.iter().filter(open).cloned());
        }
        Restored {
            versions: self.disk.versions.clone(),
            closed,
            failed,
            pending,
            intake_first: self.disk.first,
            intake_next: self.disk.next,
        }
    }
}

/// The training job of so many groups.
fn training(groups: u64, group_size: u32) -> JobSpec {
    JobSpec {
        job: TRAIN,
        name: "training".into(),
        kind: JobKind::Train,
        env: environment("echo"),
        first_instance: 0,
        rollouts: groups * u64::from(group_size),
        group_size,
        policy: PolicyRef::Latest(RUN),
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Learner(RUN),
        keep_ms: 7_200_000,
        take: None,
        priority: 0,
    }
}

/// An environment by name.
pub(crate) fn environment(name: &str) -> EnvSpec {
    EnvSpec {
        name: name.into(),
        split: Split::Train,
        config: BTreeMap::new(),
    }
}

/// The version that training on these rollouts gives.
pub(crate) fn version(lineage: u32, step: u64, members: &[RolloutId]) -> AdapterVersion {
    let mut bytes = step.to_le_bytes().to_vec();
    for rollout in members {
        bytes.extend_from_slice(&rollout.index.to_le_bytes());
    }
    AdapterVersion {
        run: RUN,
        lineage,
        step,
        digest: Digest::of(&bytes),
    }
}

impl World {
    pub(crate) fn start_learner(&mut self) {
        let now = self.schedule.now_ms();
        let node = &mut self.learner;
        if node.core.is_some() {
            return;
        }
        node.life += 1;
        (node.started_ms, node.clock_ahead_ms) = (now, 0);
        let mut config = node.config.clone();
        if let (Some(Plant::TakeStale), Schedule::Async { max_staleness }) =
            (self.plant, &mut config.schedule)
        {
            *max_staleness += 2;
        }
        let restored = node.restored(self.plant);
        let head = restored.versions.last().map(|entry| entry.version);
        self.ledger
            .published_is_durable(&head.expect("the first version is never deleted alone"));
        let size = u64::from(config.job.group_size);
        for arrival in &restored.pending {
            let due = config.job.first_instance + arrival.rollout().index / size;
            assert_eq!(
                arrival.reward,
                due as f64,
                "results_are_of_their_instance: {:?} in the intake",
                arrival.rollout()
            );
        }
        let core = Learner::new(config, restored);
        node.core =
            Some(core.unwrap_or_else(|fault| panic!("the learner does not start: {fault}")));
        let life = node.life;
        self.net.start(Node::Learner);
        self.note(&[31, life], &"the learner starts");
        self.schedule.after(1, Event::Tick(Node::Learner, life));
    }

    pub(crate) fn crash_learner(&mut self) {
        if self.learner.core.take().is_none() {
            return;
        }
        self.outcome.learner_crashes += 1;
        self.is_gone(Node::Learner);
        self.intake_is_torn();
        let node = &mut self.learner;
        node.sessions.clear();
        (node.coordinator, node.dialled_ms, node.recording) = (None, None, None);
        let pause_ms = self.rng.between(100, 20_000);
        self.schedule.after(pause_ms, Event::Restart(Node::Learner));
    }

    /// Of what was not synced a first part may be on the disk; the write behind it is torn.
    fn intake_is_torn(&mut self) {
        let staged = std::mem::take(&mut self.learner.staged);
        self.outcome.torn_tails += u64::from(!staged.is_empty());
        let whole = self.rng.below(staged.len() as u64 + 1) as usize;
        let disk = &mut self.learner.disk;
        for (place, (number, mut write)) in staged.into_iter().enumerate() {
            if place > whole || (place == whole && self.plant != Some(Plant::AcceptTorn)) {
                break;
            }
            if let (true, Some(last)) = (place == whole, write.arrivals.last_mut()) {
                last.reward += 0.5;
            }
            disk.writes.insert(number, write);
            disk.next = number + 1;
        }
    }

    pub(crate) fn tick_learner(&mut self, life: u64) -> bool {
        let now = self.schedule.now_ms();
        let node = &mut self.learner;
        if node.core.is_none() || node.life != life {
            return false;
        }
        let due = node.dialled_ms.is_none_or(|at| now > at + REDIAL_MS);
        if node.coordinator.is_none() && due {
            node.dialled_ms = Some(now);
            self.dial(Node::Learner, Node::Coordinator);
        }
        self.learn(Input::Tick, &[]);
        true
    }

    pub(crate) fn learn(&mut self, input: Input, records: &[Result<Arrival, String>]) {
        let node = &mut self.learner;
        let now = self.schedule.now_ms() - node.started_ms + node.clock_ahead_ms;
        let Some(core) = &mut node.core else {
            return;
        };
        let mut effects = Vec::new();
        core.apply(Millis(now), input, &mut effects);
        for effect in effects {
            self.note(&[33], &format_args!("  learner: {effect:?}"));
            self.learner_does(effect, records);
        }
    }

    fn learner_does(&mut self, effect: Effect, records: &[Result<Arrival, String>]) {
        match effect {
            Effect::Send(message) => {
                if let Some(session) = self.learner.coordinator {
                    self.send(session, Node::Learner, Wire::FromLearner(Box::new(message)));
                }
            }
            Effect::Intake {
                number,
                keep,
                failed,
            } => {
                let kept = keep.iter().map(|keep| records[keep.record].clone());
                let arrivals = kept
                    .map(|record| record.expect("kept records decode"))
                    .collect();
                self.learner
                    .staged
                    .insert(number, Write { arrivals, failed });
                let now = self.schedule.now_ms();
                let sync_ms = (now + self.sync_ms()).max(self.learner.sync_ms);
                self.learner.sync_ms = sync_ms;
                let life = self.learner.life;
                let event = if self.disk_fails(Node::Learner) {
                    Event::IntakeFailed(life)
                } else {
                    Event::IntakeSynced { life, number }
                };
                self.schedule.at(sync_ms, event);
                if self.plant == Some(Plant::IntakeEarly) {
                    self.learn(Input::Synced { upto: number }, &[]);
                }
            }
            Effect::Discard(_) | Effect::Checkpoint { .. } => {}
            Effect::TrimIntake { below } => {
                let disk = &mut self.learner.disk;
                disk.writes.retain(|number, _| *number >= below);
                disk.first = disk.first.max(below).min(disk.next);
            }
            Effect::Delivered { session, upto } => {
                self.send(
                    session.0,
                    Node::Learner,
                    Wire::FromSink(FromSink::Delivered { upto }),
                );
            }
            Effect::Step(batch) => self.step_begins(batch),
            Effect::DeleteAdapters(mut digests) => {
                if self.plant == Some(Plant::DeletePinned) {
                    let versions = &self.learner.disk.versions;
                    let older = versions.iter().rev().skip(1);
                    digests = older.map(|entry| entry.version.digest).collect();
                }
                self.adapters_go(&digests);
            }
            Effect::Exit(_) => {}
        }
    }

    pub(crate) fn intake_synced(&mut self, life: u64, number: u64) {
        let node = &mut self.learner;
        if node.life != life || node.core.is_none() {
            return;
        }
        if let Some(write) = node.staged.remove(&number) {
            node.disk.writes.insert(number, write);
            node.disk.next = number + 1;
        }
        self.learn(Input::Synced { upto: number }, &[]);
    }

    pub(crate) fn learner_opened(&mut self, session: u64, peer: Node) {
        self.learner.sessions.insert(session, peer);
        if peer == Node::Coordinator {
            self.learner.coordinator = Some(session);
            self.learner.dialled_ms = None;
            self.learn(
                Input::CoordinatorUp {
                    session: SessionId(session),
                },
                &[],
            );
        }
    }

    pub(crate) fn learner_closed(&mut self, session: u64) {
        match self.learner.sessions.remove(&session) {
            Some(Node::Coordinator) => {
                if self.learner.coordinator == Some(session) {
                    (self.learner.coordinator, self.learner.dialled_ms) = (None, None);
                }
                self.learn(
                    Input::CoordinatorDown {
                        session: SessionId(session),
                    },
                    &[],
                );
            }
            Some(_) => self.learn(
                Input::WorkerGone {
                    session: SessionId(session),
                },
                &[],
            ),
            None => {}
        }
    }

    pub(crate) fn learner_hears(&mut self, session: u64, message: Wire) {
        let id = SessionId(session);
        match message {
            Wire::ToLearner(message) => self.learn(
                Input::Coordinator {
                    session: id,
                    message: *message,
                },
                &[],
            ),
            Wire::Results { first_seq, records } => {
                let records: Vec<_> = records.into_iter().map(Ok).collect();
                let input = Input::Arrived {
                    session: id,
                    first_seq,
                    records: records.clone(),
                };
                self.learn(input, &records);
            }
            Wire::Fetch(version) => {
                let version = *version;
                let mut versions = self.learner.disk.versions.iter();
                let answer = if versions.any(|entry| entry.version.digest == version.digest) {
                    Wire::Adapter(Box::new(version))
                } else {
                    Wire::FromSink(FromSink::AdapterMissing {
                        digest: version.digest,
                    })
                };
                self.send(session, Node::Learner, answer);
            }
            other => panic!("the learner heard {other:?}"),
        }
    }
}
