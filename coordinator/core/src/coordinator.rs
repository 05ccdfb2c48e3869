//! The whole: one event in, effects out.

use std::collections::{BTreeSet, VecDeque};

use volley_protocol::learner::ToLearner;
use volley_protocol::worker::ToWorker;
use volley_protocol::{Epoch, Fault, JobId, PolicyRef, RunId, SinkRef, WorkerId};

use crate::adapters::Registry;
use crate::autoscale::{Calm, Decision};
use crate::config::{CoordinatorConfig, HOUSEKEEPING_MS};
use crate::dead::DeadLetters;
use crate::effect::{Effect, to_worker};
use crate::input::{Input, Millis};
use crate::jobs::Jobs;
use crate::place::Blocked;
use crate::queue::Job;
use crate::roster::Roster;
use crate::runs::Runs;
use crate::stats::Stats;

/// When nothing is there, time is looked at this often: finished jobs, the queue's history.
const IDLE_LOOK_MS: u64 = 1_000;

/// Decides everything that happens in a cluster.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) config: CoordinatorConfig,
    pub(crate) epoch: Epoch,
    pub(crate) now: Millis,
    pub(crate) started: Option<Millis>,
    pub(crate) jobs: Jobs,
    pub(crate) roster: Roster,
    pub(crate) runs: Runs,
    pub(crate) registry: Registry,
    pub(crate) dead: DeadLetters,
    pub(crate) stats: Stats,
    pub(crate) calm: Calm,
    pub(crate) decision: Decision,
    pub(crate) provisions_asked: u64,
    /// Ends of worker processes that nobody asked for, within the last minute.
    pub(crate) exits: VecDeque<Millis>,
    pub(crate) start_not_before: Millis,
    pub(crate) provision_fault: Option<String>,
    /// Something was recorded before this life: workers of the last one may come back.
    pub(crate) restored: bool,
    /// Restored jobs are not leased, and no workers are started, before then.
    pub(crate) hold_until: Option<Millis>,
    pub(crate) housekeep_at: Millis,
}

impl Coordinator {
    /// A coordinator that remembers nothing.
    #[must_use]
    pub fn new(config: CoordinatorConfig, epoch: Epoch) -> Self {
        Self {
            config,
            epoch,
            now: Millis(0),
            started: None,
            jobs: Jobs::default(),
            roster: Roster::default(),
            runs: Runs::default(),
            registry: Registry::default(),
            dead: DeadLetters::default(),
            stats: Stats::default(),
            calm: Calm::default(),
            decision: Decision::default(),
            provisions_asked: 0,
            exits: VecDeque::new(),
            start_not_before: Millis(0),
            provision_fault: None,
            restored: false,
            hold_until: None,
            housekeep_at: Millis(0),
        }
    }

    /// This life's epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Handles one event. Time never goes back: an earlier `now` counts as the latest one.
    pub fn apply(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        debug_assert!(
            self.started.is_some() || input == Input::Start,
            "Start comes first"
        );
        for job in self.jobs.wake(self.now) {
            self.refresh(job);
        }
        self.handle(input, effects);
        if self.now >= self.housekeep_at {
            self.housekeep(effects);
        }
        self.dispatch(effects);
        if self.jobs.dispatchable() > 0 && self.roster.len() + self.roster.starting.len() == 0 {
            self.scale(effects);
        }
    }

