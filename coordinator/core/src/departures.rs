//! How workers leave: drained, lost, dead, or too slow to go.

use volley_protocol::snapshot::WorkerState;
use volley_protocol::{ErrorCode, Fault, WorkerId};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, close};
use crate::input::SessionId;
use crate::retry::Ending;
use crate::roster::Worker;

impl Coordinator {
    pub(crate) fn worker_drained(&mut self, id: WorkerId, out: &mut Vec<Effect>) {
        let until = self.now.after(self.config.scaling.drain_ms);
        let Some(worker) = self.roster.get_mut(id) else {
            return;
        };
        worker.state = WorkerState::Draining;
        worker.drain_until = worker.drain_until.or(Some(until));
        let attempts: Vec<_> = std::mem::take(&mut worker.leases).into_keys().collect();
        let fault = Fault::new(ErrorCode::Interrupted, "its worker stopped");
        for attempt in attempts {
            let ending = Ending::Returned {
                fault: fault.clone(),
            };
            self.attempt_ended(attempt, ending, out);
        }
        self.roster.refresh(id);
    }

    pub(crate) fn worker_down(
        &mut self,
        session: SessionId,
        process_dead: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(id) = self.roster.detach(session) else {
            return;
        };
        let draining = self
            .roster
            .get(id)
            .is_some_and(|w| w.state == WorkerState::Draining);
        if process_dead || draining {
            let managed = self.roster.get(id).filter(|w| w.is_managed() && !draining);
            if let Some(name) = managed.map(|worker| worker.name.clone()) {
                self.count_exit(format!("{name} ended unasked"));
            }
            self.lose_worker(id, out);
        } else if let Some(worker) = self.roster.get_mut(id) {
            worker.state = WorkerState::Lost;
            worker.lost_at = Some(self.now);
        }
        self.roster.refresh(id);
    }

    /// A worker is gone for good, and what it had is tried elsewhere.
    pub(crate) fn lose_worker(&mut self, id: WorkerId, out: &mut Vec<Effect>) {
        let Some(worker) = self.roster.remove(id) else {
            return;
        };
        let count = worker.leases.len();
        if worker.state == WorkerState::Draining {
            self.notice(format!("{} has left", worker.name));
        } else {
            self.notice(format!("{} was lost with {count} rollouts", worker.name));
        }
        let fault = Fault::new(ErrorCode::WorkerLost, format!("{} was lost", worker.name));
        for attempt in worker.leases.into_keys() {
            let ending = Ending::Lost {
                fault: fault.clone(),
            };
            self.attempt_ended(attempt, ending, out);
        }
        debug_assert!(self.roster.get(id).is_none());
    }

    /// Ends graces and drains that took too long.
    pub(crate) fn look_after_workers(&mut self, out: &mut Vec<Effect>) {
        let (now, grace_ms) = (self.now, self.config.reattach_grace_ms);
        let over = |worker: &Worker| {
            let lost = worker.lost_at.is_some_and(|at| now.since(at) >= grace_ms);
            lost || worker.drain_until.is_some_and(|until| until <= now)
        };
        let gone = self.roster.iter().filter(|(_, worker)| over(worker));
        let gone: Vec<_> = gone
            .map(|(id, w)| (*id, w.pid, w.provision, w.session))
            .collect();
        for (id, pid, provision, session) in gone {
            if let Some(session) = session {
                out.push(close(
                    session,
                    ErrorCode::PeerLost,
                    "the drain took too long",
                ));
            }
            if provision != 0 {
                out.push(Effect::KillWorker { pid, provision });
            }
            self.lose_worker(id, out);
        }
    }

    /// A process that was asked for has ended.
    pub(crate) fn worker_exited(&mut self, provision: u64, pid: u32, out: &mut Vec<Effect>) {
        if self.roster.starting.remove(&provision).is_some() {
            self.count_exit(format!("a worker (pid {pid}) ended before it was ready"));
        } else if let Some(id) = self.roster.of_provision(provision) {
            let draining = self
                .roster
                .get(id)
                .is_some_and(|w| w.state == WorkerState::Draining);
            if !draining {
                self.count_exit(format!("a worker (pid {pid}) ended unasked"));
            }
            self.lose_worker(id, out);
        }
    }
}
