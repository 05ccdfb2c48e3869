//! The coordinator's relay: results of each job in a file that only grows, synced in groups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use volley_coordinator_core::Input;
use volley_learner_core::Arrival;
use volley_protocol::worker::ToWorker;
use volley_protocol::{JobId, RangeSet, RolloutId};

use crate::events::{Event, Node, Page, Wire};
use crate::plants::Plant;
use crate::world::{SYNC_MS, World};

/// Records in one page.
const PAGE_RECORDS: usize = 100;

/// A settled rollout, as it stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) index: u64,
    pub(crate) accepted: bool,
    /// What was played, as the worker says.
    pub(crate) instance: u64,
}

/// Results of one job.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// What is synced, in the order in which it was settled.
    log: Vec<Kept>,
    pub(crate) accepted: RangeSet,
    pub(crate) failed: RangeSet,
    /// Written, not yet synced.
    staged: BTreeSet<u64>,
    known: u64,
    rollouts: u64,
    /// So many of them no crash takes back.
    durable: u64,
    complete: bool,
}

impl Segments {
    fn is_settled(&self, index: u64) -> bool {
        self.accepted.contains(index) || self.failed.contains(index)
    }

    /// A record is on the disk.
    fn keep(&mut self, kept: Kept) {
        self.staged.remove(&kept.index);
        self.log.push(kept);
        let set = if kept.accepted {
            &mut self.accepted
        } else {
            &mut self.failed
        };
        set.insert(kept.index);
    }

    /// Drops what lies at or beyond `known`: it belongs to extents that a crash took back.
    fn cut(&mut self, known: u64) {
        let mut log = std::mem::take(&mut self.log);
        log.retain(|kept| kept.index < known);
        (self.accepted, self.failed) = (RangeSet::new(), RangeSet::new());
        log.into_iter().for_each(|kept| self.keep(kept));
    }

    /// Was it durable when this life began?
    pub(crate) const fn was_known(&self, index: u64) -> bool {
        index < self.known
    }

    pub(crate) fn log(&self) -> &[Kept] {
        &self.log
    }
}

/// All files, and what is on its way to them.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    pub(crate) jobs: BTreeMap<JobId, Segments>,
    /// In the order of writing: number of the write, job, record.
    unsynced: VecDeque<(u64, JobId, Kept)>,
    last_write: u64,
    sync_ms: u64,
    /// Of each worker's session: which records came, and those whose write is not yet synced.
    sessions: BTreeMap<u64, Inbound>,
}

#[derive(Debug, Default)]
struct Inbound {
    done: RangeSet,
    waiting: Vec<(u64, u64, u64)>,
}

impl Relay {
    fn write(&mut self, job: JobId, kept: Kept) {
        self.last_write += 1;
        self.unsynced.push_back((self.last_write, job, kept));
    }

    pub(crate) fn session_gone(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced.is_empty()
    }
}

impl World {
    /// Files are opened: at the start of a life, and for new jobs.
    pub(crate) fn relay_open(&mut self, job: JobId, known: u64, rollouts: u64) {
        let segments = self.coordinator.relay.jobs.entry(job).or_default();
        (segments.known, segments.rollouts, segments.durable) = (known, rollouts, rollouts);
        segments.complete = false;
        if self.plant != Some(Plant::KeepLostExtent) {
            segments.cut(known);
        }
        let (accepted, failed) = (segments.accepted.clone(), segments.failed.clone());
        self.ledger.taken_back(job, known);
        // New jobs need no answer; one that comes all the same does no harm.
        self.coordinate(Input::RelayRestored {
            job,
            accepted,
            failed,
        });
    }

    pub(crate) fn relay_grew(&mut self, job: JobId, rollouts: u64) {
        if let Some(segments) = self.coordinator.relay.jobs.get_mut(&job) {
            segments.rollouts = segments.rollouts.max(rollouts);
        }
    }

    /// A commit says that a queue has so many rollouts: from now on they are shown.
    pub(crate) fn relay_is_durable(&mut self, job: JobId, rollouts: u64) {
        if let Some(segments) = self.coordinator.relay.jobs.get_mut(&job) {
            segments.durable = segments.durable.max(rollouts);
        }
    }

    pub(crate) fn relay_complete(&mut self, job: JobId) {
        if let Some(segments) = self.coordinator.relay.jobs.get_mut(&job) {
            segments.complete = true;
        }
    }

    /// A worker's results.
    pub(crate) fn relay_takes(&mut self, session: u64, first_seq: u64, records: &[Arrival]) {
        let epoch = self.coordinator.life;
        let fenced = self.plant == Some(Plant::FenceResults);
        let twice = self.plant == Some(Plant::KeepDuplicates);
        let relay = &mut self.coordinator.relay;
        for record in records {
            let RolloutId { job, index } = record.rollout();
            let Some(segments) = relay.jobs.get_mut(&job) else {
                continue;
            };
            let of = record.attempt.epoch.0;
            assert!(
                of != epoch || index < segments.rollouts,
                "a lease of rollout {index} before the relay knew that there are as many"
            );
            let before = of + 1 == epoch && index < segments.known && !fenced;
            let valid = of == epoch || before;
            let fresh = |segments: &mut Segments| {
                twice || (!segments.is_settled(index) && segments.staged.insert(index))
            };
            if valid && fresh(segments) {
                let kept = Kept {
                    index,
                    accepted: true,
                    instance: record.reward as u64,
                };
                relay.write(job, kept);
            }
        }
        let last = relay.last_write;
        let inbound = relay.sessions.entry(session).or_default();
        let end = first_seq + records.len() as u64;
        if self.plant == Some(Plant::DeliverEarly) {
            inbound.done.insert_range(first_seq, end);
            self.say_delivered(session);
        } else {
            inbound.waiting.push((last, first_seq, end));
        }
        self.begin_relay_sync();
    }

