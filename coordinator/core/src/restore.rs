//! From records to state and back.

use volley_protocol::dead::DeadLetter;
use volley_protocol::job::JobState;
use volley_protocol::{Epoch, JobId, PolicyRef, SinkRef};

use crate::attempts::summary;
use crate::config::CoordinatorConfig;
use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::input::Millis;
use crate::queue::Job;
use crate::ranges;
use crate::record::Record;
use crate::runs::Run;

impl Coordinator {
    /// A coordinator that remembers what was recorded. `epoch` is larger than every recorded one.
    ///
    /// Records come from this program's own store; one that contradicts the others (it names a
    /// job that was forgotten, say) is passed over.
    #[must_use]
    pub fn restore(
        config: CoordinatorConfig,
        epoch: Epoch,
        records: impl IntoIterator<Item = Record>,
    ) -> Self {
        let mut coordinator = Self::new(config, epoch);
        for record in records {
            coordinator.restored = true;
            coordinator.replay(record);
        }
        coordinator.after_replay();
        coordinator
    }

    fn replay(&mut self, record: Record) {
        match record {
            Record::Epoch(epoch) => debug_assert!(epoch <= self.epoch, "epochs rise"),
            Record::JobAccepted { spec, at } => {
                if self.jobs.get(spec.job).is_none() {
                    self.jobs.insert(Job::new(*spec, at));
                }
            }
            Record::Extended { job, start, extent } => {
                self.replay_at(job, |job| job.replay_extended(start, extent));
            }
            Record::Put {
                job,
                start,
                extent,
                payloads,
            } => self.replay_at(job, |job| job.replay_put(start, extent, payloads)),
            Record::Admitted { job, upto } => {
                self.replay_at(job, |job| {
                    job.admit(upto);
                });
            }
            Record::GroupPinned {
                job,
                group,
                version,
            } => self.replay_at(job, |job| {
                job.pins.insert(group, version);
            }),
            Record::Closed {
                job,
                accepted,
                failed,
            } => {
                self.replay_at(job, |job| job.replay_closed(&accepted, &failed));
                self.dead.revive(job, &accepted);
            }
            Record::Reopened { job, ranges } => {
                self.replay_at(job, |job| job.replay_reopened(&ranges));
            }
            Record::JobClosed {
                job,
                state,
                cancelled,
            } => self.replay_at(job, |job| {
                job.state = state;
                job.cancelled = cancelled.into_iter().collect();
            }),
            Record::JobForgotten { job } => {
                self.jobs.forget(job);
                self.dead.forget(job);
            }
            record @ (Record::RunRegistered(_)
            | Record::RunState { .. }
            | Record::Published(_)
            | Record::AdapterForgotten { .. }) => self.replay_run(record),
            Record::DeadLetter { job, letter } => self.replay_dead(job, *letter),
            Record::Scheduled { job, start, at } => self.replay_at(job, |job| {
                job.waves.add(start, at);
            }),
        }
    }

    fn replay_run(&mut self, record: Record) {
        match record {
            Record::RunRegistered(info) => {
                let run = self
                    .runs
                    .map
                    .entry(info.run)
                    .or_insert_with(|| Run::new(info.clone()));
                run.info = info;
            }
            Record::RunState { run, state } => {
                if let Some(run) = self.runs.map.get_mut(&run) {
                    run.state = state;
                }
            }
            Record::Published(entry) => {
                // Checked when it was recorded; a list may legally have gaps.
                let run = entry.version.run;
                self.registry.replay(run, entry);
            }
            Record::AdapterForgotten { version } => {
                self.registry.forget_unchecked(version);
            }
            other => debug_assert!(false, "{other:?} is not about a run"),
        }
    }

    /// Replays what happened to a job, unless it was forgotten since.
    fn replay_at(&mut self, job: JobId, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get_mut(job) {
            change(job);
        }
    }

