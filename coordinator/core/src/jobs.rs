//! All jobs: who is next, what waits, what is forgotten when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use volley_protocol::job::JobState;
use volley_protocol::{JobId, RolloutId};

use crate::config::{FINISHED_JOBS_MAX, KEEP_MS_MIN};
use crate::extents::Kept;
use crate::input::Millis;
use crate::place::Blocked;
use crate::queue::Job;

/// A priority; higher ones come first.
type Class = std::cmp::Reverse<i8>;

/// The jobs of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    map: BTreeMap<JobId, Job>,
    /// Jobs with something that may be leased now, those of high priority first.
    candidates: BTreeSet<(Class, JobId)>,
    /// The job of each priority that was served last; at most one for each of them.
    turns: BTreeMap<Class, JobId>,
    dispatchable: u64,
    /// What all jobs keep for waiting rollouts.
    kept: Kept,
    /// Ends of waits. Entries that were overtaken stay until their time (`Job::wake`).
    backoff: BTreeSet<(Millis, RolloutId)>,
    /// Finished jobs by the moment at which they are forgotten.
    finished: BTreeSet<(Millis, JobId)>,
}

impl Jobs {
    pub(crate) fn get(&self, job: JobId) -> Option<&Job> {
        self.map.get(&job)
    }

    /// Whoever changes a job refreshes it afterwards.
    pub(crate) fn get_mut(&mut self, job: JobId) -> Option<&mut Job> {
        self.map.get_mut(&job)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&JobId, &Job)> {
        self.map.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&JobId, &mut Job)> {
        self.map.iter_mut()
    }

    pub(crate) fn insert(&mut self, job: Job) {
        let id = job.spec.job;
        let before = self.map.insert(id, job);
        assert!(before.is_none(), "the caller has looked");
    }

    /// Jobs that are not finished.
    pub(crate) fn open_count(&self) -> usize {
        self.map.len() - self.finished.len()
    }

    /// What may be leased now, over all jobs.
    pub(crate) const fn dispatchable(&self) -> u64 {
        self.dispatchable
    }

    /// What all jobs keep for waiting rollouts.
    pub(crate) const fn kept(&self) -> Kept {
        self.kept
    }

    /// Is the job listed as one that has something to lease?
    pub(crate) fn is_candidate(&self, job: &Job) -> bool {
        self.candidates.contains(&(class_of(job), job.spec.job))
    }

    /// Brings the sums up to date after a job or its gate changed.
    pub(crate) fn refresh(&mut self, id: JobId, gate: Result<(), Blocked>) {
        let Some(job) = self.map.get_mut(&id) else {
            return;
        };
        job.gate = gate;
        let takeable = if gate.is_ok() { job.takeable() } else { 0 };
        debug_assert!(self.dispatchable >= job.dispatchable_shown);
        self.dispatchable = self.dispatchable - job.dispatchable_shown + takeable;
        job.dispatchable_shown = takeable;
        let place = (class_of(job), id);
        if takeable > 0 {
            self.candidates.insert(place);
        } else {
            self.candidates.remove(&place);
        }
        let (before, kept) = (job.kept_shown, job.extents.kept());
        job.kept_shown = kept;
        self.kept.payloads = self.kept.payloads - before.payloads + kept.payloads;
        self.kept.bytes = self.kept.bytes - before.bytes + kept.bytes;
    }

    /// The next job in turn that is not passed over, of the highest priority that has one. There
    /// is no ageing: a lower priority waits for as long as a higher one has work.
    pub(crate) fn next_turn(&mut self, passed_over: &BTreeSet<JobId>) -> Option<JobId> {
        const FIRST: JobId = JobId(0);
        const LAST: JobId = JobId(u128::MAX);
        let mut class = self.candidates.first()?.0;
        loop {
            let turn = self.turns.get(&class).copied().unwrap_or(LAST);
            let beyond = (Excluded((class, turn)), Included((class, LAST)));
            let round = (Included((class, FIRST)), Included((class, turn)));
            let in_turn = self
                .candidates
                .range(beyond)
                .chain(self.candidates.range(round));
            let mut waiting = in_turn.filter(|(_, job)| !passed_over.contains(job));
            if let Some((_, job)) = waiting.next() {
                let job = *job;
                self.turns.insert(class, job);
                return Some(job);
            }
            let lower = (Excluded((class, LAST)), Unbounded);
            class = self.candidates.range(lower).next()?.0;
        }
    }

    /// A rollout waits until then.
    pub(crate) fn wait(&mut self, until: Millis, rollout: RolloutId) {
        self.backoff.insert((until, rollout));
    }

    /// End of the next wait.
    pub(crate) fn next_wake(&self) -> Option<Millis> {
        self.backoff.first().map(|(until, _)| *until)
    }