    /// The core has given a rollout up.
    pub(crate) fn relay_fails(&mut self, rollout: RolloutId) {
        let relay = &mut self.coordinator.relay;
        let segments = relay.jobs.entry(rollout.job).or_default();
        let index = rollout.index;
        if !segments.is_settled(index) && segments.staged.insert(index) {
            let kept = Kept {
                index,
                accepted: false,
                instance: 0,
            };
            relay.write(rollout.job, kept);
            self.begin_relay_sync();
        }
    }

    fn begin_relay_sync(&mut self) {
        let now = self.schedule.now_ms();
        let sync_ms = self.sync_ms();
        let relay = &mut self.coordinator.relay;
        relay.sync_ms = (now + sync_ms).max(relay.sync_ms);
        let (life, write) = (self.coordinator.life, relay.last_write);
        let at_ms = relay.sync_ms;
        let event = if self.disk_fails(Node::Coordinator) {
            Event::CommitFailed(life)
        } else {
            Event::RelaySynced { life, write }
        };
        self.schedule.at(at_ms, event);
        if sync_ms > SYNC_MS && self.hurts(20) {
            let within_ms = self.rng.below(sync_ms);
            self.schedule
                .after(within_ms, Event::CrashCoordinator(life));
        }
    }

    pub(crate) fn relay_synced(&mut self, life: u64, write: u64) {
        if self.coordinator.life != life || self.coordinator.core.is_none() {
            return;
        }
        let mut accepted = Vec::new();
        while let Some((number, job, kept)) = self.coordinator.relay.unsynced.front().copied() {
            if number > write {
                break;
            }
            self.coordinator.relay.unsynced.pop_front();
            if self.on_disk(job, kept) && kept.accepted {
                let index = kept.index;
                accepted.push(RolloutId { job, index });
            }
        }
        let mut told = Vec::new();
        for (session, inbound) in &mut self.coordinator.relay.sessions {
            let before = inbound.waiting.len();
            inbound.waiting.retain(|(number, from, to)| {
                let synced = *number <= write;
                if synced {
                    inbound.done.insert_range(*from, *to);
                }
                !synced
            });
            if inbound.waiting.len() < before {
                told.push(*session);
            }
        }
        told.into_iter()
            .for_each(|session| self.say_delivered(session));
        let lost = self.plant == Some(Plant::LoseReceipts) && self.rng.chance(20);
        if !lost && !accepted.is_empty() {
            self.coordinate(Input::RelaySettled { entries: accepted });
        }
    }

    /// Bulk streams may end out of order: everything up to the first gap is delivered.
    fn say_delivered(&mut self, session: u64) {
        let inbound = self.coordinator.relay.sessions.get(&session);
        let upto = inbound.map_or(0, |inbound| inbound.done.first_gap(1) - 1);
        if upto > 0 {
            let delivered = Box::new(ToWorker::Delivered { upto });
            self.send(session, Node::Coordinator, Wire::ToWorker(delivered));
        }
    }

    fn on_disk(&mut self, job: JobId, kept: Kept) -> bool {
        let Some(segments) = self.coordinator.relay.jobs.get_mut(&job) else {
            return false; // It has expired meanwhile.
        };
        segments.keep(kept);
        let index = kept.index;
        self.ledger.closed_once(RolloutId { job, index });
        self.outcome.settled += u64::from(kept.accepted);
        true
    }

    /// The process is gone: of what was not synced a first part may be on the disk, and the record
    /// behind it is torn.
    pub(crate) fn relay_crashes(&mut self) {
        let unsynced = std::mem::take(&mut self.coordinator.relay.unsynced);
        self.coordinator.relay.sessions.clear();
        self.outcome.torn_tails += u64::from(!unsynced.is_empty());
        let whole = self.rng.below(unsynced.len() as u64 + 1) as usize;
        for (place, (_, job, mut kept)) in unsynced.into_iter().enumerate() {
            if place > whole || (place == whole && self.plant != Some(Plant::AcceptTorn)) {
                break;
            }
            if place == whole {
                kept.instance ^= 0x5A5A;
            }
            self.on_disk(job, kept);
        }
        for segments in self.coordinator.relay.jobs.values_mut() {
            segments.staged.clear();
        }
    }

    pub(crate) fn relay_page(&self, id: u32, job: JobId, cursor: u64) -> Page {
        let segments = self.coordinator.relay.jobs.get(&job);
        let log = segments.map_or(&[][..], |segments| &segments.log);
        let rest = log.get(cursor as usize..).unwrap_or_default();
        // A cursor is a place in the file: behind it nothing may be taken out again.
        let early = self.plant == Some(Plant::ShowEarly);
        let durable = segments.map_or(0, |segments| segments.durable);
        let stays = |kept: &&Kept| early || kept.index < durable;
        let page = rest.iter().take_while(stays).take(PAGE_RECORDS);
        let records: Vec<Kept> = page.copied().collect();
        // Whatever was written before the job's end is in the file by now.
        let all_synced = segments.is_some_and(|segments| segments.staged.is_empty());
        let at_end = records.len() == rest.len() && all_synced;
        Page {
            id,
            job,
            next_cursor: cursor + records.len() as u64,
            complete: at_end && segments.is_some_and(|segments| segments.complete),
            records,
        }
    }
}
