//! Learner ↔ coordinator, on the control stream.
//!
//! ```text
//! learner                               coordinator
//!    | -- Register ----------------------> |   run, address of the sink, newest version
//!    | -- Submit ------------------------> |   its own job; idempotent, repeated after a reconnect
//!    | -- Reconcile ---------------------> |   what the intake has settled: the ledger is rebuilt
//!    | -- Published ---------------------> |   a version exists; its step record is synced
//!    | -- Admit{upto} -------------------> |   rollouts below this index may be leased
//!    | -- Receipt{seq, entries} ---------> |   repeated until acknowledged
//!    | <------------- ReceiptAck{upto} --- |
//!    | <------------- RolloutFailed ------ |   repeated until a receipt settles it
//!    | -- Progress ----------------------> |   for people
//!    | <------------- Collect ------------ |   versions nobody pins
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterEntry;
use crate::codec::{FrameKind, Message};
use crate::digest::Digest;
use crate::fault::Fault;
use crate::ids::{JobId, RolloutId};
use crate::job::JobSpec;
use crate::run::{RunInfo, RunState, StepReport};

/// What a sink decided about a rollout. The first decision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The first valid result; it is synced.
    Accepted,
    /// The sink knows that it failed for good.
    Failed,
}

/// One settled rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptEntry {
    /// Which one.
    pub rollout: RolloutId,
    /// How it was settled.
    pub verdict: Verdict,
}

/// What a learner says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromLearner {
    /// First message of every session.
    Register {
        /// The run it works on.
        info: RunInfo,
        /// Where workers deliver and fetch.
        sink: SocketAddr,
        /// Every version whose bytes it has, oldest first; the last one is the head. At most
        /// [`crate::limits::REGISTER_VERSIONS_MAX`].
        versions: Vec<AdapterEntry>,
        /// Where the run stands.
        state: RunState,
    },
    /// A training job.
    Submit(JobSpec),
    /// Everything that the intake has settled for a job, as half-open ranges.
    Reconcile {
        /// Which job.
        job: JobId,
        /// Accepted rollouts.
        accepted: Vec<(u64, u64)>,
        /// Failed rollouts.
        failed: Vec<(u64, u64)>,
    },
    /// Rollouts with an index below this may be leased. Never falls.
    Admit {
        /// Which job.
        job: JobId,
        /// First index that may not.
        upto: u64,
    },
    /// Settled rollouts.
    Receipt {
        /// Rises by one with every receipt of this session, from 1.
        seq: u64,
        /// At most [`crate::limits::BATCH_ENTRIES_MAX`].
        entries: Vec<ReceiptEntry>,
    },
    /// A version exists, its step record and bytes are synced.
    Published(AdapterEntry),
    /// One step, for people.
    Progress(StepReport),
    /// The run changed its state.
    State(RunState),
    /// The adapters with these digests are deleted.
    Collected(Vec<Digest>),
}

/// What a coordinator says to a learner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToLearner {
    /// The job is durable, or it was refused.
    Submitted {
        /// Which job.
        job: JobId,
        /// Why it was refused.
        refused: Option<Fault>,
    },
    /// Receipts of this session up to this one are durable.
    ReceiptAck {
        /// Sequence number, inclusive.
        upto: u64,
    },
    /// A rollout will not be tried again. Its group must not wait for it.
    RolloutFailed {
        /// Which one.
        rollout: RolloutId,
        /// Why.
        fault: Fault,
    },
    /// Nobody pins these versions and the run's retention does not keep them.
    Collect(Vec<Digest>),
    /// Finish the step, write a checkpoint, exit.
    Stop,
}

impl Message for FromLearner {
    const KIND: FrameKind = FrameKind::FromLearner;
}

impl Message for ToLearner {
    const KIND: FrameKind = FrameKind::ToLearner;
}
