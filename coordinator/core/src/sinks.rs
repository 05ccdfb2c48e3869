//! The sinks decide what is closed; this is where their word reaches the ledger.
//!
//! A learner's job is leased only after the learner has said, in its present session, what it has
//! settled (`Reconcile`) or admitted (`Admit`) of it; a learner that says neither is believed to
//! have settled nothing after [`SETTLE_IN_MS`].

use std::collections::BTreeMap;

use volley_protocol::job::JobState;
use volley_protocol::learner::{ToLearner, Verdict};
use volley_protocol::worker::ToWorker;
use volley_protocol::{
    ErrorCode, Fault, GroupIndex, JobId, PolicyRef, RangeSet, RolloutId, RunId, SinkRef,
};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::place::{Open, Place, Settled};
use crate::queue::Job;
use crate::ranges::{self, Ranges};
use crate::record::Record;

/// A learner says `Submit`, `Reconcile`, `Admit` in one breath; one second covers a slow disk.
pub(crate) const SETTLE_IN_MS: u64 = 1_000;

impl Coordinator {
    /// The relay has synced the first results of these rollouts.
    pub(crate) fn relay_settled(&mut self, entries: &[RolloutId], out: &mut Vec<Effect>) {
        let of_relay = |rollout: &&RolloutId| {
            let job = self.jobs.get(rollout.job);
            job.is_some_and(|job| job.spec.sink == SinkRef::Relay)
        };
        let entries = entries.iter().filter(of_relay);
        let entries: Vec<_> = entries
            .map(|rollout| (*rollout, Verdict::Accepted))
            .collect();
        self.settle(&entries, out);
    }

    /// What the relay's segments of a restored job hold.
    pub(crate) fn relay_restored(
        &mut self,
        id: JobId,
        accepted: &RangeSet,
        failed: &RangeSet,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if job.spec.sink != SinkRef::Relay || job.relay_ready {
            return; // Answered before, or opened in this life.
        }
        job.relay_ready = true;
        let durable = job.known;
        let cut = |set: &RangeSet| {
            ranges::difference(set, &RangeSet::new(), durable)
                .into_iter()
                .collect()
        };
        let (accepted, mut failed): (RangeSet, RangeSet) = (cut(accepted), cut(failed));
        for index in self.failures_lost(id, &accepted, &failed) {
            failed.insert(index);
            let rollout = RolloutId { job: id, index };
            let fault = Fault::new(
                ErrorCode::AttemptsExhausted,
                "it was given up shortly before the coordinator ended; why is not known any more",
            );
            out.push(Effect::RelayFailed { rollout, fault });
        }
        // Behind them: whoever reads must not be told that nothing follows.
        if self.jobs.get(id).map(|job| job.state) != Some(JobState::Open) {
            out.push(Effect::RelayComplete { job: id });
        }
        self.reconcile(id, &accepted, &failed, out);
    }

    /// What was recorded here as given up while the relay's record of it was lost. The relay
    /// decides what is accepted, but failures are decided here: if such a rollout were open
    /// again, its group would have lost its version; if it stayed closed without a record, a
    /// client would read one result too few.
    fn failures_lost(&self, id: JobId, accepted: &RangeSet, failed: &RangeSet) -> Vec<u64> {
        let Some(job) = self.jobs.get(id) else {
            return Vec::new();
        };
        // What nobody wanted any more has no record at all.
        let known = accepted.ranges().chain(failed.ranges());
        let known: RangeSet = known.chain(job.cancelled.ranges()).collect();
        let lost = ranges::difference(&job.failed, &known, job.known);
        lost.into_iter()
            .flat_map(|(start, end)| start..end)
            .collect()
    }

    /// Settles rollouts, whatever was known of them; one record for each job.
    pub(crate) fn settle(&mut self, entries: &[(RolloutId, Verdict)], out: &mut Vec<Effect>) {
        let mut jobs: BTreeMap<JobId, Vec<(u64, Verdict)>> = BTreeMap::new();
        for (rollout, verdict) in entries {
            jobs.entry(rollout.job)
                .or_default()
                .push((rollout.index, *verdict));
        }
        for (id, mut entries) in jobs {
            entries.sort_unstable_by_key(|(index, _)| *index);
            self.settle_job(id, &entries, out);
        }
    }

