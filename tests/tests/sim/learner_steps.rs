//! The learner's steps: computed for a while, recorded, then published; versions that go.

use volley_learner_core::{Arrival, Batch, Input, Schedule};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::run::StepReport;
use volley_protocol::{Digest, GroupIndex, JobId, RolloutId};

use crate::events::{Event, Node};
use crate::learner_node::{TRAIN, version};
use crate::plants::Plant;
use crate::world::World;

impl World {
    pub(crate) fn step_begins(&mut self, batch: Batch) {
        let max_staleness = match self.learner.config.schedule {
            Schedule::Sync => 0,
            Schedule::Async { max_staleness } => max_staleness,
        };
        self.ledger
            .steps_are_fresh_and_whole(&self.learner.config.job, &batch, max_staleness);
        let lasts_ms = self.rng.between(20, 4_000);
        let life = self.learner.life;
        let batch = Box::new(batch);
        self.schedule
            .after(lasts_ms, Event::StepEnds { life, batch });
    }

    /// The update is computed: its record goes to the disk, then the core is told.
    pub(crate) fn step_ends(&mut self, life: u64, batch: Box<Batch>) {
        if self.learner.life != life || self.learner.core.is_none() {
            return;
        }
        if self.disk_fails(Node::Learner) {
            self.intake_failed(life);
            return;
        }
        let step = batch.step;
        let early = self.plant == Some(Plant::PublishEarly);
        if early && self.learner.recording != Some(step) {
            self.learner.recording = Some(step);
            self.step_is_made(&batch);
            let sync_ms = self.rng.between(1, 800);
            self.schedule
                .after(sync_ms, Event::StepEnds { life, batch });
            return;
        }
        // A crash may leave nothing of the record, or all of it with nobody having been told.
        if self.hurts(15) {
            return self.crash_learner();
        }
        self.record_step(&batch);
        if self.hurts(15) {
            return self.crash_learner();
        }
        if !early {
            self.step_is_made(&batch);
        }
    }

    fn entry_of(batch: &Batch) -> AdapterEntry {
        let members: Vec<RolloutId> = batch
            .groups
            .iter()
            .flat_map(|group| group.members.iter().copied())
            .collect();
        AdapterEntry {
            version: version(batch.parent.lineage, batch.step, &members),
            parent: batch.parent.digest,
            bytes: 1,
        }
    }

    fn record_step(&mut self, batch: &Batch) {
        self.ledger.trained_at_most_once(batch);
        let disk = &mut self.learner.disk;
        disk.versions.push(Self::entry_of(batch));
        disk.steps += 1;
        let trained = batch.groups.iter().map(|group| group.index);
        let closed = trained.chain(batch.dropped.iter().copied());
        disk.last_closed = closed.map(|group| group.0).collect();
        for group in &disk.last_closed {
            disk.closed.insert(*group);
        }
        for rollout in &batch.failed {
            disk.failed.insert(rollout.index);
        }
    }

    fn step_is_made(&mut self, batch: &Batch) {
        let entry = Self::entry_of(batch);
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

    /// The disk did not take it: nothing more is acknowledged, the process ends and begins anew.
    pub(crate) fn intake_failed(&mut self, life: u64) {
        if self.learner.life != life || self.learner.core.is_none() {
            return;
        }
        self.outcome.disk_faults += 1;
        self.note(&[32, life], &"the learner's disk fails: STORE_FAILED");
        self.crash_learner();
    }

    pub(crate) fn adapters_go(&mut self, digests: &[Digest]) {
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
}
