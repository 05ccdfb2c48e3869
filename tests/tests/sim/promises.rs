//! Promises that are checked by looking at several nodes at once.

use std::collections::BTreeMap;

use volley_coordinator_core::{Coordinator, Millis, Record};
use volley_protocol::job::{JobKind, JobState};
use volley_protocol::{AttemptId, JobId, RangeSet, RolloutId};

use crate::learner_node::TRAIN;
use crate::relay::Kept;
use crate::world::World;

/// Which instance each rollout of a job plays, from the coordinator's own records.
#[derive(Debug, Default)]
struct Instances {
    group_size: u64,
    /// First index → first instance, rollouts.
    spans: BTreeMap<u64, (u64, u64)>,
    total: u64,
}

impl Instances {
    fn add(&mut self, start: u64, first_instance: u64, rollouts: u64) {
        self.spans.insert(start, (first_instance, rollouts));
        self.total = self.total.max(start + rollouts);
    }

    /// A queue that has ended does not remember what was put, only how much.
    fn is_forgotten(&self, index: u64) -> bool {
        index < self.total && self.of(index).is_none()
    }

    fn of(&self, index: u64) -> Option<u64> {
        let (start, (first, rollouts)) = self.spans.range(..=index).next_back()?;
        let offset = index - start;
        (offset < *rollouts).then(|| first + offset / self.group_size)
    }
}

impl World {
    /// A worker is told that a result is delivered, and frees it: its sink has it on the disk.
    pub(crate) fn delivered_is_kept(&self, attempt: &AttemptId) {
        let RolloutId { job, index } = attempt.rollout;
        if job == TRAIN {
            let kept = self.learner.has_on_disk(index);
            assert!(kept, "delivered_is_kept: {attempt:?} at the learner");
            return;
        }
        let Some(segments) = self.coordinator.relay.jobs.get(&job) else {
            return; // Its time is over.
        };
        let (of, epoch) = (attempt.epoch.0, self.coordinator.life);
        // What a crash took back is not kept.
        let counts = of == epoch || (of + 1 == epoch && segments.was_known(index));
        let kept = segments.accepted.contains(index) || segments.failed.contains(index);
        assert!(
            kept || !counts,
            "delivered_is_kept: {attempt:?} at the relay"
        );
    }

    /// What the relay keeps was played for the instance that the rollout is of.
    pub(crate) fn results_are_of_their_instance(&self) {
        let Some(core) = &self.coordinator.core else {
            return;
        };
        let mut jobs: BTreeMap<JobId, Instances> = BTreeMap::new();
        for record in core.compacted() {
            match record {
                Record::JobAccepted { spec, .. } => {
                    let instances = jobs.entry(spec.job).or_default();
                    instances.group_size = u64::from(spec.group_size);
                    instances.add(0, spec.first_instance, spec.rollouts);
                }
                Record::Extended { job, start, extent } => {
                    let instances = jobs.entry(job).or_default();
                    instances.add(start, extent.first_instance, extent.rollouts);
                }
                _ => {}
            }
        }
        for (job, segments) in &self.coordinator.relay.jobs {
            let Some(instances) = jobs.get(job) else {
                continue;
            };
            let to_check = |kept: &&Kept| kept.accepted && !instances.is_forgotten(kept.index);
            for kept in segments.log().iter().filter(to_check) {
                assert_eq!(
                    Some(kept.instance),
                    instances.of(kept.index),
                    "results_are_of_their_instance: {} of job {job}",
                    kept.index
                );
            }
        }
    }

    /// Every job has ended, or is a queue with nothing left in it.
    pub(crate) fn jobs_are_done(&self) -> bool {
        let Some(core) = &self.coordinator.core else {
            return false;
        };
        let done = core.snapshot(Millis(0)).jobs.iter().all(|job| {
            let empty = job.accepted + job.failed == job.rollouts;
            job.state != JobState::Open || (job.kind == JobKind::Queue && empty)
        });
        done && self.coordinator.relay.is_synced()
    }

    /// The coordinator's ledger is what the sinks decided, and nothing is missing in it.
    pub(crate) fn ledgers_agree(&self) {
        let Some(core) = &self.coordinator.core else {
            return;
        };
        self.results_are_of_their_instance();
        let states: BTreeMap<JobId, JobState> = core
            .snapshot(Millis(0))
            .jobs
            .iter()
            .map(|job| (job.job, job.state))
            .collect();
        for record in core.compacted() {
            let Record::Closed {
                job,
                accepted,
                failed,
            } = record
            else {
                continue;
            };
            let Some(segments) = self.coordinator.relay.jobs.get(&job) else {
                continue;
            };
            let accepted: RangeSet = accepted.into_iter().collect();
            let failed: RangeSet = failed.into_iter().collect();
            assert_eq!(accepted, segments.accepted, "ledgers_agree: job {job}");
            if states.get(&job) != Some(&JobState::Cancelled) {
                assert_eq!(failed, segments.failed, "ledgers_agree: job {job} failed");
                let all = self.ledger.acknowledged(job);
                let closed = accepted.count() + failed.count();
                assert!(
                    closed >= all,
                    "nothing_is_lost: {closed} of {all} rollouts of job {job} are closed"
                );
            }
        }
    }

    /// Liveness: once nothing goes wrong any more, everything comes to its end.
    pub(crate) fn everything_ends(&self) {
        if self.is_over() {
            return;
        }
        let what = (
            self.client.is_done(),
            self.learner.is_done(),
            self.jobs_are_done(),
        );
        let jobs = self.coordinator.core.as_ref().map(|core: &Coordinator| {
            let snapshot = core.snapshot(Millis(0));
            (snapshot.jobs, snapshot.workers, snapshot.problems)
        });
        panic!("everything_ends: client, learner, jobs {what:?}; {jobs:#?}");
    }

    /// Every node looks at everything it knows.
    pub(crate) fn scan(&mut self) {
        if let Some(core) = &self.coordinator.core {
            core.check_invariants()
                .unwrap_or_else(|violation| panic!("{violation}"));
        }
        if let Some(core) = &self.learner.core {
            core.check_invariants();
        }
        for worker in self.workers.values() {
            worker.core.check_invariants();
        }
        self.outcome.workers_peak = self.outcome.workers_peak.max(self.workers.len() as u64);
    }
}
