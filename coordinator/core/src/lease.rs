//! Who gets what: grants within credit, renewal, expiry, and taking back what a worker still holds.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::limits::BATCH_ENTRIES_MAX;
use volley_protocol::snapshot::WorkerState;
use volley_protocol::worker::{Lease, LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{
    AttemptId, ErrorCode, Fault, JobId, PolicyRef, RolloutId, SinkRef, WorkerId,
};

use crate::config::DISPATCH_QUANTUM;
use crate::coordinator::{Coordinator, persist};
use crate::effect::Effect;
use crate::queue::{Blocked, Job, Place};
use crate::record::Record;
use crate::retry::Ending;
use crate::roster::{LeaseTimes, Worker};

/// First every free slot, then the rest of the credit: little work spreads over many workers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Slots,
    Credit,
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

    /// Up to `count` leases in one message, jobs in turn.
    fn grant(&mut self, id: WorkerId, count: usize, out: &mut Vec<Effect>) {
        let mut leases: Vec<Lease> = Vec::with_capacity(count);
        let mut pinned = false;
        let mut passed_over = BTreeSet::new();
        while leases.len() < count && passed_over.len() < self.jobs.candidates().len() {
            let Some(job) = self.jobs.next_turn() else {
                break;
            };
            if !self.can_play(id, job) {
                passed_over.insert(job);
                continue;
            }
            let quantum = DISPATCH_QUANTUM.min(count - leases.len());
            for _ in 0..quantum {
                let Some(lease) = self.lease_next(job, id, &mut pinned, out) else {
                    break;
                };
                leases.push(lease);
            }
            self.refresh(job);
        }
        if leases.is_empty() {
            return;
        }
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
        let lease = Lease {
            attempt,
            instance: job.extents.instance_of(index),
            seed: job.spec.seed_of(index),
            policy,
            sink,
            lease_ms: self.config.lease_ms,
        };
        let times = self.times_of(id);
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
                if let Some(version) = job.pins.get(&group) {
                    *version
                } else {
                    let version = self.registry.head(run)?;
                    job.pins.insert(group, version);
                    self.registry.pin(version);
                    *pinned = true;
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

    fn times_of(&self, job: JobId) -> LeaseTimes {
        let start_to_close = self
            .jobs
            .get(job)
            .map_or(0, |job| job.spec.retry.start_to_close_ms);
        LeaseTimes {
            since: self.now,
            until: self.now.after(self.config.lease_ms),
            // The worker keeps the limit itself; this is for one that does not.
            close_by: self
                .now
                .after(start_to_close.saturating_add(self.config.lease_ms)),
        }
    }

    /// A worker says what it holds: its leases are renewed, lost ones taken back where nobody else
    /// has the rollout by now, the rest is revoked.
    pub(crate) fn renew(&mut self, id: WorkerId, held: &[AttemptId], out: &mut Vec<Effect>) {
        let until = self.now.after(self.config.lease_ms);
        let mut unwanted = Vec::new();
        for attempt in held {
            let worker = self.roster.get_mut(id);
            if let Some(times) = worker.and_then(|worker| worker.leases.get_mut(attempt)) {
                times.until = until;
            } else if !self.take_back(id, *attempt) {
                unwanted.push(*attempt);
            }
        }
        if !unwanted.is_empty() {
            self.say_worker(id, ToWorker::Revoke(unwanted), out);
        }
    }

    /// Makes an attempt that a worker holds its lease again, if its rollout still waits.
    fn take_back(&mut self, id: WorkerId, attempt: AttemptId) -> bool {
        let RolloutId { job: job_id, index } = attempt.rollout;
        let (epoch, times) = (self.epoch, self.times_of(job_id));
        if self.roster.get(id).map(|worker| worker.state) != Some(WorkerState::Up) {
            return false;
        }
        let Some(job) = self.jobs.get_mut(job_id) else {
            return false;
        };
        if !may_return(job, attempt, epoch.0) {
            return false;
        }
        job.lease(index, id, attempt);
        if let Some(open) = job.open.get_mut(&index) {
            open.losses = open.losses.saturating_sub(1);
        }
        if let Some(worker) = self.roster.get_mut(id) {
            worker.leases.insert(attempt, times);
        }
        self.refresh(job_id);
        true
    }

    /// Ends leases that were not renewed and attempts that take too long.
    pub(crate) fn expire_leases(&mut self, out: &mut Vec<Effect>) {
        let now = self.now;
        let (mut expired, mut late) = (Vec::new(), Vec::new());
        for (id, worker) in self.roster.iter() {
            if worker.lost_at.is_some() {
                continue; // Its grace decides.
            }
            for (attempt, times) in &worker.leases {
                if times.until <= now {
                    expired.push((*id, *attempt));
                } else if times.close_by <= now && !self.waits_for_sink(attempt.rollout.job) {
                    late.push((*id, *attempt));
                }
            }
        }
        for (worker, attempt) in expired {
            self.drop_lease(worker, attempt);
            self.attempt_ended(attempt, Ending::Lost, out);
        }
        let mut revoked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        for (worker, attempt) in late {
            self.drop_lease(worker, attempt);
            revoked.entry(worker).or_default().push(attempt);
            let fault = Fault::new(
                ErrorCode::AttemptTimeout,
                "it took longer than start_to_close",
            );
            let ending = Ending::Failed {
                fault,
                retryable: true,
            };
            self.attempt_ended(attempt, ending, out);
        }
        for (worker, attempts) in revoked {
            self.say_worker(worker, ToWorker::Revoke(attempts), out);
        }
    }

    /// A finished attempt may have to wait for its sink; that is not its fault.
    fn waits_for_sink(&self, job: JobId) -> bool {
        self.jobs
            .get(job)
            .is_some_and(|job| job.gate == Err(Blocked::SinkAway))
    }

    /// Takes a lease off a worker; its rollout is the caller's.
    pub(crate) fn drop_lease(&mut self, id: WorkerId, attempt: AttemptId) -> Option<LeaseTimes> {
        let worker = self.roster.get_mut(id)?;
        worker.leases.remove(&attempt)
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

/// May an attempt that a worker holds become its lease again?
fn may_return(job: &Job, attempt: AttemptId, epoch: u64) -> bool {
    let index = attempt.rollout.index;
    // An extent that a crash took back may have been put again with other instances: what was
    // leased before the crash counts only where the extent was durable.
    let own = attempt.epoch.0 == epoch;
    let durable = attempt.epoch.0.saturating_add(1) == epoch && index < job.known;
    if !(own || durable) || job.gate == Err(Blocked::Closed) {
        return false;
    }
    if index >= job.total() || job.is_closed(index) {
        return false;
    }
    let group = job.spec.group_of(index);
    if matches!(job.spec.policy, PolicyRef::Latest(_)) && !job.pins.contains_key(&group) {
        return false;
    }
    let Some(open) = job.open.get(&index) else {
        return true;
    };
    match open.place {
        Place::Leased { .. } | Place::Failing(_) => false,
        Place::Ready | Place::Backoff { .. } => !own || attempt.number > open.dead_upto,
    }
}