    /// Wakes what has waited long enough; tells whose jobs changed.
    pub(crate) fn wake(&mut self, now: Millis) -> BTreeSet<JobId> {
        let mut changed = BTreeSet::new();
        while let Some(&(until, rollout)) = self.backoff.first()
            && until <= now
        {
            self.backoff.pop_first();
            if let Some(job) = self.map.get_mut(&rollout.job)
                && job.wake(rollout.index, until)
            {
                changed.insert(rollout.job);
            }
        }
        changed
    }

    /// A job has ended: it is forgotten after its time.
    pub(crate) fn finish(&mut self, id: JobId, now: Millis) {
        let Some(job) = self.map.get(&id) else {
            debug_assert!(false, "only known jobs end");
            return;
        };
        debug_assert_ne!(job.state, JobState::Open);
        let until = now.after(job.spec.keep_ms.max(KEEP_MS_MIN));
        self.finished.insert((until, id));
    }

    /// Finished jobs of an earlier life: their time begins now.
    pub(crate) fn refinish(&mut self, now: Millis) {
        let finished = std::mem::take(&mut self.finished);
        finished
            .into_iter()
            .for_each(|(_, job)| self.finish(job, now));
    }

    /// Takes out a job whose time is over, or that is one too many.
    pub(crate) fn expire(&mut self, now: Millis) -> Option<Job> {
        let &(until, id) = self.finished.first()?;
        if until > now && self.finished.len() <= FINISHED_JOBS_MAX {
            return None;
        }
        self.finished.pop_first();
        let job = self.map.remove(&id);
        debug_assert!(job.is_some(), "finished jobs are in the map");
        debug_assert!(
            job.as_ref()
                .is_none_or(|job| job.kept_shown == Kept::default()),
            "ended jobs keep nothing"
        );
        job
    }

    /// Drops a job while records are replayed.
    pub(crate) fn forget(&mut self, id: JobId) {
        self.map.remove(&id);
        self.finished.retain(|(_, job)| *job != id);
    }
}

fn class_of(job: &Job) -> Class {
    std::cmp::Reverse(job.spec.priority)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::spec;

    #[test]
    fn higher_priorities_first_and_equal_ones_in_turn() {
        let mut jobs = Jobs::default();
        for (id, priority) in [(1, 0), (2, 7), (3, -7), (4, 7), (5, 0)] {
            let spec = volley_protocol::JobSpec {
                priority,
                ..spec(id, 5)
            };
            jobs.insert(Job::new(spec, Millis(0)));
            jobs.refresh(JobId(id), Ok(()));
        }
        let order = |jobs: &mut Jobs, passed_over: &[u128]| -> Vec<u128> {
            let over = passed_over.iter().map(|id| JobId(*id)).collect();
            let next = (0..3).filter_map(|_| jobs.next_turn(&over));
            next.map(|job| job.0).collect()
        };
        assert_eq!(order(&mut jobs, &[]), [2, 4, 2]);
        assert_eq!(order(&mut jobs, &[2]), [4, 4, 4]);
        assert_eq!(order(&mut jobs, &[2, 4]), [1, 5, 1]);
        assert_eq!(order(&mut jobs, &[2, 4, 1, 5]), [3, 3, 3]);
        assert_eq!(order(&mut jobs, &[1, 2, 3, 4, 5]), [0; 0]);
        jobs.refresh(JobId(2), Err(Blocked::SinkAway));
        assert_eq!(order(&mut jobs, &[]), [4, 4, 4]);
        jobs.refresh(JobId(4), Err(Blocked::SinkAway));
        assert_eq!(order(&mut jobs, &[]), [5, 1, 5]);
    }

    #[test]
    fn jobs_take_turns() {
        let mut jobs = Jobs::default();
        for id in 1..=3 {
            jobs.insert(Job::new(spec(id, 5), Millis(0)));
            jobs.refresh(JobId(id), Ok(()));
        }
        let order: Vec<_> = (0..5)
            .filter_map(|_| jobs.next_turn(&BTreeSet::new()))
            .map(|j| j.0)
            .collect();
        assert_eq!(order, [1, 2, 3, 1, 2]);
        assert_eq!(jobs.dispatchable(), 15);
        jobs.refresh(JobId(2), Err(Blocked::SinkAway));
        assert_eq!(jobs.dispatchable(), 10);
        assert_eq!(jobs.next_turn(&BTreeSet::new()), Some(JobId(3)));
    }

    #[test]
    fn finished_jobs_are_forgotten_in_time() {
        let mut jobs = Jobs::default();
        let mut job = Job::new(spec(1, 0), Millis(0));
        job.state = JobState::Done;
        jobs.insert(job);
        jobs.finish(JobId(1), Millis(10));
        assert_eq!(jobs.open_count(), 0);
        assert!(jobs.expire(Millis(KEEP_MS_MIN)).is_none());
        assert!(jobs.expire(Millis(KEEP_MS_MIN + 10)).is_some());
        assert!(jobs.get(JobId(1)).is_none());
    }
}
