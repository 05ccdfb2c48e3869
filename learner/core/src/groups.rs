//! Groups: from the first result to the step that trains them.
//!
//! ```text
//! open ──(every member settled)──► complete ──(selected)──► training ──(step done)──► closed
//!                                      └──(too few members, or too old)──► dropped = closed
//! ```

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::{AdapterVersion, GroupIndex, JobId, RangeSet, RolloutId};

use crate::config::{Config, Schedule};
use crate::counters::GroupCounters;
use crate::effect::{Effect, Group};
use crate::ledger::Ledger;

/// An accepted result that was not trained yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    /// The version that played.
    pub(crate) version: AdapterVersion,
    /// The intake write that holds it.
    pub(crate) write: u64,
}

/// Every group of the job that is not trained.
#[derive(Debug)]
pub(crate) struct Groups {
    job: JobId,
    size: u64,
    total: u64,
    min_size: u64,
    max_staleness: u64,
    closed: RangeSet,
    pending: BTreeMap<u64, Pending>,
    /// Oldest intake write of a group that no step record names, its failures included.
    oldest_write: BTreeMap<u64, u64>,
    complete: BTreeSet<u64>,
    training: BTreeSet<u64>,
    /// Dropped since the last step: the next step record names them.
    dropped: Vec<u64>,
    /// Dropped, and named in the record of the step that is being made.
    recording: Vec<u64>,
    /// Something changed since unfit groups were dropped.
    changed: bool,
    is_training: bool,
    pub(crate) counters: GroupCounters,
}

impl Groups {
    pub(crate) fn new(config: &Config, closed: RangeSet) -> Self {
        let size = u64::from(config.job.group_size);
        debug_assert!(size > 0, "the configuration was checked");
        Self {
            job: config.job.job,
            size,
            total: config.job.rollouts / size,
            min_size: u64::from(config.min_group_size),
            max_staleness: match config.schedule {
                Schedule::Sync => 0,
                Schedule::Async { max_staleness } => max_staleness,
            },
            closed,
            pending: BTreeMap::new(),
            oldest_write: BTreeMap::new(),
            complete: BTreeSet::new(),
            training: BTreeSet::new(),
            dropped: Vec::new(),
            recording: Vec::new(),
            changed: true,
            is_training: false,
            counters: GroupCounters::default(),
        }
    }

    pub(crate) const fn of(&self, index: u64) -> u64 {
        index / self.size
    }

    const fn range(&self, group: u64) -> (u64, u64) {
        (group * self.size, (group + 1) * self.size)
    }

    pub(crate) fn is_closed(&self, group: u64) -> bool {
        self.closed.contains(group)
    }

    /// Are all groups below `end` closed?
    pub(crate) fn all_closed(&self, end: u64) -> bool {
        self.closed.watermark() >= end
    }

    /// Groups that are closed.
    pub(crate) fn closed_count(&self) -> u64 {
        self.closed.count()
    }

    pub(crate) fn is_complete(&self, group: u64) -> bool {
        self.complete.contains(&group)
    }

    /// Groups that wait for a step.
    pub(crate) fn complete_count(&self) -> u64 {
        self.complete.len() as u64
    }

    /// Groups of the whole job.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Is every group of the job complete or closed?
    pub(crate) fn all_done(&self) -> bool {
        let complete = (self.complete.len() + self.training.len()) as u64;
        self.closed.count() + complete == self.total
    }

    /// A rollout was decided, and an intake write will say so; with its result if it was accepted.
    pub(crate) fn decided(&mut self, index: u64, write: u64, version: Option<AdapterVersion>) {
        let group = self.of(index);
        debug_assert!(!self.is_closed(group), "closed groups are settled");
        let oldest = self.oldest_write.entry(group).or_insert(write);
        *oldest = write.min(*oldest);
        if let Some(version) = version {
            self.pending.insert(index, Pending { version, write });
        }
    }

    /// A decision is on the disk: its group may be complete now.
    pub(crate) fn settled(&mut self, index: u64, ledger: &Ledger) {
        let group = self.of(index);
        debug_assert!(ledger.verdict(index).is_some());
        let (from, to) = self.range(group);
        if !self.is_closed(group) && ledger.all_settled(from, to) {
            self.complete.insert(group);
            self.changed = true;
        }
    }

    /// Drops complete groups that will never be trained by a step on version `head_step` or later.
    pub(crate) fn drop_unfit(&mut self, head_step: u64, effects: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut unfit = Vec::new();
        for group in &self.complete {
            let (from, to) = self.range(*group);
            let members = self.pending.range(from..to);
            let (count, oldest) = members.fold((0, u64::MAX), |(count, oldest), (_, p)| {
                (count + 1, oldest.min(p.version.step))
            });
            if count < self.min_size {
                self.counters.short += 1;
                unfit.push(*group);
            } else if oldest.saturating_add(self.max_staleness) < head_step {
                self.counters.stale += 1;
                unfit.push(*group);
            }
        }
        for group in unfit {
            self.complete.remove(&group);
            self.dropped.push(group);
            self.close(group, effects);
        }
        debug_assert!(self.dropped.iter().all(|group| self.is_closed(*group)));
    }

