//! A model of everything around a learner: disk, coordinator, workers. It holds the learner to
//! its promises over crashes.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::RangeSet;

use super::histories::Op;
use super::*;

/// One intake write as it lies on the disk.
struct Write {
    number: u64,
    kept: Vec<Arrival>,
    failed: Vec<RolloutId>,
}

pub(super) struct World {
    pub(super) config: Config,
    /// Disk: intake, step records, versions.
    writes: Vec<Write>,
    next_write: u64,
    synced: u64,
    trimmed: u64,
    versions: Vec<AdapterEntry>,
    closed: RangeSet,
    failed: RangeSet,
    /// Memory of the shell.
    held: BTreeSet<RolloutId>,
    arrived: Vec<Option<Arrival>>,
    step: Option<Batch>,
    /// Coordinator.
    sessions: u64,
    pub(super) coordinator: Option<SessionId>,
    receipt_seq: u64,
    admitted: u64,
    pins: BTreeMap<u64, AdapterVersion>,
    pub(super) told: BTreeMap<u64, Verdict>,
    /// Workers: for each session the next number, and what was sent under which number.
    workers: BTreeMap<SessionId, Vec<u64>>,
    delivered: BTreeMap<SessionId, u64>,
    pub(super) trained: BTreeSet<RolloutId>,
    pub(super) batches: Vec<Batch>,
    pub(super) state: RunState,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            writes: Vec::new(),
            next_write: 1,
            synced: 0,
            trimmed: 1,
            versions: vec![entry(0)],
            closed: RangeSet::new(),
            failed: RangeSet::new(),
            held: BTreeSet::new(),
            arrived: Vec::new(),
            step: None,
            sessions: 0,
            coordinator: None,
            receipt_seq: 0,
            admitted: 0,
            pins: BTreeMap::new(),
            told: BTreeMap::new(),
            workers: BTreeMap::new(),
            delivered: BTreeMap::new(),
            trained: BTreeSet::new(),
            batches: Vec::new(),
            state: RunState::Training,
        }
    }

    fn is_sync(&self) -> bool {
        self.config.schedule == Schedule::Sync
    }

    /// Does what the learner asks for, and holds it to its promises.
    pub(super) fn observe(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.heard(message),
            Effect::Intake {
                number,
                keep,
                failed,
            } => self.write(number, &keep, failed),
            Effect::Discard(rollouts) => {
                for rollout in rollouts {
                    assert!(self.held.remove(&rollout), "{rollout} is not held");
                }
            }
            Effect::TrimIntake { below } => {
                assert!(below > self.trimmed, "trims rise");
                self.trimmed = below;
                self.writes.retain(|write| write.number >= below);
            }
            Effect::Delivered { session, upto } => self.deliver(session, upto),
            Effect::Step(batch) => self.begin(batch),
            Effect::Checkpoint { step } => {
                assert_eq!(self.versions.last().map(|e| e.version.step), Some(step));
            }
            Effect::DeleteAdapters(_) | Effect::Exit(_) => panic!("nobody asked for that"),
        }
    }

    fn write(&mut self, number: u64, keep: &[Keep], failed: Vec<RolloutId>) {
        assert_eq!(number, self.next_write, "writes rise by one");
        self.next_write += 1;
        let mut kept = Vec::new();
        for Keep { record, rollout } in keep {
            let arrival = self.arrived[*record].clone().expect("a usable record");
            assert_eq!(arrival.rollout(), *rollout);
            assert!(self.held.insert(*rollout), "{rollout} is held twice");
            kept.push(arrival);
        }
        self.writes.push(Write {
            number,
            kept,
            failed,
        });
    }

    /// What a restart would find, as (accepted and pending, failed).
    fn on_disk(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let synced = self.writes.iter().filter(|w| w.number <= self.synced);
        let (mut kept, mut failed): (BTreeSet<_>, BTreeSet<_>) = (BTreeSet::new(), BTreeSet::new());
        for write in synced {
            kept.extend(write.kept.iter().map(|a| a.rollout().index));
            failed.extend(write.failed.iter().map(|r| r.index));
        }
        failed.extend(self.failed.iter());
        let size = u64::from(self.config.job.group_size);
        let closed = self.closed.iter().flat_map(|g| g * size..(g + 1) * size);
        kept.extend(closed.filter(|index| !failed.contains(index)));
        (kept, failed)
    }

    fn heard(&mut self, message: FromLearner) {
        match message {
            FromLearner::Reconcile {
                accepted, failed, ..
            } => {
                let accepted: RangeSet = accepted.into_iter().collect();
                let failed: RangeSet = failed.into_iter().collect();
                for (index, verdict) in &self.told {
                    let known = match verdict {
                        Verdict::Accepted => accepted.contains(*index),
                        Verdict::Failed => failed.contains(*index),
                    };
                    assert!(known, "{index} was told {verdict:?} and is forgotten");
                }
                accepted
                    .iter()
                    .for_each(|i| self.tell(i, Verdict::Accepted));
                failed.iter().for_each(|i| self.tell(i, Verdict::Failed));
            }
            FromLearner::Receipt { seq, entries } => {
                self.receipt_seq += 1;
                assert_eq!(seq, self.receipt_seq, "receipts rise by one");
                for entry in entries {
                    self.tell(entry.rollout.index, entry.verdict);
                }
            }
            FromLearner::Admit { upto, .. } if self.coordinator.is_some() => {
                assert!(upto >= self.admitted, "never falls");
                self.admitted = upto;
            }
            FromLearner::State(state) => self.state = state,
            _ => {}
        }
    }

    fn tell(&mut self, index: u64, verdict: Verdict) {
        if self.coordinator.is_none() {
            return;
        }
        let (accepted, failed) = self.on_disk();
        let durable = match verdict {
            Verdict::Accepted => accepted.contains(&index),
            Verdict::Failed => failed.contains(&index),
        };
        assert!(durable, "{index} was told {verdict:?} before it was synced");
        let before = self.told.insert(index, verdict);
        assert!(
            before.is_none_or(|v| v == verdict),
            "the first decision stands"
        );
    }

    fn deliver(&mut self, session: SessionId, upto: u64) {
        let sent = self.workers.get(&session).expect("an open session");
        let (accepted, failed) = self.on_disk();
        for index in &sent[..upto as usize] {
            let settled = accepted.contains(index) || failed.contains(index);
            assert!(settled, "{index} was delivered before it was synced");
        }
        let before = self.delivered.insert(session, upto);
        assert!(before < Some(upto), "news only");
    }

    fn begin(&mut self, batch: Batch) {
        assert!(self.step.is_none(), "one step at a time");
        assert_eq!(
            Some(&batch.parent),
            self.versions.last().map(|e| &e.version)
        );
        assert_eq!(batch.step, batch.parent.step + 1);
        assert!(batch.groups.is_sorted_by_key(|g| g.index));
        let bound = match self.config.schedule {
            Schedule::Sync => 0,
            Schedule::Async { max_staleness } => max_staleness,
        };
        for group in &batch.groups {
            assert!(group.members.is_sorted() && !group.members.is_empty());
            for member in &group.members {
                assert!(
                    self.held.contains(member),
                    "{member} is trained without its bytes"
                );
                assert!(!self.trained.contains(member), "{member} is trained twice");
                let pin = self.pins[&group.index.0];
                assert!(pin.step + bound >= batch.parent.step, "too old");
            }
        }
        self.step = Some(batch);
    }

    /// What an operation means in this world; `None` when it is impossible now.
    pub(super) fn input(&mut self, op: &Op) -> Option<Input> {
        match *op {
            Op::Arrive {
                from,
                count,
                worker,
            } => self.arrive(from, count, worker),
            Op::Fail(n) => {
                let index = self.pick(n)?;
                let fault = Fault::new(ErrorCode::AttemptsExhausted, "no");
                let rollout = rollout(index);
                let message = ToLearner::RolloutFailed { rollout, fault };
                let session = self.coordinator?;
                Some(Input::Coordinator { session, message })
            }
            Op::Sync(behind) => {
                let upto = (self.next_write - 1).saturating_sub(u64::from(behind));
                self.synced = self.synced.max(upto);
                let upto = self.synced;
                Some(Input::Synced { upto })
            }
            Op::StepDone => self.finish_step(),
            Op::CoordinatorUp => {
                self.sessions += 1;
                let session = SessionId(self.sessions);
                (self.coordinator, self.receipt_seq) = (Some(session), 0);
                Some(Input::CoordinatorUp { session })
            }
            Op::CoordinatorDown => {
                let session = self.coordinator.take()?;
                Some(Input::CoordinatorDown { session })
            }
            Op::Ack => {
                let upto = self.receipt_seq;
                let message = ToLearner::ReceiptAck { upto };
                let session = self.coordinator?;
                Some(Input::Coordinator { session, message })
            }
            Op::WorkerGone(worker) => {
                let session = *self.workers.keys().nth(usize::from(worker % 3))?;
                self.workers.remove(&session);
                Some(Input::WorkerGone { session })
            }
            Op::Restart => None,
        }
    }

    /// Some rollout: one of the newest, or with an odd number one that nobody knows settled.
    fn pick(&self, n: u8) -> Option<u64> {
        let unknown = (0..self.admitted).filter(|index| !self.told.contains_key(index));
        let unknown: Vec<u64> = unknown.collect();
        if n % 2 == 1 && !unknown.is_empty() {
            return Some(unknown[usize::from(n / 2) % unknown.len()]);
        }
        (self.admitted > 0).then(|| {
            let from = self.admitted.saturating_sub(12);
            from + u64::from(n / 2) % (self.admitted - from)
        })
    }

    fn arrive(&mut self, from: u8, count: u8, worker: u8) -> Option<Input> {
        let at = self.pick(from)?;
        let indices: Vec<u64> = (at..(at + u64::from(count)).min(self.admitted)).collect();
        while self.workers.len() < 3 {
            self.sessions += 1;
            self.workers.insert(SessionId(self.sessions), Vec::new());
        }
        let head = self.versions.last().expect("never empty").version;
        let size = u64::from(self.config.job.group_size);
        let played = |pins: &mut BTreeMap<u64, AdapterVersion>, index: u64| {
            let version = *pins.entry(index / size).or_insert(head);
            let mut arrival = arrival(index, version.step);
            arrival.version = Some(version);
            arrival
        };
        let arrivals: Vec<_> = indices.iter().map(|i| played(&mut self.pins, *i)).collect();
        let (session, sent) = self.workers.iter_mut().nth(usize::from(worker % 3))?;
        let first_seq = sent.len() as u64 + 1;
        sent.extend(&indices);
        self.arrived = arrivals.iter().cloned().map(Some).collect();
        Some(Input::Arrived {
            session: *session,
            first_seq,
            records: arrivals.into_iter().map(Ok).collect(),
        })
    }

    fn finish_step(&mut self) -> Option<Input> {
        let batch = self.step.take()?;
        for group in &batch.groups {
            self.closed.insert(group.index.0);
            self.trained.extend(&group.members);
        }
        for group in &batch.dropped {
            assert!(self.closed.insert(group.0), "dropped once");
        }
        for rollout in &batch.failed {
            assert!(self.failed.insert(rollout.index), "recorded once");
        }
        let entry = entry(batch.step);
        self.versions.push(entry);
        self.batches.push(batch);
        Some(Input::StepDone {
            report: Box::default(),
            entry,
        })
    }

    /// The process dies: what was not synced is gone, sessions end, a running step is void.
    pub(super) fn restart(&mut self) -> Learner {
        self.writes.retain(|write| write.number <= self.synced);
        self.next_write = self.synced.max(self.trimmed - 1) + 1;
        self.step = None;
        self.coordinator = None;
        self.workers.clear();
        let mut failed = self.failed.clone();
        let failures = self.writes.iter().flat_map(|w| &w.failed);
        failures.for_each(|r| failed.insert_range(r.index, r.index + 1));
        let size = u64::from(self.config.job.group_size);
        let kept = self.writes.iter().flat_map(|w| &w.kept);
        let open = kept.filter(|a| !self.closed.contains(a.rollout().index / size));
        let pending: Vec<_> = open.cloned().collect();
        self.held = pending.iter().map(Arrival::rollout).collect();
        let restored = Restored {
            versions: self.versions.clone(),
            closed: self.closed.clone(),
            failed,
            pending,
            intake_first: self.trimmed,
            intake_next: self.next_write,
        };
        let learner = Learner::new(self.config.clone(), restored).expect("its own disk");
        assert!(
            !self.is_sync() || learner.admitted >= self.admitted,
            "never falls"
        );
        learner
    }
}
