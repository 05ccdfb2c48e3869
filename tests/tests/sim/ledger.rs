//! What an observer who sees every node can check, by name, as it happens.

use std::collections::{BTreeMap, BTreeSet};

use volley_coordinator_core::Record;
use volley_learner_core::Batch;
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::learner::FromLearner;
use volley_protocol::worker::{Lease, LeasePolicy};
use volley_protocol::{
    AdapterVersion, AttemptId, Digest, GroupIndex, JobId, JobSpec, PolicyRef, RangeSet, RolloutId,
};

/// Workers that one rollout may kill in one life of the coordinator: the default budget, and two
/// whose deaths it may not have been able to tell from a departure.
const DEATHS_MAX: u32 = 3 + 2;

/// Books that no node can see.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Session → leases given, leases allowed.
    credit: BTreeMap<u64, (u64, u64)>,
    /// Version that each group played with.
    versions: BTreeMap<(JobId, GroupIndex), AdapterVersion>,
    /// Rollouts in a durable step.
    trained: BTreeSet<RolloutId>,
    /// Rollouts of which the relay keeps a record.
    kept: BTreeMap<JobId, RangeSet>,
    /// What clients were told is durable: job → put (0: its submit) → rollouts.
    acknowledged: BTreeMap<JobId, BTreeMap<u128, u64>>,
    /// What the coordinator has recorded as closed.
    closed: BTreeMap<JobId, RangeSet>,
    /// What clients were told is cancelled.
    cancelled: BTreeSet<JobId>,
    /// What the learner has said that it has settled, on reconnecting.
    settled: BTreeMap<JobId, RangeSet>,
    /// Workers that a rollout killed, in one life of the coordinator.
    deaths: BTreeMap<RolloutId, u32>,
    /// Versions that somebody was told of: (lineage, step) → parent, digest.
    chain: BTreeMap<(u32, u64), (Digest, Digest)>,
    /// What the client has read since it started.
    read: BTreeMap<JobId, RangeSet>,
}

impl Ledger {
    /// A worker has said `Ready`.
    pub(crate) fn allow(&mut self, session: u64, total: u64) {
        let allowed = &mut self.credit.entry(session).or_default().1;
        *allowed = (*allowed).max(total);
    }

    /// (3) The coordinator has given leases in a session.
    pub(crate) fn leases_within_credit(&mut self, session: u64, leases: usize) {
        let (given, allowed) = self.credit.entry(session).or_default();
        *given += leases as u64;
        assert!(
            given <= allowed,
            "leases_within_credit: {given} of {allowed} in session {session}"
        );
    }

    /// (1) What is leased is nowhere else: not closed, cancelled, settled or given up.
    pub(crate) fn is_to_be_leased(&self, leases: &[Lease]) {
        for lease in leases {
            let rollout = lease.attempt.rollout;
            let RolloutId { job, index } = rollout;
            let within = |books: &BTreeMap<JobId, RangeSet>| {
                books.get(&job).is_some_and(|set| set.contains(index))
            };
            assert!(
                !self.cancelled.contains(&job),
                "cancelled_is_not_leased: {rollout}"
            );
            assert!(!within(&self.closed), "closed_is_not_leased: {rollout}");
            assert!(
                !within(&self.settled),
                "settled_is_not_leased_again: {rollout}"
            );
            let deaths = self.deaths.get(&rollout).copied().unwrap_or(0);
            assert!(
                deaths <= DEATHS_MAX,
                "budgets_are_kept: {rollout} has killed {deaths} workers"
            );
        }
    }