    /// Takes complete groups into a step: `from..to` of them, lowest first, at most `count`.
    pub(crate) fn select(&mut self, from: u64, to: u64, count: u64) -> Vec<Group> {
        debug_assert!(!self.is_training, "one step at a time");
        self.is_training = true;
        let chosen = self.complete.range(from..to).take(count as usize);
        self.training = chosen.copied().collect();
        let mut groups = Vec::new();
        for group in &self.training {
            self.complete.remove(group);
            let (first, end) = self.range(*group);
            let members = self.pending.range(first..end);
            let members: Vec<_> = members.map(|(i, _)| self.rollout(*i)).collect();
            let degraded = (members.len() as u64) < self.size;
            self.counters.degraded += u64::from(degraded);
            groups.push(Group {
                index: GroupIndex(*group),
                members,
                degraded,
            });
        }
        groups
    }

    /// Groups dropped since this was last asked, and the failed members of those and of the
    /// groups in training.
    pub(crate) fn record(&mut self, ledger: &Ledger) -> (Vec<GroupIndex>, Vec<RolloutId>) {
        let mut dropped = std::mem::take(&mut self.dropped);
        dropped.sort_unstable();
        let all: BTreeSet<u64> = self.training.iter().chain(&dropped).copied().collect();
        let failed = all.iter().flat_map(|group| {
            let (from, to) = self.range(*group);
            ledger.failed_in(from, to).map(|index| self.rollout(index))
        });
        let failed = failed.collect();
        debug_assert!(self.recording.is_empty(), "one step at a time");
        self.recording = dropped;
        let dropped = self.recording.iter().copied().map(GroupIndex);
        (dropped.collect(), failed)
    }

    /// The step is made: its groups are closed.
    pub(crate) fn trained(&mut self, effects: &mut Vec<Effect>) {
        // Their step record is synced: a restart needs the intake for neither.
        for group in std::mem::take(&mut self.training) {
            self.close(group, effects);
            self.oldest_write.remove(&group);
        }
        for group in std::mem::take(&mut self.recording) {
            self.oldest_write.remove(&group);
        }
        debug_assert!(self.training.is_empty());
        (self.is_training, self.changed) = (false, true);
    }

    /// The step was not made: its groups wait on.
    pub(crate) fn abandoned(&mut self) {
        self.complete.append(&mut self.training);
        self.dropped.append(&mut self.recording);
        (self.is_training, self.changed) = (false, true);
        debug_assert!(self.training.is_empty());
    }

    /// Is a step being made, if only of an empty batch?
    pub(crate) const fn in_training(&self) -> bool {
        self.is_training
    }

    fn close(&mut self, group: u64, effects: &mut Vec<Effect>) {
        let (from, to) = self.range(group);
        let members: Vec<u64> = self.pending.range(from..to).map(|(i, _)| *i).collect();
        members.iter().for_each(|index| {
            self.pending.remove(index);
        });
        let new = self.closed.insert(group);
        debug_assert!(new, "closed once");
        if !members.is_empty() {
            let members = members.into_iter().map(|index| self.rollout(index));
            effects.push(Effect::Discard(members.collect()));
        }
    }

    const fn rollout(&self, index: u64) -> RolloutId {
        RolloutId {
            job: self.job,
            index,
        }
    }

    /// Lowest intake write that a restart would have to read; `next` when there is none.
    pub(crate) fn oldest_write(&self, next: u64) -> u64 {
        self.oldest_write.values().copied().min().unwrap_or(next)
    }

    /// What waits or is trained is settled and not closed; what is closed is settled.
    pub(crate) fn check(&self, ledger: &Ledger) {
        for (index, pending) in &self.pending {
            assert!(ledger.is_settled(*index), "{index} waits undecided");
            assert!(!self.is_closed(self.of(*index)), "{index} waits in vain");
            assert!(pending.write <= ledger.last_write(), "writes rise");
        }
        for group in self.complete.iter().chain(&self.training) {
            let (from, to) = self.range(*group);
            assert!(ledger.all_settled(from, to), "group {group} is not whole");
            assert!(!self.is_closed(*group), "group {group} twice");
        }
        for (from, to) in self.closed.ranges() {
            let settled = ledger.all_settled(from * self.size, to * self.size);
            assert!(settled, "closed groups {from}..{to} are not whole");
        }
        assert!(self.complete.is_disjoint(&self.training), "trained twice");
    }
}
