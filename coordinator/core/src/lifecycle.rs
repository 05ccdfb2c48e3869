//! How jobs begin and end.

use std::collections::BTreeMap;

use volley_protocol::job::JobState;
use volley_protocol::learner::ToLearner;
use volley_protocol::limits::OPEN_JOBS_MAX;
use volley_protocol::worker::ToWorker;
use volley_protocol::{
    AttemptId, ErrorCode, Fault, JobId, JobKind, JobSpec, PolicyRef, RolloutId, RunId, SinkRef,
    WorkerId,
};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::place::Place;
use crate::queue::Job;
use crate::ranges;
use crate::record::Record;
use crate::sinks::{cancelled, enough};

impl Coordinator {
    /// Takes a job in; true when it was known already.
    ///
    /// # Errors
    /// It is malformed, contradicts a known one, needs an unknown version, or is one too many.
    pub(crate) fn accept_job(
        &mut self,
        spec: JobSpec,
        out: &mut Vec<Effect>,
    ) -> Result<bool, Fault> {
        if let Some(known) = self.jobs.get(spec.job) {
            return if known.spec == spec {
                Ok(true)
            } else {
                let why = format!("job {} was submitted with another specification", spec.job);
                let hint = "choose a new job id";
                Err(Fault::new(ErrorCode::JobConflict, why).with_hint(hint))
            };
        }
        spec.validate()?;
        if self.jobs.open_count() >= OPEN_JOBS_MAX {
            let why = format!("{OPEN_JOBS_MAX} jobs are open");
            let hint = "wait for some to end, or cancel them";
            return Err(Fault::new(ErrorCode::QueueFull, why).with_hint(hint));
        }
        self.check_policy(&spec)?;
        let id = spec.job;
        persist(
            Record::JobAccepted {
                spec: Box::new(spec.clone()),
                at: self.now,
            },
            out,
        );
        if spec.sink == SinkRef::Relay {
            out.push(Effect::RelayOpen {
                spec: spec.clone(),
                known: 0,
            });
        }
        if let PolicyRef::Version(version) = spec.policy {
            self.registry.pin(version);
        }
        let grows = matches!(spec.kind, JobKind::Queue | JobKind::Retry);
        let empty = spec.rollouts == 0 && !grows;
        self.jobs.insert(Job::new(spec, self.now));
        if empty {
            self.end_job(id, JobState::Done, out);
        }
        self.refresh(id);
        Ok(false)
    }

    fn check_policy(&self, spec: &JobSpec) -> Result<(), Fault> {
        let known_run = |run: RunId| {
            let missing = || Fault::new(ErrorCode::NotFound, format!("there is no run {run}"));
            self.runs
                .map
                .contains_key(&run)
                .then_some(())
                .ok_or_else(missing)
        };
        match spec.policy {
            PolicyRef::Base => Ok(()),
            PolicyRef::Latest(run) => known_run(run),
            PolicyRef::Version(version) => {
                known_run(version.run)?;
                let missing = || {
                    let why = format!("version {version:?} is not kept");
                    Fault::new(ErrorCode::AdapterUnavailable, why)
                };
                self.registry
                    .contains(&version)
                    .then_some(())
                    .ok_or_else(missing)
            }
        }
    }

    /// A job has ended: nobody needs its specification, its pins, or further results.
    pub(crate) fn end_job(&mut self, id: JobId, state: JobState, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        assert_eq!(job.state, JobState::Open, "a job ends once");
        assert!(job.open.is_empty(), "an ended job has nothing under way");
        job.state = state;
        let (sink, policy, name) = (job.spec.sink, job.spec.policy, job.spec.name.clone());
        let pins = std::mem::take(&mut job.pins);
        let done = job.extents.collapse().into_iter();
        out.extend(done.map(|start| Effect::PayloadsDone { job: id, start }));
        let cancelled = ranges::list(&job.cancelled);
        persist(
            Record::JobClosed {
                job: id,
                state,
                cancelled,
            },
            out,
        );
        if sink == SinkRef::Relay {
            out.push(Effect::RelayComplete { job: id });
        }
        pins.into_values()
            .for_each(|version| self.registry.unpin(version));
        match policy {
            PolicyRef::Base => {}
            PolicyRef::Latest(run) => self.collect_garbage(run, None, out),
            PolicyRef::Version(version) => {
                self.registry.unpin(version);
                self.collect_garbage(version.run, None, out);
            }
        }
        self.forget_at_workers(id, out);
        self.jobs.finish(id, self.now);
        self.refresh(id);
        let word = if state == JobState::Cancelled {
            "cancelled"
        } else {
            "done"
        };
        self.notice(format!("job {name} is {word}"));
    }

