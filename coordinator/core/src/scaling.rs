//! Carries out what [`crate::autoscale`] decides, and keeps count of who was asked to come.

use volley_protocol::job::{JobKind, JobState};
use volley_protocol::run::RunState;
use volley_protocol::snapshot::WorkerState;
use volley_protocol::worker::ToWorker;
use volley_protocol::{SinkRef, WorkerId};

use crate::autoscale::{self, Crew, Demand};
use crate::coordinator::Coordinator;
use crate::effect::Effect;
use crate::roster::Worker;

/// Unexpected ends of workers within this time count against starting further ones.
const EXIT_WINDOW_MS: u64 = 60_000;
/// So many of them are answered at once: a kill must not cost time.
const EXITS_FREE: usize = 3;
/// Ends that are remembered: enough for the longest pause.
const EXITS_MAX: usize = 64;
/// Longest pause before the next start.
const START_PAUSE_MS_MAX: u64 = 10_000;

impl Coordinator {
    /// Starts and drains workers.
    pub(crate) fn scale(&mut self, out: &mut Vec<Effect>) {
        self.give_up_starts(out);
        let (demand, crew) = (self.demand(), self.crew());
        let scaling = &self.config.scaling;
        self.decision = autoscale::decide(scaling, &mut self.calm, &demand, &crew, self.now);
        if self.now >= self.start_not_before && self.hold_until.is_none() {
            for _ in 0..self.decision.start {
                self.start_worker(out);
            }
        }
        for _ in 0..self.decision.remove {
            self.drain_one(out);
        }
    }

    fn start_worker(&mut self, out: &mut Vec<Effect>) {
        self.provisions_asked += 1;
        // The epoch above makes it unique over restarts: old workers come back with their numbers.
        let provision = (self.epoch.0 << 32) | self.provisions_asked;
        let before = self.roster.starting.insert(provision, self.now);
        debug_assert!(before.is_none());
        out.push(Effect::StartWorker { provision });
    }

    fn drain_one(&mut self, out: &mut Vec<Effect>) {
        // The newest goes first: the others have warmer caches.
        let newest = self
            .roster
            .iter()
            .filter(|(_, worker)| is_removable(worker));
        let Some(id) = newest.max_by_key(|(_, w)| w.provision).map(|(id, _)| *id) else {
            return;
        };
        self.drain(id, out);
    }

    fn drain(&mut self, id: WorkerId, out: &mut Vec<Effect>) {
        let deadline_ms = self.config.scaling.drain_ms;
        let until = self.now.after(deadline_ms);
        let Some(worker) = self.roster.get_mut(id) else {
            return;
        };
        assert!(
            worker.leases.is_empty(),
            "a worker with leases is never removed"
        );
        worker.state = WorkerState::Draining;
        worker.drain_until = Some(until);
        self.roster.refresh(id);
        self.say_worker(id, ToWorker::Drain { deadline_ms }, out);
    }

    pub(crate) fn provision_failed(&mut self, provision: u64, reason: String) {
        if self.roster.starting.remove(&provision).is_some() {
            self.count_exit(reason);
        }
    }

    pub(crate) fn count_exit(&mut self, reason: String) {
        let now = self.now;
        self.exits.retain(|at| now.since(*at) < EXIT_WINDOW_MS);
        self.exits.push_back(now);
        let beyond = self.exits.len().saturating_sub(EXITS_FREE);
        if beyond > 0 {
            let pause_ms = (500u64 << beyond.min(6)).min(START_PAUSE_MS_MAX);
            self.start_not_before = now.after(pause_ms);
        }
        self.notice(reason.clone());
        self.provision_fault = Some(reason);
        while self.exits.len() > EXITS_MAX {
            self.exits.pop_front();
        }
    }

    fn give_up_starts(&mut self, out: &mut Vec<Effect>) {
        let (now, timeout_ms) = (self.now, self.config.scaling.start_timeout_ms);
        let starting = self.roster.starting.iter();
        let late = starting.filter(|(_, asked)| now.since(**asked) >= timeout_ms);
        let late: Vec<u64> = late.map(|(provision, _)| *provision).collect();
        for provision in late {
            self.roster.starting.remove(&provision);
            out.push(Effect::KillWorker { pid: 0, provision });
            self.count_exit(format!("a worker was not ready within {timeout_ms} ms"));
        }
    }

    pub(crate) fn demand(&self) -> Demand {
        let up = self.roster.iter().filter(|(_, worker)| worker.registered);
        let (count, slots) = up.fold((0, 0), |(n, slots), (_, w)| (n + 1, slots + w.slots));
        let mean = slots
            .checked_div(count)
            .unwrap_or(self.config.scaling.slots_per_worker);
        let default_ms = self.config.scaling.service_ms_default as f64;
        Demand {
            dispatchable: self.jobs.dispatchable(),
            leased: self.roster.leased(),
            service_ms: self.stats.service_ms.unwrap_or(default_ms),
            slots_per_worker: mean,
            warm: self.is_warm(),
        }
    }

    /// A training job runs and its learner is connected.
    fn is_warm(&self) -> bool {
        let mut running = self
            .runs
            .map
            .iter()
            .filter(|(_, run)| run.learner.is_some() && run.state == RunState::Training);
        running.any(|(id, _)| {
            self.jobs.iter().any(|(_, job)| {
                let trains = job.spec.kind == JobKind::Train && job.state == JobState::Open;
                trains && job.spec.sink == SinkRef::Learner(*id)
            })
        })
    }

    pub(crate) fn crew(&self) -> Crew {
        let mut crew = Crew {
            starting: u32::try_from(self.roster.starting.len()).unwrap_or(u32::MAX),
            ..Crew::default()
        };
        for (_, worker) in self.roster.iter() {
            if worker.state == WorkerState::Draining {
                crew.draining += 1;
                continue;
            }
            crew.up += 1;
            crew.busy += u32::from(!worker.leases.is_empty());
            crew.removable += u32::from(is_removable(worker));
        }
        crew
    }
}

/// May the autoscaler remove it?
fn is_removable(worker: &Worker) -> bool {
    let idle = worker.leases.is_empty() && worker.load.undelivered_bytes == 0;
    idle && worker.is_managed() && worker.registered && worker.state == WorkerState::Up
}
