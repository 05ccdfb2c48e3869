//! Workers: who is here, on which session, with what room.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::snapshot::WorkerState;
use volley_protocol::worker::WorkerLoad;
use volley_protocol::{AttemptId, Digest, JobId, WorkerId};

use crate::input::{Millis, SessionId};
use crate::stats::Rate;

/// Times of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseTimes {
    /// Given, or taken over after a restart.
    pub(crate) since: Millis,
    /// Ends, unless renewed.
    pub(crate) until: Millis,
    /// What its job asks for instead of the coordinator's own bound; 0: nothing.
    pub(crate) heartbeat_ms: u64,
    /// The attempt has taken too long by then, renewed or not.
    pub(crate) close_by: Millis,
    /// Bytes of the payload that was sent with it.
    pub(crate) payload_bytes: usize,
}

/// One worker process.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// 0 when a person started it.
    pub(crate) provision: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) registered: bool,
    pub(crate) state: WorkerState,
    pub(crate) slots: u32,
    pub(crate) base: Digest,
    /// Leases allowed and given in this session.
    pub(crate) credit_total: u64,
    pub(crate) granted: u64,
    pub(crate) leases: BTreeMap<AttemptId, LeaseTimes>,
    /// Jobs whose specification was sent in this session.
    pub(crate) told: BTreeSet<JobId>,
    pub(crate) live: BTreeSet<Digest>,
    pub(crate) load: WorkerLoad,
    pub(crate) tokens: Rate,
    pub(crate) heard_at: Millis,
    pub(crate) lost_at: Option<Millis>,
    /// A draining worker that is still there by then is killed.
    pub(crate) drain_until: Option<Millis>,
}

impl Worker {
    pub(crate) const fn new(name: String, pid: u32, now: Millis) -> Self {
        Self {
            name,
            pid,
            provision: 0,
            session: None,
            registered: false,
            state: WorkerState::Up,
            slots: 0,
            base: Digest([0; 32]),
            credit_total: 0,
            granted: 0,
            leases: BTreeMap::new(),
            told: BTreeSet::new(),
            live: BTreeSet::new(),
            load: WorkerLoad {
                busy_slots: 0,
                undelivered_bytes: 0,
                episodes_total: 0,
                tokens_total: 0,
                prefill_tokens_total: 0,
                adapter_step: 0,
            },
            tokens: Rate::new(),
            heard_at: now,
            lost_at: None,
            drain_until: None,
        }
    }

    /// Leases that may still be given in this session.
    pub(crate) fn credit_left(&self) -> u64 {
        debug_assert!(
            self.granted <= self.credit_total,
            "leases never exceed credit"
        );
        if self.registered && self.session.is_some() && self.state == WorkerState::Up {
            self.credit_total - self.granted
        } else {
            0
        }
    }

    /// Payload bytes of its leases.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.leases.values().map(|times| times.payload_bytes).sum()
    }

    /// Slots that nothing is leased for.
    pub(crate) fn free_slots(&self) -> u64 {
        u64::from(self.slots).saturating_sub(self.leases.len() as u64)
    }

    /// Started by the autoscaler, so it may also be removed by it.
    pub(crate) const fn is_managed(&self) -> bool {
        self.provision != 0
    }
}

/// Everybody who works, and everybody who was asked to come.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    workers: BTreeMap<WorkerId, Worker>,
    sessions: BTreeMap<SessionId, WorkerId>,
    /// Workers with credit left.
    hungry: BTreeSet<WorkerId>,
    /// `StartWorker` requests without a worker yet, and when they were made.
    pub(crate) starting: BTreeMap<u64, Millis>,
}

impl Roster {
    pub(crate) fn get(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker)
    }

    /// Whoever changes credit or state calls [`Self::refresh`] afterwards.
    pub(crate) fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&worker)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&WorkerId, &mut Worker)> {
        self.workers.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(crate) const fn hungry(&self) -> &BTreeSet<WorkerId> {
        &self.hungry
    }

    /// Whose session that is; `None` for stale ones.
    pub(crate) fn of_session(&self, session: SessionId) -> Option<WorkerId> {
        self.sessions.get(&session).copied()
    }

    /// Who answers to a provision.
    pub(crate) fn of_provision(&self, provision: u64) -> Option<WorkerId> {
        let mut workers = self.workers.iter();
        let found = workers.find(|(_, worker)| provision != 0 && worker.provision == provision);
        found.map(|(id, _)| *id)
    }

    /// Opens a session; tells which older one of the same worker it replaces.
    pub(crate) fn attach(
        &mut self,
        id: WorkerId,
        session: SessionId,
        fresh: Worker,
    ) -> Option<SessionId> {
        let worker = self.workers.entry(id).or_insert(fresh);
        let old = worker.session.replace(session);
        worker.registered = false;
        (worker.credit_total, worker.granted) = (0, 0);
        worker.told.clear();
        if let Some(old) = old {
            self.sessions.remove(&old);
        }
        let before = self.sessions.insert(session, id);
        debug_assert!(before.is_none(), "session ids are never used twice");
        self.refresh(id);
        old
    }

    /// Closes a session; its worker stays, without one.
    pub(crate) fn detach(&mut self, session: SessionId) -> Option<WorkerId> {
        let id = self.sessions.remove(&session)?;
        if let Some(worker) = self.workers.get_mut(&id) {
            debug_assert_eq!(worker.session, Some(session));
            worker.session = None;
        }
        self.refresh(id);
        Some(id)
    }

    /// Takes a worker out for good.
    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(&id)?;
        if let Some(session) = worker.session {
            self.sessions.remove(&session);
        }
        self.hungry.remove(&id);
        Some(worker)
    }

    /// Keeps the index of workers with credit.
    pub(crate) fn refresh(&mut self, id: WorkerId) {
        let left = self.workers.get(&id).map_or(0, Worker::credit_left);
        if left > 0 {
            self.hungry.insert(id);
        } else {
            self.hungry.remove(&id);
        }
    }

    /// Rollouts at workers.
    pub(crate) fn leased(&self) -> u64 {
        self.workers
            .values()
            .map(|worker| worker.leases.len() as u64)
            .sum()
    }

    /// Every session, with its worker.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = (&SessionId, &WorkerId)> {
        self.sessions.iter()
    }
}