    fn settle_job(&mut self, id: JobId, entries: &[(u64, Verdict)], out: &mut Vec<Effect>) {
        let (mut accepted, mut failed) = (Vec::new(), Vec::new());
        let mut changed = 0;
        for (index, verdict) in entries {
            let Some(job) = self.jobs.get_mut(id) else {
                return; // Forgotten, or never committed: its sink keeps what it has.
            };
            match job.settle(*index, *verdict) {
                Settled::Known => continue,
                Settled::Corrected => {}
                Settled::First(open) => {
                    changed += 1;
                    if let Some(open) = open {
                        self.release(&open, *verdict, out);
                    }
                }
            }
            match verdict {
                Verdict::Accepted => accepted.push(*index),
                Verdict::Failed => failed.push(*index),
            }
        }
        if accepted.is_empty() && failed.is_empty() {
            return;
        }
        self.stats.settled.add(self.now, changed);
        self.drop_payloads(id, accepted.iter().chain(&failed).copied(), out);
        let groups = accepted.iter().chain(&failed).copied().collect::<Vec<_>>();
        let (accepted, failed) = (ranges::melt(accepted), ranges::melt(failed));
        self.dead.revive(id, &accepted);
        persist(
            Record::Closed {
                job: id,
                accepted,
                failed,
            },
            out,
        );
        self.unpin_closed(id, &groups, out);
        self.end_if_done(id, out);
        self.refresh(id);
    }

    /// What was under way is over: its lease goes, and its worker may stop where it cannot have
    /// been the one that delivered.
    fn release(&mut self, open: &Open, verdict: Verdict, out: &mut Vec<Effect>) {
        let Place::Leased { worker, attempt } = open.place else {
            return;
        };
        if let Some(times) = self.drop_lease(worker, attempt)
            && verdict == Verdict::Accepted
            && open.attempts <= 1
        {
            self.stats.served(self.now.since(times.since));
        }
        if open.attempts > 1 || verdict == Verdict::Failed {
            self.say_worker(worker, ToWorker::Revoke(vec![attempt]), out);
        }
    }

    /// Groups whose last member was closed pin nothing any more.
    fn unpin_closed(&mut self, id: JobId, indices: &[u64], out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let PolicyRef::Latest(run) = job.spec.policy else {
            return;
        };
        let mut last: Option<GroupIndex> = None;
        let mut unpinned = false;
        for index in indices {
            let group = job.spec.group_of(*index);
            if last.replace(group) == Some(group) || !job.group_is_closed(group) {
                continue;
            }
            if let Some(version) = job.pins.remove(&group) {
                self.registry.unpin(version);
                unpinned = true;
            }
        }
        if unpinned {
            self.collect_garbage(run, None, out);
        }
    }

    /// Replaces the ledger of a job by what its sink says.
    pub(crate) fn reconcile(
        &mut self,
        id: JobId,
        accepted: &RangeSet,
        failed: &RangeSet,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let before = (job.accepted.clone(), job.failed.clone());
        let settled: RangeSet = accepted.ranges().chain(failed.ranges()).collect();
        let lost = ranges::difference(&before.0, &settled, job.total());
        if !lost.is_empty() {
            let fault = lost_results(id, &lost, job.state == JobState::Open);
            self.report(fault, out);
        }
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if job.state != JobState::Open {
            self.correct_finished(id, accepted, out);
            return;
        }
        let (ended, reopened) = job.reconcile(accepted, failed);
        let changed = before != (job.accepted.clone(), job.failed.clone());
        let (accepted, failed) = (ranges::list(&job.accepted), ranges::list(&job.failed));
        let pinned: Vec<u64> = {
            let size = u64::from(job.spec.group_size);
            job.pins.keys().map(|group| group.0 * size).collect()
        };
        if changed {
            self.record_reconciled(id, accepted, failed, reopened, out);
        }
        self.settle_payloads(id, out);
        for open in ended {
            if let Place::Leased { worker, attempt } = open.place {
                self.drop_lease(worker, attempt);
                self.say_worker(worker, ToWorker::Revoke(vec![attempt]), out);
            }
        }
        self.unpin_closed(id, &pinned, out);
        self.end_if_done(id, out);
        self.refresh(id);
    }

    /// Frees the payloads of puts that are closed.
    fn drop_payloads(
        &mut self,
        id: JobId,
        settled: impl Iterator<Item = u64>,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self
            .jobs
            .get_mut(id)
            .filter(|job| job.extents.has_payloads())
        else {
            return;
        };
        let done = job.drop_closed_payloads(settled).into_iter();
        out.extend(done.map(|start| Effect::PayloadsDone { job: id, start }));
    }

