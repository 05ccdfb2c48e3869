//! `schedule_to_start` and `schedule_to_close`: rollouts that waited too long, or took too long with
//! everything. The other two time-outs are the lease's (`lease`).
//!
//! Rollouts are scheduled in waves: all of a job, an extent, what a learner admits at a time. Only
//! jobs with one of the two time-outs remember when.

use std::collections::BTreeMap;

use volley_protocol::job::JobState;
use volley_protocol::limits::JOB_EXTENTS_MAX;
use volley_protocol::{AttemptId, ErrorCode, Fault, JobId, RetryPolicy, WorkerId};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::input::Millis;
use crate::place::{Blocked, Place};
use crate::queue::Job;
use crate::record::Record;

/// Rollouts that are timed out in one look, so that a job of a billion does not stop the others.
/// What is left has its turn a tenth of a second later; a worker may take it until then.
const TIMED_OUT_PER_LOOK_MAX: usize = 4_096;

/// Waves that a job remembers: as many as a queue has extents. Further ones count as scheduled with
/// the last.
const WAVES_MAX: usize = JOB_EXTENTS_MAX;

/// When the rollouts of a job were scheduled, by the first index of each wave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waves(BTreeMap<u64, Millis>);

/// Which time-out is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    Start,
    Close,
}

impl Waves {
    /// A wave begins at this index; false when it counts with the one before.
    pub(crate) fn add(&mut self, start: u64, at: Millis) -> bool {
        let last = self.0.last_key_value();
        let new = self.0.len() < WAVES_MAX && last.is_none_or(|(_, before)| *before < at);
        if new {
            self.0.insert(start, at);
        }
        new
    }

    /// First index and moment of each, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Millis)> + '_ {
        self.0.iter().map(|(start, at)| (*start, *at))
    }

    /// Forgets waves that end at or before this index.
    fn forget_below(&mut self, closed: u64) {
        while self.0.keys().nth(1).is_some_and(|second| *second <= closed) {
            self.0.pop_first();
        }
    }

    /// Waves of before this moment: first index, first index of the next one.
    fn until(&self, limit: Millis, end: u64) -> Vec<(u64, u64)> {
        let ends = self.0.keys().skip(1).copied().chain([end]);
        let waves = self.0.iter().zip(ends);
        let old = waves.take_while(|((_, at), _)| **at <= limit);
        old.map(|((start, _), end)| (*start, end)).collect()
    }
}

/// Does a job with this policy remember when its rollouts were scheduled?
pub(crate) const fn is_timed(policy: &RetryPolicy) -> bool {
    policy.schedule_to_start_ms > 0 || policy.schedule_to_close_ms > 0
}

impl Job {
    /// Rollouts whose time is over, at most `max`.
    fn late(&mut self, now: Millis, max: usize) -> BTreeMap<u64, Late> {
        let (start_ms, close_ms) = {
            let policy = &self.spec.retry;
            (policy.schedule_to_start_ms, policy.schedule_to_close_ms)
        };
        let closed = self.closed_watermark();
        self.waves.forget_below(closed);
        let mut late = BTreeMap::new();
        let before = |ms: u64| now.0.checked_sub(ms).filter(|_| ms > 0).map(Millis);
        for (limit, kind) in [
            (before(close_ms), Late::Close),
            (before(start_ms), Late::Start),
        ] {
            let Some(limit) = limit else {
                continue;
            };
            for (start, end) in self.waves.until(limit, self.limit()) {
                if kind == Late::Close {
                    self.late_open(start, end, max, &mut late);
                }
                self.late_fresh(start, end, kind, max, &mut late);
            }
        }
        if let Some(limit) = before(start_ms) {
            let waits = |index: &&u64| self.open.get(index).is_some_and(|o| o.ready_at <= limit);
            for index in self.ready.iter().filter(waits) {
                if late.len() >= max {
                    break;
                }
                late.entry(*index).or_insert(Late::Start);
            }
        }
        late
    }

    fn late_open(&self, start: u64, end: u64, max: usize, late: &mut BTreeMap<u64, Late>) {
        for (index, open) in self.open.range(start..end) {
            if late.len() >= max {
                return;
            }
            if !matches!(open.place, Place::Failing(_)) {
                late.insert(*index, Late::Close);
            }
        }
    }

