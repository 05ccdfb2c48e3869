//! The cluster as people see it: figures, and what is wrong in sentences.

use volley_protocol::RunId;
use volley_protocol::job::JobState;
use volley_protocol::run::{RunState, RunSummary};
use volley_protocol::snapshot::{
    ClusterSnapshot, JobSummary, ScalingSummary, WorkerState, WorkerSummary,
};

use crate::config::JOBS_PER_REPLY_MAX;
use crate::coordinator::Coordinator;
use crate::fit::{self, sentence};
use crate::input::Millis;
use crate::place::Blocked;
use crate::queue::Job;

/// Jobs and workers in a snapshot (`ClusterSnapshot`).
pub(crate) const SNAPSHOT_JOBS_MAX: usize = 100;
pub(crate) const SNAPSHOT_WORKERS_MAX: usize = 1_000;
/// Sentences in a snapshot: more is no help to anybody.
pub(crate) const PROBLEMS_MAX: usize = 20;
/// Two missed heartbeats and a half.
const SILENT_MS: u64 = 2_500;
/// Share of groups without gradient above which it is worth a word.
const FLAT_GROUPS: f64 = 0.5;

impl Coordinator {
    /// The cluster, for people.
    #[must_use]
    pub fn snapshot(&self, now: Millis) -> ClusterSnapshot {
        let now = now.max(self.now);
        let starting = self
            .roster
            .starting
            .keys()
            .map(|provision| self.starting_summary(*provision));
        let workers = self
            .roster
            .iter()
            .map(|(id, _)| self.worker_summary(*id, now))
            .chain(starting);
        let crew = self.crew();
        let scaling = &self.config.scaling;
        ClusterSnapshot {
            cluster: self.config.cluster.clone(),
            version: self.config.version.clone(),
            epoch: self.epoch,
            pid: self.config.pid,
            uptime_ms: now.since(self.started.unwrap_or(now)),
            jobs: self.job_summaries(SNAPSHOT_JOBS_MAX),
            workers: workers.take(SNAPSHOT_WORKERS_MAX).collect(),
            runs: self.run_summaries(),
            learner_pids: self.learner_pids(),
            dispatchable: self.jobs.dispatchable(),
            leased: self.roster.leased(),
            rollouts_per_s: self.stats.settled.per_second(now),
            tokens_per_s: self.stats.tokens.per_second(now),
            queue_history: self.stats.history.iter().copied().collect(),
            scaling: ScalingSummary {
                present: crew.present(),
                wanted: self.decision.wanted,
                min: scaling.min_workers,
                max: scaling.max_workers,
                reason: self.decision.reason.clone(),
            },
            problems: self.problems(now),
            notices: self.stats.notices.iter().cloned().collect(),
            dead_letters: self.dead.total() as u64,
        }
    }

    fn learner_pids(&self) -> Vec<u32> {
        let learners = self
            .runs
            .map
            .values()
            .filter_map(|run| run.learner.as_ref());
        learners.map(|learner| learner.pid).collect()
    }

    pub(crate) fn job_list(&self) -> Vec<JobSummary> {
        self.job_summaries(JOBS_PER_REPLY_MAX)
    }

    /// Open jobs first, then the youngest.
    fn job_summaries(&self, max: usize) -> Vec<JobSummary> {
        let mut jobs: Vec<&Job> = self.jobs.iter().map(|(_, job)| job).collect();
        jobs.sort_by_key(|job| (job.state != JobState::Open, std::cmp::Reverse(job.at)));
        jobs.into_iter().take(max).map(Self::job_summary).collect()
    }

    pub(crate) fn job_summary(job: &Job) -> JobSummary {
        JobSummary {
            job: job.spec.job,
            name: job.spec.name.clone(),
            environment: job.spec.env.name.clone(),
            kind: job.spec.kind,
            state: job.state,
            rollouts: job.total(),
            dispatchable: job.dispatchable_shown,
            queued: job.queued(),
            leased: job.leased(),
            accepted: job.accepted_count(),
            failed: job.failed_count() - job.cancelled.count() + job.failing(),
            retries: job.retries,
            last_failure: job.last_failure.clone(),
            cancelled: job.cancelled.count(),
            take: job.spec.take.map_or(0, |take| take.results),
            priority: job.spec.priority,
        }
    }

    /// All runs; those that nobody works on without their figures, when there are too many.
    pub(crate) fn run_summaries(&self) -> Vec<RunSummary> {
        let runs = self.runs.map.iter();
        let step = |run: &RunId| self.registry.head(*run).map_or(0, |version| version.step);
        fit::runs(runs.map(|(id, run)| run.summary(step(id))).collect())
    }

