//! Client or monitor ↔ coordinator, on the control stream.
//!
//! ```text
//! client                                coordinator
//!    | -- ClientRequest{id, body} -------> |
//!    | <------------- ClientReply{id} ---- |   one for each request, in any order
//! ```
//!
//! Everything that flows is pulled: results by cursor, snapshots and run progress by long poll. A
//! slow reader therefore costs nobody anything, and a client that dies and comes back, or whose
//! coordinator was restarted, goes on where it was by repeating its last request.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterEntry;
use crate::codec::{Blob, FrameKind, Message};
use crate::fault::Fault;
use crate::ids::{JobId, RunId};
use crate::job::{Extent, JobSpec};
use crate::run::{RunState, RunSummary, StepReport};
use crate::snapshot::{ClusterSnapshot, JobSummary};

/// A question, with the number that its answer will carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRequest {
    /// Chosen by the client, unique among its open requests.
    pub id: u32,
    /// What is asked.
    pub body: RequestBody,
}

/// What a client can ask. Monitors may not send what changes something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Make a job durable. Answer: `Accepted`.
    Submit(JobSpec),
    /// Add to an open queue. Answer: `Accepted`.
    Put {
        /// Which queue.
        job: JobId,
        /// What to add.
        extent: Extent,
    },
    /// All jobs. Answer: `Jobs`.
    JobList,
    /// One job. Answer: `Jobs` with one entry.
    JobShow(JobId),
    /// Close what is open as failed. Answer: `Done`.
    JobCancel(JobId),
    /// Settled rollouts of a relay job, in the order in which they were settled. Answer: `Results`.
    Results {
        /// Which job.
        job: JobId,
        /// 0 at first, then `next_cursor` of the last answer.
        cursor: u64,
        /// Wait up to this long when there is nothing new.
        wait_ms: u64,
    },
    /// The cluster. Answer: `Snapshot`.
    Snapshot,
    /// All runs. Answer: `Runs`.
    RunList,
    /// Progress of a run. Answer: `Progress`.
    RunProgress {
        /// Which run.
        run: RunId,
        /// Reports with a larger step are wanted.
        after_step: u64,
        /// Wait up to this long when there is nothing new and the run trains.
        wait_ms: u64,
    },
    /// Versions of a run. Answer: `Adapters`.
    AdapterList(RunId),
    /// Forget a version and delete its bytes. Answer: `Done`.
    AdapterDelete {
        /// Which run.
        run: RunId,
        /// Which version.
        step: u64,
    },
}

impl RequestBody {
    /// Does it only read? A monitor's certificate allows nothing else.
    #[must_use]
    pub const fn reads_only(&self) -> bool {
        !matches!(
            self,
            Self::Submit(_) | Self::Put { .. } | Self::JobCancel(_) | Self::AdapterDelete { .. }
        )
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientReply {
    /// Number of the question.
    pub id: u32,
    /// The answer.
    pub body: ReplyBody,
}

/// What a coordinator can answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ReplyBody {
    /// The job or extent is durable.
    Accepted {
        /// Which job.
        job: JobId,
        /// It was known already.
        existed: bool,
    },
    /// Jobs.
    Jobs(Vec<JobSummary>),
    /// It is done.
    Done,
    /// A page of results.
    Results(ResultPage),
    /// The cluster.
    Snapshot(Box<ClusterSnapshot>),
    /// Runs.
    Runs(Vec<RunSummary>),
    /// Progress of a run.
    Progress {
        /// Reports, oldest first; at most 200.
        reports: Vec<StepReport>,
        /// Where the run stands.
        state: RunState,
    },
    /// Versions, oldest first.
    Adapters {
        /// Versions.
        entries: Vec<AdapterEntry>,
        /// The learner that has them, when it is connected.
        source: Option<SocketAddr>,
    },
    /// It did not happen.
    Fault(Fault),
}

/// Settled rollouts of a relay job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultPage {
    /// Records ([`ResultRecord`]), each behind a u32 length; at most
    /// [`crate::limits::RESULT_PAGE_BYTES_MAX`] bytes.
    pub records: Blob,
    /// Where to go on.
    pub next_cursor: u64,
    /// The job is closed and nothing follows this page.
    pub complete: bool,
}

/// One settled rollout, as the relay keeps it.
#[derive(Clone, Debug, PartialEq)]
pub enum ResultRecord {
    /// It produced a trajectory.
    Finished(Box<crate::Trajectory>),
    /// It failed for good.
    Failed {
        /// Which one.
        index: u64,
        /// Why.
        fault: Fault,
    },
}

impl Message for ClientRequest {
    const KIND: FrameKind = FrameKind::ClientRequest;
}

impl Message for ClientReply {
    const KIND: FrameKind = FrameKind::ClientReply;
}
