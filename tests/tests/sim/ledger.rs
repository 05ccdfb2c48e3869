//! What an observer who sees every node can check, by name, as it happens.

use std::collections::{BTreeMap, BTreeSet};

use volley_learner_core::Batch;
use volley_protocol::worker::{Lease, LeasePolicy};
use volley_protocol::{
    AdapterVersion, AttemptId, GroupIndex, JobId, JobSpec, PolicyRef, RolloutId,
};

/// Books that no node can see.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Session → leases given, leases allowed.
    credit: BTreeMap<u64, (u64, u64)>,
    /// Version that each group played with.
    versions: BTreeMap<(JobId, GroupIndex), AdapterVersion>,
    /// Rollouts in a durable step.
    trained: BTreeSet<RolloutId>,
    /// Results that the relay keeps.
    kept: BTreeSet<RolloutId>,
    /// What clients were told is durable: job → rollouts.
    acknowledged: BTreeMap<JobId, u64>,
}

impl Ledger {
    /// A worker has said `Ready`.
    pub(crate) fn allow(&mut self, session: u64, total: u64) {
        let allowed = &mut self.credit.entry(session).or_default().1;
        *allowed = (*allowed).max(total);
    }

    /// (3) The coordinator has given leases in a session.
    pub(crate) fn leases_within_credit(&mut self, session: u64, leases: u64) {
        let (given, allowed) = self.credit.entry(session).or_default();
        *given += leases;
        assert!(
            given <= allowed,
            "leases_within_credit: {given} of {allowed} in session {session}"
        );
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

    /// (2) The relay keeps the first result of a rollout, and no other.
    pub(crate) fn closed_once(&mut self, rollout: RolloutId) {
        assert!(
            self.kept.insert(rollout),
            "closed_once: {rollout:?} is kept twice"
        );
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

    /// A client was told that so many rollouts of a job are durable.
    pub(crate) fn acknowledge(&mut self, job: JobId, rollouts: u64) {
        *self.acknowledged.entry(job).or_default() += rollouts;
    }

    /// A crash took rollouts from this index on back, before anybody was told that they exist.
    pub(crate) fn taken_back(&mut self, job: JobId, from: u64) {
        self.kept
            .retain(|rollout| rollout.job != job || rollout.index < from);
    }

    /// A finished job's time is over.
    pub(crate) fn expired(&mut self, job: JobId) {
        self.acknowledged.remove(&job);
    }

    /// A coordinator has come back: it knows everything that was acknowledged.
    pub(crate) fn acknowledged_is_durable(&self, total_of: impl Fn(JobId) -> Option<u64>) {
        for (job, rollouts) in &self.acknowledged {
            let total = total_of(*job);
            assert!(
                total >= Some(*rollouts),
                "acknowledged_is_durable: job {job} has {total:?} of {rollouts}"
            );
        }
    }

    /// A rollout is leased although a worker that is connected, and has said so, holds it.
    pub(crate) fn held_is_not_leased_again(
        held: impl Iterator<Item = AttemptId>,
        leases: &[Lease],
    ) {
        let held: BTreeSet<RolloutId> = held.map(|attempt| attempt.rollout).collect();
        for lease in leases {
            let rollout = lease.attempt.rollout;
            assert!(
                !held.contains(&rollout),
                "held_is_not_leased_again: {rollout:?}"
            );
        }
    }
}
