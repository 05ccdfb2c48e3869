//! What workers say, and what becomes of those that say nothing any more.

use std::collections::BTreeSet;

use volley_protocol::snapshot::WorkerState;
use volley_protocol::worker::{FromWorker, ToWorker, WorkerLoad};
use volley_protocol::{
    AdapterVersion, AttemptId, Digest, ErrorCode, Fault, RunId, SinkRef, WorkerId,
};

use crate::config::HELD_MAX;
use crate::coordinator::Coordinator;
use crate::effect::{Effect, close, to_worker};
use crate::input::SessionId;
use crate::retry::Ending;
use crate::roster::Worker;

/// What a worker says of itself when it registers.
struct Registration {
    slots: u32,
    base: Digest,
    provision: u64,
    held: Vec<AttemptId>,
    live: Vec<Digest>,
}

impl Coordinator {
    pub(crate) fn worker_up(
        &mut self,
        session: SessionId,
        id: WorkerId,
        name: String,
        pid: u32,
        out: &mut Vec<Effect>,
    ) {
        let fresh = Worker::new(name, pid, self.now);
        if let Some(old) = self.roster.attach(id, session, fresh) {
            out.push(close(
                old,
                ErrorCode::PeerLost,
                "a newer session of the same worker is open",
            ));
        }
        if let Some(worker) = self.roster.get_mut(id) {
            (worker.lost_at, worker.heard_at) = (None, self.now);
            if worker.state == WorkerState::Lost {
                worker.state = WorkerState::Up;
            }
        }
    }

    pub(crate) fn worker_said(
        &mut self,
        session: SessionId,
        message: FromWorker,
        out: &mut Vec<Effect>,
    ) {
        let Some(id) = self.roster.of_session(session) else {
            return; // A session that was replaced or closed: its words are out of date.
        };
        let registered = self.roster.get(id).is_some_and(|worker| worker.registered);
        if !registered && !matches!(message, FromWorker::Register { .. }) {
            out.push(close(
                session,
                ErrorCode::InvalidRequest,
                "Register is the first message",
            ));
            return;
        }
        if let Some(worker) = self.roster.get_mut(id) {
            worker.heard_at = self.now;
        }
        match message {
            FromWorker::Register {
                slots,
                base,
                provision,
                held,
                live,
                numerics: _,
            } => {
                let registration = Registration {
                    slots,
                    base,
                    provision,
                    held,
                    live,
                };
                self.register_worker(id, session, registration, out);
            }
            FromWorker::Ready { credit_total } => self.raise_credit(id, credit_total),
            FromWorker::Heartbeat { held, load } => self.heartbeat(id, &held, load, out),
            FromWorker::AttemptFailed {
                attempt,
                fault,
                retryable,
            } => {
                if self.drop_lease(id, attempt).is_some() {
                    self.attempt_ended(attempt, Ending::of_fault(fault.cut(), retryable), out);
                }
            }
            FromWorker::Live { version } => self.worker_live(id, &version, out),
            FromWorker::Drained => self.worker_drained(id, out),
        }
    }

    fn register_worker(
        &mut self,
        id: WorkerId,
        session: SessionId,
        registration: Registration,
        out: &mut Vec<Effect>,
    ) {
        let Registration {
            slots,
            base,
            provision,
            held,
            live,
        } = registration;
        if slots == 0 || held.len() > HELD_MAX {
            let why = format!("{slots} slots, {} attempts held", held.len());
            out.push(close(session, ErrorCode::InvalidRequest, why));
            return;
        }
        if !self.may_come(id, provision) {
            out.push(close(
                session,
                ErrorCode::PeerLost,
                "it was given up and replaced",
            ));
            out.push(Effect::KillWorker {
                pid: self.roster.get(id).map_or(0, |w| w.pid),
                provision,
            });
            self.lose_worker(id, out);
            return;
        }
        self.roster.starting.remove(&provision);
        let Some(worker) = self.roster.get_mut(id) else {
            return;
        };
        worker.registered = true;
        (worker.slots, worker.base, worker.provision) = (slots, base, provision);
        worker.live = live.into_iter().collect();
        let gone = |attempt: &&AttemptId| !held.contains(attempt);
        let gone: Vec<_> = worker.leases.keys().filter(gone).copied().collect();
        let name = worker.name.clone();
        // Never arrived, or failed without our hearing of it, or delivered and about to be settled.
        let fault = Fault::new(ErrorCode::PeerLost, "the worker came back without it");
        for attempt in gone {
            self.drop_lease(id, attempt);
            let ending = Ending::Returned {
                fault: fault.clone(),
            };
            self.attempt_ended(attempt, ending, out);
        }
        self.renew(id, &held, out);
        self.tell_sinks(id, &held, out);
        self.roster.refresh(id);
        self.notice(format!("{name} is here with {slots} slots"));
    }