    /// When the shell must say [`Input::Tick`] at the latest; any other input serves as well.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        let wake = self.jobs.next_wake();
        let poll = self.runs.polls.iter().map(|poll| poll.deadline).min();
        [Some(self.housekeep_at), wake, poll]
            .into_iter()
            .flatten()
            .min()
    }

    fn handle(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Start => self.start(out),
            Input::WorkerUp {
                session,
                worker,
                name,
                pid,
            } => {
                self.worker_up(session, worker, name, pid, out);
            }
            Input::Worker { session, message } => self.worker_said(session, message, out),
            Input::WorkerDown {
                session,
                process_dead,
            } => {
                self.worker_down(session, process_dead, out);
            }
            Input::WorkerExited { provision, pid } => self.worker_exited(provision, pid, out),
            Input::ProvisionFailed { provision, reason } => {
                self.provision_failed(provision, reason)
            }
            Input::LearnerUp {
                session,
                peer: _,
                pid,
            } => self.learner_up(session, pid),
            Input::Learner { session, message } => self.learner_said(session, message, out),
            Input::LearnerDown { session } => self.learner_down(session),
            Input::Client {
                session,
                request,
                monitor,
            } => {
                self.client_asked(session, request, monitor, out);
            }
            Input::ClientDown { session } => {
                self.runs.polls.retain(|poll| poll.session != session);
            }
            Input::RelaySettled { entries } => self.relay_settled(&entries, out),
            Input::RelayRestored {
                job,
                accepted,
                failed,
            } => {
                self.relay_restored(job, &accepted, &failed, out);
            }
            Input::Tick => {}
        }
    }

    /// What has to be looked at from time to time.
    fn housekeep(&mut self, out: &mut Vec<Effect>) {
        self.release_hold();
        self.settle_learners_in();
        self.expire_leases(out);
        self.time_out(out);
        self.look_after_workers(out);
        self.answer_polls(out);
        while let Some(job) = self.jobs.expire(self.now) {
            self.forget_job(&job, out);
        }
        let queued = self.jobs.iter().map(|(_, job)| job.queued()).sum();
        self.stats.sample(self.now, queued);
        self.scale(out);
        let quiet = self.roster.len() + self.roster.starting.len() + self.jobs.open_count() == 0;
        let pause_ms = if quiet { IDLE_LOOK_MS } else { HOUSEKEEPING_MS };
        self.housekeep_at = self.now.after(pause_ms);
    }

    fn release_hold(&mut self) {
        if self.hold_until.is_some_and(|until| until <= self.now) {
            self.hold_until = None;
            let jobs: Vec<JobId> = self.jobs.iter().map(|(id, _)| *id).collect();
            jobs.into_iter().for_each(|job| self.refresh(job));
        }
    }

    /// May rollouts of this job be leased, as far as others are concerned?
    pub(crate) fn gate(&self, job: &Job) -> Result<(), Blocked> {
        if job.state != volley_protocol::job::JobState::Open {
            return Err(Blocked::Closed);
        }
        if !job.relay_ready || (job.known > 0 && self.hold_until.is_some()) {
            return Err(Blocked::Restoring);
        }
        if let SinkRef::Learner(run) = job.spec.sink {
            let learner = self.runs.learner(run).ok_or(Blocked::SinkAway)?;
            if !learner.settled_in && !learner.reconciled.contains(&job.spec.job) {
                return Err(Blocked::SinkAway);
            }
        }
        let run = match job.spec.policy {
            PolicyRef::Base => return Ok(()),
            PolicyRef::Version(version) => version.run,
            PolicyRef::Latest(run) => run,
        };
        self.runs.learner(run).ok_or(Blocked::PolicyAway)?;
        let has_version = self.registry.head(run).is_some();
        if has_version {
            Ok(())
        } else {
            Err(Blocked::NoVersion)
        }
    }

    /// Brings sums and indexes up to date after anything about a job changed.
    pub(crate) fn refresh(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let gate = self.gate(job);
        self.jobs.refresh(id, gate);
    }

    /// The same for every job that delivers to a run or plays one of its versions.
    pub(crate) fn refresh_jobs_of(&mut self, run: RunId) {
        let concerned = |job: &Job| {
            let plays = match job.spec.policy {
                PolicyRef::Base => false,
                PolicyRef::Version(version) => version.run == run,
                PolicyRef::Latest(latest) => latest == run,
            };
            plays || job.spec.sink == SinkRef::Learner(run)
        };
        let jobs = self.jobs.iter().filter(|(_, job)| concerned(job));
        let jobs: BTreeSet<JobId> = jobs.map(|(id, _)| *id).collect();
        jobs.into_iter().for_each(|job| self.refresh(job));
    }

    pub(crate) fn notice(&mut self, text: String) {
        let at_ms = self.now.since(self.started.unwrap_or(self.now));
        self.stats.notice(at_ms, text);
    }

    /// Tells people of a fault that is no answer to anybody: a notice, and a line in the log.
    pub(crate) fn report(&mut self, fault: Fault, out: &mut Vec<Effect>) {
        self.notice(format!("{}: {}", fault.code, fault.message));
        out.push(Effect::Report { fault });
    }

    pub(crate) fn say_worker(&self, worker: WorkerId, message: ToWorker, out: &mut Vec<Effect>) {
        let session = self.roster.get(worker).and_then(|worker| worker.session);
        if let Some(session) = session {
            out.push(to_worker(session, message));
        }
    }

    pub(crate) fn say_learner(
        &self,
        run: RunId,
        message: ToLearner,
        after_commit: bool,
        out: &mut Vec<Effect>,
    ) {
        if let Some(learner) = self.runs.learner(run) {
            out.push(Effect::ToLearner {
                session: learner.session,
                message,
                after_commit,
            });
        }
    }
}
