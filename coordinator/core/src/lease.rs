//! Leases after they were given: renewal, expiry, and taking back what a worker still holds.

use std::collections::BTreeMap;

use volley_protocol::snapshot::WorkerState;
use volley_protocol::worker::ToWorker;
use volley_protocol::{AttemptId, ErrorCode, Fault, JobId, PolicyRef, RolloutId, WorkerId};

use crate::coordinator::Coordinator;
use crate::effect::Effect;
use crate::input::Millis;
use crate::place::{Blocked, Place};
use crate::queue::Job;
use crate::retry::Ending;
use crate::roster::LeaseTimes;

impl Coordinator {
    pub(crate) fn times_of(&self, job: JobId) -> LeaseTimes {
        let policy = self.jobs.get(job).map(|job| &job.spec.retry);
        let heartbeat_ms = policy.map_or(0, |policy| policy.heartbeat_ms);
        let close_by = match policy.map_or(0, |policy| policy.start_to_close_ms) {
            0 => Millis(u64::MAX),
            // The worker keeps the limit itself, from the start in a slot; this is for one that
            // does not.
            limit_ms => self
                .now
                .after(limit_ms.saturating_add(self.config.lease_ms)),
        };
        LeaseTimes {
            since: self.now,
            until: self.now.after(self.lease_ms(heartbeat_ms)),
            heartbeat_ms,
            close_by,
            payload_bytes: 0,
        }
    }

    /// How long a lease lasts without being renewed.
    pub(crate) const fn lease_ms(&self, heartbeat_ms: u64) -> u64 {
        match heartbeat_ms {
            0 => self.config.lease_ms,
            asked_ms => asked_ms,
        }
    }

    /// A worker says what it holds: its leases are renewed, lost ones taken back where nobody else
    /// has the rollout by now, the rest is revoked.
    pub(crate) fn renew(&mut self, id: WorkerId, held: &[AttemptId], out: &mut Vec<Effect>) {
        let (now, lease_ms) = (self.now, self.config.lease_ms);
        let mut unwanted = Vec::new();
        for attempt in held {
            let worker = self.roster.get_mut(id);
            if let Some(times) = worker.and_then(|worker| worker.leases.get_mut(attempt)) {
                let lasts_ms = match times.heartbeat_ms {
                    0 => lease_ms,
                    asked_ms => asked_ms,
                };
                times.until = now.after(lasts_ms);
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
            let in_grace = worker.lost_at.is_some();
            for (attempt, times) in &worker.leases {
                if in_grace && times.heartbeat_ms == 0 {
                    continue; // The worker's grace decides, unless the job asks for less.
                }
                if times.until <= now {
                    let fault = not_renewed(&worker.name, times, self.config.lease_ms);
                    expired.push((*id, *attempt, fault));
                } else if !in_grace
                    && times.close_by <= now
                    && !self.waits_for_sink(attempt.rollout.job)
                {
                    late.push((*id, *attempt));
                }
            }
        }
        for (worker, attempt, fault) in expired {
            self.drop_lease(worker, attempt);
            self.attempt_ended(attempt, Ending::Lost { fault }, out);
        }
        self.end_late(late, out);
    }

    /// Ends attempts that took longer than `start_to_close`.
    fn end_late(&mut self, late: Vec<(WorkerId, AttemptId)>, out: &mut Vec<Effect>) {
        let mut revoked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        for (worker, attempt) in late {
            self.drop_lease(worker, attempt);
            revoked.entry(worker).or_default().push(attempt);
            let job = self.jobs.get(attempt.rollout.job);
            let limit_ms = job.map_or(0, |job| job.spec.retry.start_to_close_ms);
            let why = format!("it took longer than start_to_close, {limit_ms} ms");
            let ending = Ending::Failed {
                fault: Fault::new(ErrorCode::AttemptTimeout, why),
                retryable: true,
            };
            self.attempt_ended(attempt, ending, out);
        }
        for (worker, attempts) in revoked {
            self.revoke(worker, attempts, out);
        }
    }

    /// Tells a worker that nobody wants these any more.
    pub(crate) fn revoke(&self, worker: WorkerId, attempts: Vec<AttemptId>, out: &mut Vec<Effect>) {
        self.say_worker(worker, ToWorker::Revoke(attempts), out);
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

/// Why a lease that was not renewed is over.
fn not_renewed(worker: &str, times: &LeaseTimes, lease_ms: u64) -> Fault {
    let (code, ms) = match times.heartbeat_ms {
        0 => (ErrorCode::WorkerLost, lease_ms),
        asked_ms => (ErrorCode::HeartbeatTimeout, asked_ms),
    };
    Fault::new(code, format!("{worker} did not renew it for {ms} ms"))
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