    /// While a worker was away, the learners of what it holds may have moved. When nothing is left
    /// to lease, nothing else would tell it.
    fn tell_sinks(&self, id: WorkerId, held: &[AttemptId], out: &mut Vec<Effect>) {
        let run_of = |attempt: &AttemptId| match self.jobs.get(attempt.rollout.job)?.spec.sink {
            SinkRef::Learner(run) => Some(run),
            SinkRef::Relay => None,
        };
        let runs: BTreeSet<RunId> = held.iter().filter_map(run_of).collect();
        for run in runs {
            let sink = self.runs.learner(run).map(|learner| learner.sink);
            if let (Some(source), Some(version)) = (sink, self.registry.head(run)) {
                self.say_worker(id, ToWorker::Announce { version, source }, out);
            }
        }
    }

    /// A worker that this life started, and gave up since, would be one too many.
    fn may_come(&self, id: WorkerId, provision: u64) -> bool {
        let own = provision >> 32 == self.epoch.0 && provision != 0;
        let expected = self.roster.starting.contains_key(&provision);
        !own || expected || self.roster.of_provision(provision) == Some(id)
    }

    fn raise_credit(&mut self, id: WorkerId, credit_total: u64) {
        if let Some(worker) = self.roster.get_mut(id) {
            worker.credit_total = worker.credit_total.max(credit_total);
            debug_assert!(worker.granted <= worker.credit_total);
        }
        self.roster.refresh(id);
    }

    fn heartbeat(
        &mut self,
        id: WorkerId,
        held: &[AttemptId],
        load: WorkerLoad,
        out: &mut Vec<Effect>,
    ) {
        if let Some(worker) = self.roster.get_mut(id) {
            let before = std::mem::replace(&mut worker.load, load);
            let new_tokens = load.tokens_total.saturating_sub(before.tokens_total);
            worker.tokens.add(self.now, new_tokens);
            self.stats.tokens.add(self.now, new_tokens);
        }
        self.renew(id, held, out);
    }

    fn worker_live(&mut self, id: WorkerId, version: &AdapterVersion, out: &mut Vec<Effect>) {
        let Some(worker) = self.roster.get_mut(id) else {
            return;
        };
        worker.live.insert(version.digest);
        worker.load.adapter_step = worker.load.adapter_step.max(version.step);
        let wanted = self
            .registry
            .of(version.run)
            .is_some_and(|run| run.has_digest(&version.digest));
        if !wanted && let Some(worker) = self.roster.get_mut(id) {
            worker.live.remove(&version.digest);
            self.say_worker(id, ToWorker::Retire(vec![version.digest]), out);
        }
    }

    /// Says something to every registered worker that `wants` it.
    pub(crate) fn say_workers(
        &self,
        message: &ToWorker,
        wants: impl Fn(&Worker) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let wanting = self
            .roster
            .iter()
            .filter(|(_, worker)| worker.registered && wants(worker));
        let sessions = wanting.filter_map(|(_, worker)| worker.session);
        out.extend(sessions.map(|session| to_worker(session, message.clone())));
    }
}
