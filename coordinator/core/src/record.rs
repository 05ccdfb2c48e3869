//! What survives a crash. Replayed in order, records rebuild the coordinator.
//!
//! Not recorded, on purpose: leases (workers name what they hold when they come back), attempt
//! counts (a retry too many after a crash harms nobody), step reports (the learner's
//! `metrics.jsonl` has them). What is closed is a cache of what the sinks decided; a sink's
//! `Reconcile` overrules it.

use serde::{Deserialize, Serialize};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::{Extent, JobState};
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::{AdapterVersion, Epoch, GroupIndex, JobId, JobSpec, Payloads, RunId};

use crate::input::Millis;

/// One durable fact. Append only: old records must stay readable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A life of the coordinator began.
    Epoch(Epoch),
    /// A job was accepted.
    JobAccepted {
        /// The job; by far the largest thing that is recorded.
        spec: Box<JobSpec>,
        /// When, on the shell's clock.
        at: Millis,
    },
    /// A queue grew.
    Extended {
        /// Which queue.
        job: JobId,
        /// Index of the extent's first rollout.
        start: u64,
        /// What was added.
        extent: Extent,
    },
    /// A learner admitted rollouts.
    Admitted {
        /// Which job.
        job: JobId,
        /// First index that is not admitted.
        upto: u64,
    },
    /// A group got the version that all its members play with.
    GroupPinned {
        /// Which job.
        job: JobId,
        /// Which group.
        group: GroupIndex,
        /// Which version.
        version: AdapterVersion,
    },
    /// Rollouts were settled by their sink, as half-open ranges. A rollout that is named again
    /// moves to where it was named last.
    Closed {
        /// Which job.
        job: JobId,
        /// Accepted.
        accepted: Vec<(u64, u64)>,
        /// Failed.
        failed: Vec<(u64, u64)>,
    },
    /// A sink does not know these rollouts, contrary to what was recorded: they are open again.
    Reopened {
        /// Which job.
        job: JobId,
        /// Which rollouts.
        ranges: Vec<(u64, u64)>,
    },
    /// A job ended.
    JobClosed {
        /// Which job.
        job: JobId,
        /// How.
        state: JobState,
        /// What nobody wanted any more, of those that are recorded as failed.
        #[serde(default)]
        cancelled: Vec<(u64, u64)>,
    },
    /// A finished job's time is over.
    JobForgotten {
        /// Which job.
        job: JobId,
    },
    /// A learner was seen with this run.
    RunRegistered(RunInfo),
    /// A run changed its state.
    RunState {
        /// Which run.
        run: RunId,
        /// Its state.
        state: RunState,
    },
    /// A version exists.
    Published(AdapterEntry),
    /// A version is not to be used any more; its learner may still have the bytes.
    AdapterForgotten {
        /// Which version.
        version: AdapterVersion,
    },
    /// A rollout was given up, or was tried anew after that. The latest word on a rollout counts.
    DeadLetter {
        /// Which job.
        job: JobId,
        /// What was the matter with it.
        letter: Box<DeadLetter>,
    },
    /// Rollouts from `start` on were scheduled; of jobs whose time-outs count from then.
    Scheduled {
        /// Which job.
        job: JobId,
        /// First index.
        start: u64,
        /// When, on the shell's clock.
        at: Millis,
    },
    /// A queue grew by rollouts with payloads.
    Put {
        /// Which queue.
        job: JobId,
        /// Index of the extent's first rollout.
        start: u64,
        /// What was added.
        extent: Extent,
        /// One for each group. The shell keeps them beside the record's text, under (job, start),
        /// until [`crate::Effect::PayloadsDone`]; `None` when they are gone.
        #[serde(skip)]
        payloads: Option<Payloads>,
    },
}
