//! The cluster at one moment, as the monitor shows it. Every number on the screen is here.

use serde::{Deserialize, Serialize};

use crate::fault::ErrorCode;
use crate::ids::{Epoch, JobId, WorkerId};
use crate::job::{JobKind, JobState};
use crate::run::RunSummary;

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Identity.
    pub job: JobId,
    /// For people.
    pub name: String,
    /// Environment.
    pub environment: String,
    /// How it lives.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Rollouts in all.
    pub rollouts: u64,
    /// Waiting and allowed to be leased now.
    pub dispatchable: u64,
    /// Waiting, dispatchable or not.
    pub queued: u64,
    /// At a worker.
    pub leased: u64,
    /// Accepted by the sink.
    pub accepted: u64,
    /// Failed for good: its dead letters, of which the newest are kept.
    pub failed: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Last failure, if any.
    pub last_failure: Option<(ErrorCode, String)>,
    /// Closed without having been played to an end: the job was cancelled, or had enough results.
    pub cancelled: u64,
    /// Results after which it is done; 0 when all are wanted.
    pub take: u64,
    /// Higher ones are served first.
    pub priority: i8,
}

/// State of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// Asked for, not here yet.
    Starting,
    /// Connected.
    Up,
    /// Told to finish.
    Draining,
    /// Its session is lost; its leases wait for it for a while.
    Lost,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerSummary {
    /// Identity.
    pub worker: WorkerId,
    /// For people.
    pub name: String,
    /// On its host; 0 when unknown.
    pub pid: u32,
    /// State.
    pub state: WorkerState,
    /// Concurrent episodes it can hold.
    pub slots: u32,
    /// Leases it has.
    pub leased: u32,
    /// Newest adapter step in its memory.
    pub adapter_step: u64,
    /// Episodes since its start.
    pub episodes_total: u64,
    /// Tokens per second over the last seconds.
    pub tokens_per_s: f32,
    /// Since the last heartbeat.
    pub heartbeat_age_ms: u64,
}

/// What the autoscaler wants and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalingSummary {
    /// Workers here or starting.
    pub present: u32,
    /// Workers wanted.
    pub wanted: u32,
    /// Bounds.
    pub min: u32,
    /// Bounds.
    pub max: u32,
    /// One sentence.
    pub reason: String,
}

/// Something that happened, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Coordinator uptime at which it happened.
    pub at_ms: u64,
    /// What.
    pub text: String,
}

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterSnapshot {
    /// Name of the cluster.
    pub cluster: String,
    /// Version of the coordinator's program.
    pub version: String,
    /// Epoch of the coordinator.
    pub epoch: Epoch,
    /// Process id of the coordinator.
    pub pid: u32,
    /// Since its start.
    pub uptime_ms: u64,
    /// Jobs, open ones first; at most 100.
    pub jobs: Vec<JobSummary>,
    /// Workers; at most 1,000.
    pub workers: Vec<WorkerSummary>,
    /// Runs whose learner has been seen.
    pub runs: Vec<RunSummary>,
    /// Process ids of connected learners.
    pub learner_pids: Vec<u32>,
    /// Rollouts that may be leased now.
    pub dispatchable: u64,
    /// Rollouts at workers.
    pub leased: u64,
    /// Rollouts settled per second, over the last ten seconds.
    pub rollouts_per_s: f32,
    /// Tokens sampled per second.
    pub tokens_per_s: f32,
    /// Queue depth of the last minutes, oldest first; at most 60.
    pub queue_history: Vec<u32>,
    /// The autoscaler.
    pub scaling: ScalingSummary,
    /// What is wrong, as sentences, worst first.
    pub problems: Vec<String>,
    /// The last things that happened, newest last; at most 20.
    pub notices: Vec<Notice>,
    /// Dead letters that are kept, over all jobs.
    pub dead_letters: u64,
}
