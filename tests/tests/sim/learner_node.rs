//! The learner's process: the real core, an intake on a disk, steps that take time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use volley_learner_core::{
    Arrival, Batch, Config, Effect, Input, Learner, Millis, Restored, Schedule, SessionId,
};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::delivery::FromSink;
use volley_protocol::job::JobKind;
use volley_protocol::run::{RunInfo, RunState, StepReport};
use volley_protocol::{
    AdapterVersion, Digest, EnvSpec, GroupIndex, JobId, JobSpec, PolicyRef, RangeSet, RetryPolicy,
    RolloutId, RunId, SamplingSpec, SinkRef, Split,
};
use volley_testkit::Rng;

use crate::world::{Event, Node, REDIAL_MS, Wire, World};

/// Where the learner listens.
pub(crate) const SINK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7_001);
/// The only run.
pub(crate) const RUN: RunId = RunId(77);
/// Its training job.
pub(crate) const TRAIN: JobId = JobId(0x7472_6169_6E00);

/// One write to the intake.
#[derive(Clone, Debug, Default)]
struct Write {
    arrivals: Vec<Arrival>,
    failed: Vec<RolloutId>,
}

/// What survives a crash.
#[derive(Debug, Default)]
struct Disk {
    versions: Vec<AdapterEntry>,
    closed: RangeSet,
    failed: RangeSet,
    writes: BTreeMap<u64, Write>,
    first: u64,
    next: u64,
    steps: u64,
}

/// The process and its disk.
#[derive(Debug)]
pub(crate) struct LearnerNode {
    pub(crate) core: Option<Learner>,
    pub(crate) life: u64,
    pub(crate) clock_ahead_ms: u64,
    config: Config,
    started_ms: u64,
    coordinator: Option<u64>,
    dialled_ms: Option<u64>,
    sessions: BTreeMap<u64, Node>,
    disk: Disk,
    staged: BTreeMap<u64, Write>,
    sync_ms: u64,
}

impl LearnerNode {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let groups_per_step = rng.between(1, 4);
        let group_size = rng.between(1, 4) as u32;
        let steps = rng.between(3, 12);
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
            version: version(0, 0),
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
            staged: BTreeMap::new(),
            sync_ms: 0,
        }
    }

    pub(crate) fn steps(&self) -> u64 {
        self.disk.steps
    }

    pub(crate) fn is_done(&self) -> bool {
        self.core
            .as_ref()
            .is_some_and(|core| core.state() == RunState::Finished)
    }

    fn restored(&self) -> Restored {
        let size = u64::from(self.config.job.group_size);
        let mut failed = self.disk.failed.clone();
        let mut pending = Vec::new();
        for write in self.disk.writes.values() {
            for rollout in &write.failed {
                failed.insert(rollout.index);
            }
            let open =
                |arrival: &&Arrival| !self.disk.closed.contains(arrival.rollout().index / size);
            pending.extend(write.arrivals.iter().filter(open).cloned());
        }
        Restored {
            versions: self.disk.versions.clone(),
            closed: self.disk.closed.clone(),
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

fn version(lineage: u32, step: u64) -> AdapterVersion {
    AdapterVersion {
        run: RUN,
        lineage,
        step,
        digest: Digest::of(&[b"adapter".as_slice(), &step.to_le_bytes()].concat()),
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
        node.started_ms = now;
        let core = Learner::new(node.config.clone(), node.restored());
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
        self.net
            .crash::<Wire, Event>(&mut self.schedule, &mut self.rng, Node::Learner);
        let node = &mut self.learner;
        node.sessions.clear();
        node.staged.clear();
        (node.coordinator, node.dialled_ms) = (None, None);
        let pause_ms = self.rng.between(100, 20_000);
        self.schedule.after(pause_ms, Event::Restart(Node::Learner));
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

    fn learn(&mut self, input: Input, records: &[Result<Arrival, String>]) {
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
                let sync_ms = (now + self.rng.between(1, 15)).max(self.learner.sync_ms);
                self.learner.sync_ms = sync_ms;
                let life = self.learner.life;
                self.schedule
                    .at(sync_ms, Event::IntakeSynced { life, number });
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
            Effect::DeleteAdapters(digests) => self.adapters_go(&digests),
            Effect::Exit(_) => {}
        }
    }

    fn step_begins(&mut self, batch: Batch) {
        let max_staleness = match self.learner.config.schedule {
            Schedule::Sync => 0,
            Schedule::Async { max_staleness } => max_staleness,
        };
        self.ledger
            .steps_are_fresh_and_whole(&self.learner.config.job, &batch, max_staleness);
        let lasts_ms = self.rng.between(20, 4_000);
        let life = self.learner.life;
        self.schedule
            .after(lasts_ms, Event::StepEnds { life, batch });
    }

    pub(crate) fn step_ends(&mut self, life: u64, batch: Batch) {
        if self.learner.life != life || self.learner.core.is_none() {
            return;
        }
        self.ledger.trained_at_most_once(&batch);
        let entry = AdapterEntry {
            version: version(batch.parent.lineage, batch.step),
            parent: batch.parent.digest,
            bytes: 1,
        };
        let disk = &mut self.learner.disk;
        disk.versions.push(entry);
        disk.steps += 1;
        let trained = batch.groups.iter().map(|group| group.index);
        for group in trained.chain(batch.dropped.iter().copied()) {
            disk.closed.insert(group.0);
        }
        for rollout in &batch.failed {
            disk.failed.insert(rollout.index);
        }
        let report = Box::new(StepReport {
            step: batch.step,
            digest: entry.version.digest,
            rollouts: batch
                .groups
                .iter()
                .map(|group| group.members.len() as u64)
                .sum(),
            groups: batch.groups.len() as u64,
            ..StepReport::default()
        });
        self.learn(Input::StepDone { report, entry }, &[]);
    }

    fn adapters_go(&mut self, digests: &[Digest]) {
        let size = u64::from(self.learner.config.job.group_size);
        let mut settled = self.learner.disk.failed.clone();
        for write in self.learner.disk.writes.values() {
            let arrived = write.arrivals.iter().map(Arrival::rollout);
            for rollout in arrived.chain(write.failed.iter().copied()) {
                settled.insert(rollout.index);
            }
        }
        let closed = &self.learner.disk.closed;
        let is_open = |job: JobId, group: GroupIndex| {
            let members = group.0 * size..(group.0 + 1) * size;
            job == TRAIN
                && !self.learner.is_done()
                && !closed.contains(group.0)
                && members.into_iter().any(|index| !settled.contains(index))
        };
        for entry in &self.learner.disk.versions {
            if digests.contains(&entry.version.digest) {
                self.ledger
                    .nothing_needed_is_deleted(&entry.version, is_open);
            }
        }
        self.learner
            .disk
            .versions
            .retain(|entry| !digests.contains(&entry.version.digest));
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
                    message,
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
                let mut versions = self.learner.disk.versions.iter();
                let answer = if versions.any(|entry| entry.version.digest == version.digest) {
                    Wire::Adapter(version)
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