    fn late_fresh(
        &self,
        start: u64,
        end: u64,
        kind: Late,
        max: usize,
        late: &mut BTreeMap<u64, Late>,
    ) {
        let mut at = self.next_fresh(start.max(self.cursor));
        while at < end && late.len() < max {
            late.entry(at).or_insert(kind);
            at = self.next_fresh(at + 1);
        }
    }
}

impl Coordinator {
    /// A wave of a job begins at this index now.
    pub(crate) fn schedule(&mut self, id: JobId, start: u64, out: &mut Vec<Effect>) {
        let at = self.now;
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if is_timed(&job.spec.retry) && job.waves.add(start, at) {
            persist(Record::Scheduled { job: id, start, at }, out);
        }
    }

    /// Gives up rollouts whose time is over.
    pub(crate) fn time_out(&mut self, out: &mut Vec<Effect>) {
        let due = |job: &Job| {
            // A learner that is away, or workers that may still come back, are not its fault.
            let waits = matches!(job.gate, Err(Blocked::SinkAway | Blocked::Restoring));
            job.state == JobState::Open && is_timed(&job.spec.retry) && !waits
        };
        let due: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| due(job))
            .map(|(id, _)| *id)
            .collect();
        let mut room = TIMED_OUT_PER_LOOK_MAX;
        for id in due {
            let now = self.now;
            let Some(job) = self.jobs.get_mut(id) else {
                continue;
            };
            let late = job.late(now, room);
            room -= late.len();
            if !late.is_empty() {
                self.time_out_rollouts(id, &late, out);
            }
        }
    }

    fn time_out_rollouts(&mut self, id: JobId, late: &BTreeMap<u64, Late>, out: &mut Vec<Effect>) {
        let mut given_up = Vec::with_capacity(late.len());
        let mut revoked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        for (index, kind) in late {
            let Some(job) = self.jobs.get_mut(id) else {
                return;
            };
            let fault = late_fault(job, *index, *kind);
            job.open_fresh(*index, self.now);
            let place = job.open.get(index).map(|open| open.place.clone());
            if let Some(Place::Leased { worker, attempt }) = place {
                job.move_to(*index, Place::Ready);
                self.drop_lease(worker, attempt);
                revoked.entry(worker).or_default().push(attempt);
            }
            given_up.push((*index, fault));
        }
        for (worker, attempts) in revoked {
            self.revoke(worker, attempts, out);
        }
        self.give_up(id, given_up, out);
        self.refresh(id);
    }
}

/// What is told of a rollout whose time is over.
fn late_fault(job: &Job, index: u64, kind: Late) -> Fault {
    let policy = &job.spec.retry;
    let open = job.open.get(&index);
    let tried = open.map_or_else(String::new, |open| {
        let (failures, losses) = (open.failures, open.losses);
        format!(": {failures} attempts failed, {losses} were lost with their workers")
    });
    match kind {
        Late::Start => {
            let ms = policy.schedule_to_start_ms;
            let why = format!("no worker took it within schedule_to_start, {ms} ms{tried}");
            Fault::new(ErrorCode::ScheduleToStartTimeout, why)
                .with_hint("volley monitor shows whether workers are there, and what they do")
        }
        Late::Close => {
            let ms = policy.schedule_to_close_ms;
            let why = format!("it was not done within schedule_to_close, {ms} ms{tried}");
            Fault::new(ErrorCode::ScheduleToCloseTimeout, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_of_one_moment_are_one_and_closed_ones_are_forgotten() {
        let mut waves = Waves::default();
        assert!(waves.add(0, Millis(5)) && !waves.add(4, Millis(5)));
        assert!(waves.add(8, Millis(6)) && waves.add(12, Millis(9)));
        assert_eq!(waves.until(Millis(4), 20), []);
        assert_eq!(waves.until(Millis(6), 20), [(0, 8), (8, 12)]);
        assert_eq!(waves.until(Millis(9), 20), [(0, 8), (8, 12), (12, 20)]);
        waves.forget_below(7);
        assert_eq!(waves.iter().count(), 3);
        waves.forget_below(12);
        assert_eq!(waves.iter().collect::<Vec<_>>(), [(12, Millis(9))]);
    }
}