    fn worker_summary(&self, id: volley_protocol::WorkerId, now: Millis) -> WorkerSummary {
        let worker = self.roster.get(id);
        let Some(worker) = worker else {
            return self.starting_summary(0);
        };
        WorkerSummary {
            worker: id,
            name: worker.name.clone(),
            pid: worker.pid,
            state: if worker.registered || worker.state != WorkerState::Up {
                worker.state
            } else {
                WorkerState::Starting
            },
            slots: worker.slots,
            leased: u32::try_from(worker.leases.len()).unwrap_or(u32::MAX),
            adapter_step: worker.load.adapter_step,
            episodes_total: worker.load.episodes_total,
            tokens_per_s: worker.tokens.per_second(now),
            heartbeat_age_ms: now.since(worker.heard_at),
        }
    }

    fn starting_summary(&self, provision: u64) -> WorkerSummary {
        let asked = self.roster.starting.get(&provision).copied();
        WorkerSummary {
            worker: volley_protocol::PeerId(0),
            name: format!("starting-{}", provision & 0xFFFF_FFFF),
            pid: 0,
            state: WorkerState::Starting,
            slots: 0,
            leased: 0,
            adapter_step: 0,
            episodes_total: 0,
            tokens_per_s: 0.0,
            heartbeat_age_ms: self.now.since(asked.unwrap_or(self.now)),
        }
    }

    /// What is wrong, worst first.
    fn problems(&self, now: Millis) -> Vec<String> {
        let mut problems = Vec::new();
        self.problems_of_runs(now, &mut problems);
        self.problems_of_workers(now, &mut problems);
        self.problems_of_jobs(&mut problems);
        problems.truncate(PROBLEMS_MAX);
        problems.into_iter().map(sentence).collect()
    }

    fn problems_of_runs(&self, now: Millis, problems: &mut Vec<String>) {
        for run in self.runs.map.values() {
            let name = &run.info.name;
            if let RunState::Failed(fault) = &run.state {
                problems.push(format!("run {name} failed: {fault}"));
            }
            if let (RunState::Training, Some(at)) = (&run.state, run.lost_at) {
                let s = now.since(at) / 1_000;
                problems.push(format!(
                    "learner of {name} disconnected for {s} s: training rollouts wait"
                ));
            }
            let Some(last) = run.last_report().filter(|last| last.groups > 0) else {
                continue;
            };
            let flat = last.groups_zero_variance as f64 / last.groups as f64;
            if flat >= FLAT_GROUPS {
                let percent = flat * 100.0;
                problems.push(format!(
                    "{name}: reward std 0 in {percent:.0} % of groups: no gradient"
                ));
            }
            if last.mismatch_max > 0.0 {
                problems.push(format!(
                    "{name}: sampler and learner differ by {:.2e} in a log-probability",
                    last.mismatch_max
                ));
            }
        }
    }

    fn problems_of_workers(&self, now: Millis, problems: &mut Vec<String>) {
        for (_, worker) in self.roster.iter() {
            let silent_ms = now.since(worker.heard_at);
            if worker.state == WorkerState::Lost {
                let s = silent_ms / 1_000;
                problems.push(format!("{} lost its connection {s} s ago", worker.name));
            } else if silent_ms >= SILENT_MS {
                let s = silent_ms / 1_000;
                problems.push(format!("{} has been silent for {s} s", worker.name));
            }
        }
        if let Some(fault) = &self.provision_fault
            && now < self.start_not_before
        {
            problems.push(format!(
                "workers keep ending, starting them slowly: {fault}"
            ));
        }
        let history = &self.stats.history;
        let grows = history.len() >= 2 && history.iter().rev().nth(1) < history.back();
        if self.decision.capped && grows {
            let max = self.config.scaling.max_workers;
            problems.push(format!("queue grows, max_workers ({max}) reached"));
        }
    }

    fn problems_of_jobs(&self, problems: &mut Vec<String>) {
        let waiting = self.jobs.iter().filter(|(_, job)| job.takeable() > 0);
        for (id, job) in waiting {
            let name = &job.spec.name;
            match job.gate {
                Err(Blocked::PolicyAway) => problems.push(format!(
                    "job {name} waits: the learner that has its adapter is not connected"
                )),
                Err(Blocked::NoVersion) => {
                    problems.push(format!("job {name} waits: its run has no version yet"));
                }
                Ok(()) => {
                    let up = self.roster.iter().any(|(_, worker)| worker.registered);
                    let fits = self
                        .roster
                        .iter()
                        .any(|(worker, _)| self.can_play(*worker, *id));
                    if up && !fits {
                        problems.push(format!("job {name} waits: no worker has its base model"));
                    }
                }
                // Said once for the run; or over in a moment; or over.
                Err(Blocked::SinkAway | Blocked::Restoring | Blocked::Closed) => {}
            }
        }
    }
}