    fn forget_at_workers(&mut self, id: JobId, out: &mut Vec<Effect>) {
        let mut told = Vec::new();
        for (worker_id, worker) in self.roster.iter_mut() {
            if worker.told.remove(&id) {
                told.push(*worker_id);
            }
        }
        for worker in told {
            self.say_worker(worker, ToWorker::Forget(id), out);
        }
    }

    /// Cancels a job; false when it had ended before.
    pub(crate) fn cancel_job(&mut self, id: JobId, out: &mut Vec<Effect>) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        if job.state != JobState::Open {
            return false;
        }
        self.disappoint(job, &cancelled(), out);
        if let SinkRef::Learner(run) = job.spec.sink
            && job.spec.kind == JobKind::Train
        {
            self.say_learner(run, ToLearner::Stop, true, out);
        }
        self.close_open_rollouts(id, JobState::Cancelled, out);
        true
    }

    /// Tells a learner that nothing comes any more of what is open of its job.
    fn disappoint(&self, job: &Job, fault: &Fault, out: &mut Vec<Effect>) {
        let SinkRef::Learner(run) = job.spec.sink else {
            return;
        };
        let admitted = volley_protocol::RangeSet::from_iter([(0, job.limit())]);
        let open = ranges::difference(&admitted, &job.accepted, job.limit());
        let open = open.into_iter().flat_map(|(start, end)| start..end);
        for index in open.filter(|index| !job.failed.contains(*index)) {
            let rollout = RolloutId {
                job: job.spec.job,
                index,
            };
            let fault = fault.clone();
            let message = ToLearner::RolloutFailed { rollout, fault };
            self.say_learner(run, message, true, out);
        }
    }

    /// Ends a job that has what it wants: every rollout is closed, or enough are accepted.
    pub(crate) fn end_if_done(&mut self, id: JobId, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(id).filter(|job| job.state == JobState::Open) else {
            return;
        };
        if let Some(take) = job.spec.take
            && job.accepted_count() >= take.results
        {
            self.disappoint(job, &enough(take.results), out);
            self.close_open_rollouts(id, JobState::Done, out);
        } else if job.spec.kind != JobKind::Queue && job.is_exhausted() {
            self.end_job(id, JobState::Done, out);
        }
    }

    /// Ends a job whose open rollouts nobody wants any more.
    pub(crate) fn close_open_rollouts(
        &mut self,
        id: JobId,
        state: JobState,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        debug_assert_eq!(job.state, JobState::Open);
        let under_way = job.cancel();
        let failed = ranges::list(&job.failed);
        let record = Record::Closed {
            job: id,
            accepted: Vec::new(),
            failed,
        };
        persist(record, out);
        let mut revoked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        for (_, open) in under_way {
            if let Place::Leased { worker, attempt } = open.place {
                self.drop_lease(worker, attempt);
                revoked.entry(worker).or_default().push(attempt);
            }
        }
        for (worker, attempts) in revoked {
            self.revoke(worker, attempts, out);
        }
        self.end_job(id, state, out);
    }

    /// A finished job's time is over.
    pub(crate) fn forget_job(&mut self, job: &Job, out: &mut Vec<Effect>) {
        debug_assert_ne!(job.state, JobState::Open);
        let id = job.spec.job;
        self.dead.forget(id);
        persist(Record::JobForgotten { job: id }, out);
        if job.spec.sink == SinkRef::Relay {
            out.push(Effect::RelayExpire { job: id });
        }
    }
}