    /// After its sink has said what is closed: payloads that nobody needs are freed, and what is
    /// open without its payload fails. That happens only where the sink's files lost what they had
    /// said to keep; the payload was deleted because of that word.
    fn settle_payloads(&mut self, id: JobId, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let kept = job.extents.kept_puts();
        let without = job.without_payload();
        self.drop_payloads(id, kept.into_iter().map(|(start, _)| start), out);
        let entries: Vec<_> = without
            .into_iter()
            .map(|index| (RolloutId { job: id, index }, Verdict::Failed))
            .collect();
        out.extend(entries.iter().map(|(rollout, _)| Effect::RelayFailed {
            rollout: *rollout,
            fault: payload_lost(),
        }));
        self.settle(&entries, out);
    }

    fn record_reconciled(
        &mut self,
        job: JobId,
        accepted: Ranges,
        failed: Ranges,
        reopened: Ranges,
        out: &mut Vec<Effect>,
    ) {
        if !reopened.is_empty() {
            let count: u64 = reopened.iter().map(|(start, end)| end - start).sum();
            self.notice(format!(
                "{count} rollouts of job {job} are unknown to their sink: open again"
            ));
            persist(
                Record::Reopened {
                    job,
                    ranges: reopened,
                },
                out,
            );
        }
        persist(
            Record::Closed {
                job,
                accepted,
                failed,
            },
            out,
        );
    }

    /// A finished job stays finished, but what its sink accepted counts as accepted.
    fn correct_finished(&mut self, id: JobId, accepted: &RangeSet, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let corrected: Vec<u64> = {
            let late: RangeSet = ranges::difference(accepted, &job.accepted, job.total())
                .into_iter()
                .collect();
            late.iter().collect()
        };
        let entries: Vec<_> = corrected
            .into_iter()
            .map(|index| (index, Verdict::Accepted))
            .collect();
        self.settle_job(id, &entries, out);
    }

    /// Tells a learner, again, what will not be tried any more of a job.
    pub(crate) fn repeat_failures(
        &self,
        run: RunId,
        id: JobId,
        settled: &RangeSet,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let rollout = |index| RolloutId { job: id, index };
        for (index, open) in &job.open {
            if let Place::Failing(fault) = &open.place {
                let message = ToLearner::RolloutFailed {
                    rollout: rollout(*index),
                    fault: (**fault).clone(),
                };
                self.say_learner(run, message, false, out);
            }
        }
        if let Some(fault) = why_unwanted(job) {
            let unsettled = ranges::difference(&job.failed, settled, job.limit());
            for index in unsettled.into_iter().flat_map(|(start, end)| start..end) {
                let message = ToLearner::RolloutFailed {
                    rollout: rollout(index),
                    fault: fault.clone(),
                };
                self.say_learner(run, message, false, out);
            }
        }
    }
}

/// Why the rest of an ended job is not wanted, if its learner waits for it.
fn why_unwanted(job: &Job) -> Option<Fault> {
    match (job.state, job.spec.take) {
        (JobState::Cancelled, _) => Some(cancelled()),
        (JobState::Done, Some(take)) => Some(enough(take.results)),
        (JobState::Done, None) | (JobState::Open, _) => None,
    }
}

/// Why rollouts of a job that has enough results fail.
pub(crate) fn enough(results: u64) -> Fault {
    let why = format!("the job has its {results} results");
    Fault::new(ErrorCode::JobCancelled, why)
}

/// Why a rollout cannot be played again.
fn payload_lost() -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        "its result is lost, and its payload was deleted when the result was stored",
    )
    .with_hint("put it again")
}

/// A sink synced these results before it acknowledged them, and has them no longer.
fn lost_results(job: JobId, lost: &Ranges, again: bool) -> Fault {
    let count: u64 = lost.iter().map(|(start, end)| end - start).sum();
    let then = if again {
        "they are played again"
    } else {
        "the job is finished, they are not played again"
    };
    let message = format!(
        "{count} acknowledged results of job {job} are gone from their sink's disk: {then}"
    );
    Fault::new(ErrorCode::ResultsLost, message)
        .with_hint("check the sink's disk: volley journal verify DIR")
}

/// Why rollouts of a cancelled job fail.
pub(crate) fn cancelled() -> Fault {
    Fault::new(ErrorCode::JobCancelled, "the job was cancelled")
}
