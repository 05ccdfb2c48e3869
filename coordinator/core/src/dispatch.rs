//! Who gets what: leases within credit, in turn, little work spread over many workers.

use std::collections::BTreeSet;

use volley_protocol::limits::{BATCH_ENTRIES_MAX, LEASE_PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use volley_protocol::worker::{Lease, LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{AttemptId, JobId, PolicyRef, RolloutId, SinkRef, WorkerId};

use crate::config::{DISPATCH_QUANTUM, LEASED_PAYLOAD_BYTES_MAX};
use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::queue::Job;
use crate::record::Record;
use crate::roster::{LeaseTimes, Worker};

/// First every free slot, then the rest of the credit: little work spreads over many workers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Slots,
    Credit,
}

/// What is known of payloads while a message is put together.
#[derive(Default)]
struct PayloadRoom {
    /// Bytes in this message.
    taken: usize,
    /// Bytes the worker had before it; counted when the first job has payloads.
    held: Option<usize>,
}

/// Is there room for another payload?
enum Room {
    Enough,
    /// Not in this message.
    NextMessage,
    /// Not before the worker has finished something.
    Later,
}

impl Coordinator {
    /// Leases what may be leased to who may take it.
    pub(crate) fn dispatch(&mut self, out: &mut Vec<Effect>) {
        for pass in [Pass::Slots, Pass::Credit] {
            if self.jobs.dispatchable() == 0 || self.roster.hungry().is_empty() {
                return;
            }
            let load = |id: &WorkerId| self.roster.get(*id).map_or(0, |w| w.leases.len());
            let mut order: Vec<_> = self
                .roster
                .hungry()
                .iter()
                .map(|id| (load(id), *id))
                .collect();
            order.sort_unstable();
            let workers = order.len() as u64;
            for (served, (_, worker)) in order.into_iter().enumerate() {
                let share = self.jobs.dispatchable().div_ceil(workers - served as u64);
                let room = self
                    .roster
                    .get(worker)
                    .map_or(0, |worker| room(worker, pass));
                let count = share.min(room).min(BATCH_ENTRIES_MAX as u64);
                if count > 0 {
                    self.grant(worker, count as usize, out);
                }
            }
        }
    }

    /// Up to `count` leases; payloads may make them several messages.
    fn grant(&mut self, id: WorkerId, count: usize, out: &mut Vec<Effect>) {
        let mut left = count;
        while left > 0 {
            let (granted, cut) = self.grant_message(id, left, out);
            left -= granted;
            if !cut || granted == 0 {
                return;
            }
        }
    }

    /// Up to `count` leases in one message, jobs in turn. Tells how many, and whether payloads
    /// that did not fit are the reason why there are not more.
    fn grant_message(
        &mut self,
        id: WorkerId,
        count: usize,
        out: &mut Vec<Effect>,
    ) -> (usize, bool) {
        let mut leases: Vec<Lease> = Vec::with_capacity(count);
        let (mut pinned, mut cut) = (false, false);
        let mut passed_over = BTreeSet::new();
        let mut room = PayloadRoom::default();
        while leases.len() < count && !cut {
            let Some(job) = self.jobs.next_turn(&passed_over) else {
                break;
            };
            if !self.can_play(id, job) {
                passed_over.insert(job);
                continue;
            }
            let before = leases.len();
            let quantum = DISPATCH_QUANTUM.min(count - before);
            for _ in 0..quantum {
                match self.room_for(id, job, &mut room) {
                    Room::Enough => {}
                    Room::NextMessage => {
                        cut = true;
                        break;
                    }
                    Room::Later => break,
                }
                let Some(lease) = self.lease_next(job, id, &mut pinned, out) else {
                    break;
                };
                room.taken += lease.payload.0.len();
                leases.push(lease);
            }
            if leases.len() == before {
                passed_over.insert(job);
            }
            self.refresh(job);
        }
        let granted = leases.len();
        if granted > 0 {
            self.send_leases(id, leases, pinned, out);
        }
        (granted, cut)
    }

    /// Is there room for another payload of this job? Its size is not known yet, so there must be
    /// room for any.
    fn room_for(&self, id: WorkerId, job: JobId, room: &mut PayloadRoom) -> Room {
        let loaded = |job: &Job| job.extents.has_payloads();
        if !self.jobs.get(job).is_some_and(loaded) {
            return Room::Enough;
        }
        let held = || self.roster.get(id).map_or(0, Worker::payload_bytes);
        let held = *room.held.get_or_insert_with(held);
        let next = room.taken + PAYLOAD_BYTES_MAX;
        if held + next > LEASED_PAYLOAD_BYTES_MAX {
            Room::Later
        } else if next > LEASE_PAYLOAD_BYTES_MAX {
            Room::NextMessage
        } else {
            Room::Enough
        }
    }

    fn send_leases(
        &mut self,
        id: WorkerId,
        leases: Vec<Lease>,
        pinned: bool,
        out: &mut Vec<Effect>,
    ) {
        self.tell_jobs(id, &leases, out);
        let granted = leases.len() as u64;
        let (epoch, now) = (self.epoch, self.now);
        let Some(worker) = self.roster.get_mut(id) else {
            return;
        };
        worker.granted += granted;
        assert!(
            worker.granted <= worker.credit_total,
            "leases never exceed credit"
        );
        debug_assert!(
            leases
                .iter()
                .all(|lease| worker.leases[&lease.attempt].since == now)
        );
        if let Some(session) = worker.session {
            out.push(Effect::ToWorker {
                session,
                message: ToWorker::Lease { epoch, leases },
                after_commit: pinned,
            });
        }
        self.roster.refresh(id);
    }

    /// A job's specification precedes its first lease in a session.
    fn tell_jobs(&mut self, id: WorkerId, leases: &[Lease], out: &mut Vec<Effect>) {
        let jobs: BTreeSet<JobId> = leases
            .iter()
            .map(|lease| lease.attempt.rollout.job)
            .collect();
        for job in jobs {
            let Some(worker) = self.roster.get_mut(id) else {
                return;
            };
            if worker.told.insert(job)
                && let Some(job) = self.jobs.get(job)
            {
                let spec = job.spec.clone();
                self.say_worker(id, ToWorker::Job(spec), out);
            }
        }
    }

    /// A run's adapter needs a worker with the run's base model.
    pub(crate) fn can_play(&self, worker: WorkerId, job: JobId) -> bool {
        let run = match self.jobs.get(job).map(|job| job.spec.policy) {
            None => return false,
            Some(PolicyRef::Base) => return true,
            Some(PolicyRef::Version(version)) => version.run,
            Some(PolicyRef::Latest(run)) => run,
        };
        let base = self.runs.map.get(&run).map(|run| run.info.base);
        self.roster.get(worker).map(|worker| worker.base) == base
    }

    /// Leases the next rollout of a job; pins its group's version when it is the group's first.
    fn lease_next(
        &mut self,
        id: JobId,
        worker: WorkerId,
        pinned: &mut bool,
        out: &mut Vec<Effect>,
    ) -> Option<Lease> {
        let index = self.jobs.get_mut(id)?.take()?;
        let policy = self.policy_of(id, index, pinned, out)?;
        let job = self.jobs.get_mut(id)?;
        let payload = job.extents.payload_of(index);
        debug_assert!(payload.is_some(), "what lost its payload has failed");
        let payload = payload?;
        let sink = match job.spec.sink {
            SinkRef::Relay => SinkAddr::Relay,
            SinkRef::Learner(run) => SinkAddr::Learner(self.runs.learner(run)?.sink),
        };
        let rollout = RolloutId { job: id, index };
        let number = job.open.get(&index).map_or(0, |open| open.attempts) + 1;
        let attempt = AttemptId {
            rollout,
            epoch: self.epoch,
            number,
        };
        job.lease(index, worker, attempt);
        if let Some(open) = job.open.get_mut(&index) {
            open.attempts = number;
        }
        job.retries += u64::from(number > 1);
        let (instance, seed) = (job.extents.instance_of(index), job.spec.seed_of(index));
        let times = self.times_of(id);
        let lease = Lease {
            attempt,
            instance,
            seed,
            policy,
            sink,
            lease_ms: self.lease_ms(times.heartbeat_ms),
            payload,
        };
        let times = LeaseTimes {
            payload_bytes: lease.payload.0.len(),
            ..times
        };
        let worker = self.roster.get_mut(worker)?;
        let before = worker.leases.insert(attempt, times);
        assert!(before.is_none(), "an attempt is leased once");
        Some(lease)
    }

    /// The weights of a rollout; the gate has seen to it that there are some.
    fn policy_of(
        &mut self,
        id: JobId,
        index: u64,
        pinned: &mut bool,
        out: &mut Vec<Effect>,
    ) -> Option<LeasePolicy> {
        let job = self.jobs.get_mut(id)?;
        let version = match job.spec.policy {
            PolicyRef::Base => return Some(LeasePolicy::Base),
            PolicyRef::Version(version) => version,
            PolicyRef::Latest(run) => {
                let group = job.spec.group_of(index);
                // Also when an earlier call pinned it: its record may still be on its way.
                *pinned = true;
                if let Some(version) = job.pins.get(&group) {
                    *version
                } else {
                    let version = self.registry.head(run)?;
                    job.pins.insert(group, version);
                    self.registry.pin(version);
                    let record = Record::GroupPinned {
                        job: id,
                        group,
                        version,
                    };
                    persist(record, out);
                    version
                }
            }
        };
        let source = self.runs.learner(version.run)?.sink;
        Some(LeasePolicy::Adapter { version, source })
    }
}

/// Room for leases in this pass.
fn room(worker: &Worker, pass: Pass) -> u64 {
    let credit = worker.credit_left();
    match pass {
        Pass::Slots => credit.min(worker.free_slots()),
        Pass::Credit => credit,
    }
}
