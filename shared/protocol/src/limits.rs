//! Every bound that two processes must agree on, with its reason.

/// One control frame. Trajectories and adapters travel on bulk streams, so a control message
/// above this is a defect or an attack.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// Tokens of one trajectory. At nine bytes each this stays below a control frame, so that a
/// result can also be read back through the coordinator's relay in one page.
pub const TRAJECTORY_TOKENS_MAX: usize = 65_536;

/// Header of one trajectory record: ids, reward, metrics, transcript.
pub const TRAJECTORY_HEADER_BYTES_MAX: usize = 256 << 10;

/// Bytes of one batch of trajectories on one bulk stream.
pub const TRAJECTORY_BATCH_BYTES_MAX: usize = 4 << 20;

/// Bytes of results in one page to a client: leaves room for the rest of the frame.
pub const RESULT_PAGE_BYTES_MAX: usize = 900 << 10;

/// Bytes of entries in an answer that is made of as many as fit (`ReplyBody::Progress`): leaves
/// room for the rest of the frame, also for the longest fault of a run's state.
pub const PAGED_REPLY_BYTES_MAX: usize = 900 << 10;

/// Metrics in a step's report: as many as one environment may have.
pub const REPORT_METRICS_MAX: usize = 64;

/// Versions that a learner names in its `Register`, the newest: 100 bytes each. A run that keeps
/// more of them would lose the oldest whenever its learner comes back.
pub const REGISTER_VERSIONS_MAX: usize = 4096;

/// One adapter. Rank 256 on every linear of an 8-billion model is about 1.4 GB in bf16.
pub const ADAPTER_BYTES_MAX: usize = 2 << 30;

/// Rollouts of one job. Seeds are expanded lazily, so this bounds arithmetic, not memory.
pub const JOB_ROLLOUTS_MAX: u64 = 1 << 40;

/// Rollouts of one group.
pub const GROUP_SIZE_MAX: u32 = 1024;

/// Options of a job's environment. The bundled ones know at most a handful.
pub const ENV_OPTIONS_MAX: usize = 64;

/// Names and values of a job's environment options together: the specification travels to every
/// worker, and is kept for as long as the job is.
pub const ENV_OPTIONS_BYTES_MAX: usize = 16 << 10;

/// Stop strings of a job. Every drawn token is searched for all of them.
pub const STOP_STRINGS_MAX: usize = 16;

/// Bytes of one stop string: as many tokens at most are decoded again with every drawn one.
pub const STOP_STRING_BYTES_MAX: usize = 256;

/// Jobs that are not finished, per coordinator.
pub const OPEN_JOBS_MAX: usize = 10_000;

/// Extents (`put` calls) of one open queue that are not finished.
pub const JOB_EXTENTS_MAX: usize = 100_000;

/// Payload of one rollout. A worker's credit and a coordinator's memory are counted in items, so an
/// item stays small; what is larger belongs into a file that the payload names.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Payloads in one `Put`: with their length words they leave room for the rest of a control frame.
pub const PUT_BYTES_MAX: usize = 900 << 10;

/// Payloads in one `Put`. As many empty ones would fit `PUT_BYTES_MAX` four times.
pub const PUT_PAYLOADS_MAX: usize = 65_536;

/// Bytes of payloads that the leases of one message carry; the leases themselves take up to
/// 700 KiB of the frame. At least one lease travels, however large its payload.
pub const LEASE_PAYLOAD_BYTES_MAX: usize = 256 << 10;

/// Priorities of jobs: -100 to 100, so that there is room on both sides of the usual 0.
pub const PRIORITY_MAX: i8 = 100;

/// Leases in one message, receipts in one message, failures in one message.
pub const BATCH_ENTRIES_MAX: usize = 4096;

/// Undelivered trajectory bytes in a worker above which it asks for no further work.
pub const UNDELIVERED_BYTES_MAX: u64 = 64 << 20;

/// A client's long poll is answered at the latest after this long.
pub const POLL_WAIT_MS_MAX: u64 = 20_000;

/// How long a worker, client or learner keeps dialling a coordinator that is gone.
pub const COORDINATOR_ABSENCE_MS_MAX: u64 = 60_000;

/// A worker tells that it lives, and renews its leases, this often.
pub const HEARTBEAT_MS: u64 = 1_000;

/// Least time after which a job may count a lease that was not renewed as lost: two renewals may be
/// late.
pub const HEARTBEAT_TIMEOUT_MS_MIN: u64 = 3_000;

/// Dead letters that are kept of one job, the newest; one answer holds them all.
pub const DEAD_LETTERS_PER_JOB_MAX: usize = 1_000;

/// Dead letters that are kept over all jobs: some 6 MB.
pub const DEAD_LETTERS_MAX: usize = 10_000;

/// Texts of a dead letter's fault; a thousand of them stay below a control frame.
pub const DEAD_LETTER_TEXT_BYTES_MAX: usize = 300;

/// After a session is lost the worker's leases stay its own for this long.
pub const REATTACH_GRACE_MS: u64 = 10_000;

/// Text fields: names.
pub const NAME_BYTES_MAX: usize = 64;

/// Text fields: messages and hints of faults. Longer ones are cut by their writer, and by whoever
/// keeps or passes on what a peer wrote.
pub const MESSAGE_BYTES_MAX: usize = 4096;