    /// A rollout is leased although a worker that is connected, and has said so, holds it.
    pub(crate) fn held_is_not_leased_again<'a>(
        &self,
        held: impl Iterator<Item = &'a AttemptId>,
        leases: &[Lease],
    ) {
        let leased: BTreeSet<RolloutId> = leases.iter().map(|l| l.attempt.rollout).collect();
        for attempt in held {
            assert!(
                !leased.contains(&attempt.rollout),
                "held_is_not_leased_again: {:?}",
                attempt.rollout
            );
        }
    }

    /// The coordinator has decided.
    pub(crate) fn recorded(&mut self, record: &Record) {
        match record {
            Record::Closed {
                job,
                accepted,
                failed,
            } => {
                let closed = self.closed.entry(*job).or_default();
                for (start, end) in accepted.iter().chain(failed) {
                    closed.insert_range(*start, *end);
                }
            }
            Record::Reopened { job, ranges } => {
                let reopened: RangeSet = ranges.iter().copied().collect();
                let closed = self.closed.entry(*job).or_default();
                *closed = closed.iter().filter(|i| !reopened.contains(*i)).fold(
                    RangeSet::new(),
                    |mut set, index| {
                        set.insert(index);
                        set
                    },
                );
            }
            Record::JobForgotten { job } => {
                self.closed.remove(job);
            }
            _ => {}
        }
    }

    /// A coordinator has come back with this: it knows everything that was acknowledged.
    pub(crate) fn coordinator_restarts(&mut self, records: &[Record]) {
        self.closed.clear();
        self.deaths.clear();
        let mut totals: BTreeMap<JobId, u64> = BTreeMap::new();
        for record in records {
            self.recorded(record);
            match record {
                Record::JobAccepted { spec, .. } => {
                    totals.insert(spec.job, spec.rollouts);
                }
                // Of a queue that has ended only the number of its rollouts is left.
                Record::Extended { job, start, extent } => {
                    totals.insert(*job, start + extent.rollouts);
                }
                _ => {}
            }
        }
        for (job, puts) in &self.acknowledged {
            let rollouts: u64 = puts.values().sum();
            let total = totals.get(job).copied();
            assert!(
                total >= Some(rollouts),
                "acknowledged_is_durable: job {job} has {total:?} of {rollouts}"
            );
        }
    }

    /// (4) An episode begins: its group has one version, for ever.
    pub(crate) fn groups_keep_their_version(&mut self, spec: &JobSpec, lease: &Lease) {
        let LeasePolicy::Adapter { version, .. } = lease.policy else {
            return;
        };
        if !matches!(spec.policy, PolicyRef::Latest(_)) {
            return;
        }
        let group = spec.group_of(lease.attempt.rollout.index);
        let known = *self.versions.entry((spec.job, group)).or_insert(version);
        assert_eq!(
            known, version,
            "groups_keep_their_version: {group:?} of job {}",
            spec.job
        );
    }

    /// (2) The relay keeps the first record of a rollout, and no other.
    pub(crate) fn closed_once(&mut self, rollout: RolloutId) {
        let new = self
            .kept
            .entry(rollout.job)
            .or_default()
            .insert(rollout.index);
        assert!(new, "closed_once: {rollout:?} is kept twice");
    }

    /// (2) A step is durable.
    pub(crate) fn trained_at_most_once(&mut self, batch: &Batch) {
        for rollout in batch.groups.iter().flat_map(|group| &group.members) {
            assert!(
                self.trained.insert(*rollout),
                "trained_at_most_once: {rollout:?}"
            );
        }
    }

    /// (5) Nothing older than the bound enters a step; (9) groups are whole or marked.
    pub(crate) fn steps_are_fresh_and_whole(
        &self,
        spec: &JobSpec,
        batch: &Batch,
        max_staleness: u64,
    ) {
        for group in &batch.groups {
            let version = self
                .versions
                .get(&(spec.job, group.index))
                .expect("its members were played");
            let age = batch.parent.step - version.step.min(batch.parent.step);
            assert!(
                age <= max_staleness,
                "nothing_stale_is_trained: {group:?} is {age} steps old"
            );
            let whole = group.members.len() == spec.group_size as usize;
            assert!(
                whole != group.degraded,
                "groups_are_whole_or_marked: {group:?}"
            );
        }
    }

    /// The learner has said something, whether the coordinator listens or not.
    pub(crate) fn learner_said(&mut self, message: &FromLearner) {
        match message {
            FromLearner::Register { versions, .. } => {
                versions.iter().for_each(|entry| self.one_chain(entry));
            }
            FromLearner::Published(entry) => self.one_chain(entry),
            FromLearner::Reconcile {
                job,
                accepted,
                failed,
            } => {
                let settled = self.settled.entry(*job).or_default();
                for (start, end) in accepted.iter().chain(failed) {
                    settled.insert_range(*start, *end);
                }
            }
            _ => {}
        }
    }

    /// (8) A step of a lineage gives one version, and its parent is the one before it.
    fn one_chain(&mut self, entry: &AdapterEntry) {
        let AdapterVersion {
            lineage,
            step,
            digest,
            ..
        } = entry.version;
        let told = (entry.parent, digest);
        let known = *self.chain.entry((lineage, step)).or_insert(told);
        assert_eq!(known, told, "one_chain: two versions of step {step}");
        if let Some(before) = step.checked_sub(1)
            && let Some((_, parent)) = self.chain.get(&(lineage, before))
        {
            assert_eq!(*parent, entry.parent, "one_chain: parent of step {step}");
        }
    }

    /// A learner has come back: every version that somebody was told of is there.
    pub(crate) fn published_is_durable(&self, head: &AdapterVersion) {
        let newest = self.chain.last_key_value();
        let newest = newest.map_or(0, |((_, step), _)| *step);
        assert!(
            head.step >= newest,
            "published_is_durable: step {newest} was published, {} is there",
            head.step
        );
    }

    /// (10) Bytes are deleted: no group that may still play needs them.
    pub(crate) fn nothing_needed_is_deleted(
        &self,
        version: &AdapterVersion,
        is_open: impl Fn(JobId, GroupIndex) -> bool,
    ) {
        for ((job, group), pinned) in &self.versions {
            let needed = pinned == version && is_open(*job, *group);
            assert!(
                !needed,
                "nothing_needed_is_deleted: {group:?} of job {job} plays {version:?}"
            );
        }
    }

    /// A client was told that a job (`put` 0) or a put is durable.
    pub(crate) fn acknowledge(&mut self, job: JobId, put: u128, rollouts: u64) {
        self.acknowledged
            .entry(job)
            .or_default()
            .insert(put, rollouts);
    }

    /// How many rollouts of a job are durable, as far as clients know.
    pub(crate) fn acknowledged(&self, job: JobId) -> u64 {
        let puts = self.acknowledged.get(&job);
        puts.map_or(0, |puts| puts.values().sum())
    }

    /// A client was told that a job has ended for good.
    pub(crate) fn cancel(&mut self, job: JobId) {
        self.cancelled.insert(job);
    }

    /// A client has read a record: each is there once.
    pub(crate) fn read_once(&mut self, job: JobId, index: u64) {
        let new = self.read.entry(job).or_default().insert(index);
        assert!(new, "read_once: {index} of job {job} was read twice");
    }

    pub(crate) fn read_count(&self, job: JobId) -> u64 {
        self.read.get(&job).map_or(0, RangeSet::count)
    }

    /// The client begins anew, and reads from the beginning.
    pub(crate) fn client_restarts(&mut self) {
        self.read.clear();
    }

    /// A crash took rollouts from this index on back, before anybody was told that they exist, or
    /// has read what became of them.
    pub(crate) fn taken_back(&mut self, job: JobId, from: u64) {
        let read = self.read.get(&job).and_then(|set| set.ranges().last());
        let end = read.map_or(0, |(_, end)| end);
        assert!(
            end <= from,
            "what_was_read_stays: job {job} was read up to {end}, there are {from}"
        );
        if let Some(set) = self.kept.get_mut(&job) {
            let ranges = set.ranges().map(|(start, end)| (start, end.min(from)));
            *set = ranges.filter(|(start, end)| start < end).collect();
        }
    }

    /// A finished job's time is over: nothing is known of it any more.
    pub(crate) fn expired(&mut self, job: JobId) {
        self.acknowledged.remove(&job);
        self.kept.remove(&job);
        self.closed.remove(&job);
        self.read.remove(&job);
        self.cancelled.remove(&job);
        self.versions.retain(|(of, _), _| *of != job);
    }

    /// A rollout has ended its worker.
    pub(crate) fn died_of(&mut self, rollout: RolloutId) {
        *self.deaths.entry(rollout).or_default() += 1;
    }
}
