//! What a person can set, and the bounds that only the coordinator knows.

use volley_protocol::limits::REATTACH_GRACE_MS;

/// Settings of a coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorConfig {
    /// Name of the cluster, for people.
    pub cluster: String,
    /// Version of the program, for people.
    pub version: String,
    /// Process id, for people.
    pub pid: u32,
    /// A lease ends this long after it was given or last renewed.
    pub lease_ms: u64,
    /// A lost session's leases wait this long for its worker to come back.
    pub reattach_grace_ms: u64,
    /// After a restart, restored jobs wait this long before they are leased again, and no workers
    /// are started: those of the last life come back, with what they hold.
    pub restore_grace_ms: u64,
    /// The autoscaler.
    pub scaling: ScalingConfig,
    /// Payloads that may wait at the same time, over all queues.
    pub payloads_max: u64,
    /// What they may take in memory.
    pub payload_bytes_max: u64,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            cluster: "volley".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: 0,
            // Ten heartbeats: a lease survives what a session survives (idle timeout 5 s).
            lease_ms: 10_000,
            reattach_grace_ms: REATTACH_GRACE_MS,
            restore_grace_ms: 1_500,
            scaling: ScalingConfig::default(),
            payloads_max: QUEUED_PAYLOADS_MAX,
            payload_bytes_max: QUEUED_BYTES_MAX,
        }
    }
}

/// Payloads that wait, over all queues: where every second one is done, the ledger needs some 50
/// bytes for each, and so half a gigabyte.
pub const QUEUED_PAYLOADS_MAX: u64 = 10_000_000;

/// What waiting payloads, and the puts that brought them, may take in memory. A coordinator runs
/// beside its workers: a gigabyte is what a small machine can spare.
pub const QUEUED_BYTES_MAX: u64 = 1 << 30;

/// Payload bytes of a worker's leases, beyond which it gets no further one with a payload: half
/// of what may wait on its control stream. A full payload always fits.
pub const LEASED_PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// Shortest and longest time after which a client whose put found the queues full may try again.
pub const RETRY_AFTER_MS: (u64, u64) = (100, 10_000);

/// The same while nothing is done, so that nothing is known of when there will be room.
pub const RETRY_AFTER_MS_UNKNOWN: u64 = 1_000;

/// Settings of the autoscaler.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingConfig {
    /// Never fewer workers than this.
    pub min_workers: u32,
    /// Never more.
    pub max_workers: u32,
    /// Kept while a training job runs whose learner is connected.
    pub keep_warm: u32,
    /// Slots of a worker that has not registered yet.
    pub slots_per_worker: u32,
    /// Queued work should be done within this time: more of it wants more workers.
    pub horizon_ms: u64,
    /// Workers that were not needed for this long are removed.
    pub idle_window_ms: u64,
    /// A worker that has not registered this long after `StartWorker` counts as failed.
    pub start_timeout_ms: u64,
    /// A drained worker that is still there after this long is killed.
    pub drain_ms: u64,
    /// Assumed duration of an episode before one was measured.
    pub service_ms_default: u64,
}

impl Default for ScalingConfig {
    fn default() -> Self {
        Self {
            min_workers: 0,
            max_workers: 2,
            keep_warm: 1,
            slots_per_worker: 4,
            horizon_ms: 1_000,
            idle_window_ms: 30_000,
            start_timeout_ms: 30_000,
            drain_ms: 10_000,
            service_ms_default: 1_000,
        }
    }
}

/// Finished jobs that are remembered; beyond it the oldest is forgotten before its time.
pub const FINISHED_JOBS_MAX: usize = 10_000;

/// A finished job is remembered at least this long, so that its client can ask for the end.
pub const KEEP_MS_MIN: u64 = 60_000;

/// Step reports kept per run: a long run's client polls every few seconds.
pub const REPORTS_MAX: usize = 5_000;

/// Reports in one answer (`ReplyBody::Progress`), if that many fit.
pub const REPORTS_PER_REPLY_MAX: usize = 200;

/// Mean rewards kept per run for the monitor's graph.
pub const REWARD_HISTORY_MAX: usize = 120;

/// Open long polls of one client session.
pub const POLLS_PER_SESSION_MAX: usize = 64;

/// Attempts that a worker may hold: 36 bytes each in a control frame of one MiB.
pub const HELD_MAX: usize = 29_000;

/// Runs that are remembered.
pub const RUNS_MAX: usize = 1_000;

/// All runs in one answer, or in a snapshot, where jobs, workers and sentences take up to 300 KiB
/// of a control frame.
pub const RUNS_BYTES_MAX: usize = 640 << 10;

/// The least that a run needs in a list ([`crate::Coordinator::snapshot`]): its names and state,
/// without its last report and history.
pub const RUN_BYTES_MIN: usize = 512;

/// Longest problem or notice for people, in bytes.
pub const SENTENCE_BYTES_MAX: usize = 512;

/// Jobs in one answer: with their texts cut, this stays below a control frame.
pub const JOBS_PER_REPLY_MAX: usize = 1_000;

/// Versions in one answer (`ReplyBody::Adapters`).
pub const VERSIONS_PER_REPLY_MAX: usize = 5_000;

/// Leases given to one job before the next one has its turn.
pub const DISPATCH_QUANTUM: usize = 64;

/// Attempts given back without blame (adapter not to be had, worker stopped) before the rollout
/// counts as failed after all.
pub const RETURNS_MAX: u32 = 100;

/// Leases, silent workers, drains and the autoscaler are looked at this often.
pub const HOUSEKEEPING_MS: u64 = 100;