    fn replay_dead(&mut self, id: JobId, letter: DeadLetter) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.last_failure = Some((letter.fault.code, summary(&letter.fault.message)));
            self.dead.keep(id, letter);
        }
    }

    /// Pins of what is still open; times of what is not.
    fn after_replay(&mut self) {
        let mut pins = Vec::new();
        let mut finished = Vec::new();
        for (id, job) in self.jobs.iter_mut() {
            job.known = job.total();
            job.relay_ready = job.spec.sink != SinkRef::Relay;
            if job.state != JobState::Open {
                job.pins.clear();
                job.extents.collapse();
                finished.push(*id);
                continue;
            }
            let kept = job.extents.kept_puts();
            job.drop_closed_payloads(kept.into_iter().map(|(start, _)| start));
            job.drop_closed_pins();
            pins.extend(job.pins.values().copied());
            if let PolicyRef::Version(version) = job.spec.policy {
                pins.push(version);
            }
        }
        for job in finished {
            // Their time begins anew: the clock of an earlier life means nothing here.
            self.jobs.finish(job, Millis(0));
        }
        pins.into_iter()
            .for_each(|version| self.registry.pin(version));
    }

    /// First event of a life.
    pub(crate) fn start(&mut self, out: &mut Vec<Effect>) {
        assert!(self.started.is_none(), "a life starts once");
        self.started = Some(self.now);
        self.housekeep_at = self.now;
        persist(Record::Epoch(self.epoch), out);
        self.jobs.refinish(self.now);
        if self.restored {
            self.hold_until = Some(self.now.after(self.config.restore_grace_ms));
        }
        for (_, job) in self
            .jobs
            .iter()
            .filter(|(_, job)| job.spec.sink == SinkRef::Relay)
        {
            out.push(Effect::RelayOpen {
                spec: job.spec.clone(),
                known: job.total(),
            });
        }
        // A run that was training when the last life ended is missing its learner from now on.
        for run in self.runs.map.values_mut() {
            run.lost_at = Some(self.now);
        }
        let jobs: Vec<_> = self.jobs.iter().map(|(id, _)| *id).collect();
        jobs.into_iter().for_each(|job| self.refresh(job));
        // A crash between the last settlement and the end of its job.
        let jobs: Vec<_> = self.jobs.iter().map(|(id, _)| *id).collect();
        jobs.into_iter().for_each(|job| self.end_if_done(job, out));
    }

    /// The shortest list of records that rebuilds this state.
    #[must_use]
    pub fn compacted(&self) -> Vec<Record> {
        let mut records = vec![Record::Epoch(self.epoch)];
        for (id, run) in &self.runs.map {
            records.push(Record::RunRegistered(run.info.clone()));
            records.push(Record::RunState {
                run: *id,
                state: run.state.clone(),
            });
        }
        for (_, versions) in self.registry.iter() {
            records.extend(versions.entries().map(|entry| Record::Published(*entry)));
            let forgotten = versions.forgotten().iter();
            records.extend(forgotten.map(|version| Record::AdapterForgotten { version: *version }));
        }
        for (_, job) in self.jobs.iter() {
            compact_job(job, &mut records);
        }
        records.extend(self.dead.iter().map(|(job, letter)| Record::DeadLetter {
            job,
            letter: Box::new(letter.clone()),
        }));
        records
    }
}

fn compact_job(job: &Job, records: &mut Vec<Record>) {
    let id = job.spec.job;
    records.push(Record::JobAccepted {
        spec: Box::new(job.spec.clone()),
        at: job.at,
    });
    let extents = job.extents.puts();
    records.extend(extents.map(|(start, extent, loaded, payloads)| {
        let job = id;
        if loaded {
            Record::Put {
                job,
                start,
                extent,
                payloads,
            }
        } else {
            Record::Extended { job, start, extent }
        }
    }));
    if job.admitted() > 0 {
        let upto = job.admitted();
        records.push(Record::Admitted { job: id, upto });
    }
    let pins = job.pins.iter();
    records.extend(pins.map(|(group, version)| Record::GroupPinned {
        job: id,
        group: *group,
        version: *version,
    }));
    let waves = job.waves.iter();
    records.extend(waves.map(|(start, at)| Record::Scheduled { job: id, start, at }));
    if job.closed_count() > 0 {
        records.push(Record::Closed {
            job: id,
            accepted: ranges::list(&job.accepted),
            failed: ranges::list(&job.failed),
        });
    }
    if job.state != JobState::Open {
        records.push(Record::JobClosed {
            job: id,
            state: job.state,
            cancelled: ranges::list(&job.cancelled),
        });
    }
}
