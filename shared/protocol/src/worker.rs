//! Worker ↔ coordinator, on the control stream.
//!
//! ```text
//! worker                                coordinator
//!    | -- Register ----------------------> |   slots, numerics class; again after every reconnect
//!    | -- Ready{credit_total} -----------> |   absolute: leases ever allowed in this session
//!    | <------------- Job, Lease --------- |   a job's specification precedes its first lease
//!    | -- Heartbeat{running} ------------> |   every second; renews the leases it names
//!    | -- AttemptFailed -----------------> |   the episode ended without a result
//!    | <------------- Announce ----------- |   a new adapter: fetch it now, not at the next lease
//!    | -- Live --------------------------> |   loaded and digest checked
//!    | <------------- Revoke, Retire ----- |
//!    | <------------- Drain -------------- |   finish what runs, deliver, then Drained and exit
//! ```
//!
//! Results never pass here: they go to the job's sink ([`crate::delivery`]).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterVersion;
use crate::codec::{Blob, FrameKind, Message};
use crate::digest::Digest;
use crate::fault::Fault;
use crate::ids::{AttemptId, Epoch, JobId};
use crate::job::JobSpec;

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message of every session.
    Register {
        /// Concurrent episodes it can hold.
        slots: u32,
        /// Which arithmetic its log-probabilities come from, such as `cpu-f32-1`.
        numerics: String,
        /// Digest of the base model's files; all zero for the scripted policy.
        base: Digest,
        /// Which request of the autoscaler it answers; 0 when a person started it.
        provision: u64,
        /// Attempts it still runs or holds undelivered, from before a reconnect.
        held: Vec<AttemptId>,
        /// Adapters it has in memory.
        live: Vec<Digest>,
    },
    /// Leases allowed in this session, counted from its beginning; never falls.
    /// Withheld while undelivered bytes are above their bound.
    Ready {
        /// Total of leases ever allowed.
        credit_total: u64,
    },
    /// Sent every [`crate::limits::HEARTBEAT_MS`].
    Heartbeat {
        /// Attempts in a slot or waiting for delivery: their leases are renewed.
        held: Vec<AttemptId>,
        /// Figures for people.
        load: WorkerLoad,
    },
    /// An attempt ended without a trajectory.
    AttemptFailed {
        /// Which one.
        attempt: AttemptId,
        /// Why.
        fault: Fault,
        /// False when a further attempt cannot go better.
        retryable: bool,
    },
    /// An adapter is in memory and its digest was checked.
    Live {
        /// Which one.
        version: AdapterVersion,
    },
    /// Nothing runs, nothing is undelivered; the process exits now.
    Drained,
}

/// Figures of one worker, since its start where they are totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLoad {
    /// Slots with an episode.
    pub busy_slots: u32,
    /// Bytes not yet acknowledged by their sink.
    pub undelivered_bytes: u64,
    /// Episodes finished.
    pub episodes_total: u64,
    /// Tokens sampled.
    pub tokens_total: u64,
    /// Tokens prefilled.
    pub prefill_tokens_total: u64,
    /// Newest adapter step in memory.
    pub adapter_step: u64,
}

/// Which weights an attempt plays with: settled when its group was first leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeasePolicy {
    /// The base model.
    Base,
    /// An adapter and where its bytes are.
    Adapter {
        /// Which one.
        version: AdapterVersion,
        /// The learner that has it.
        source: SocketAddr,
    },
}

/// Where results of a lease go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkAddr {
    /// Back to the coordinator, over the session that the lease came by.
    Relay,
    /// To a learner that listens there.
    Learner(SocketAddr),
}

/// The right to one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What is leased.
    pub attempt: AttemptId,
    /// Instance of the environment.
    pub instance: u64,
    /// Sampling seed.
    pub seed: u64,
    /// Weights.
    pub policy: LeasePolicy,
    /// Where the result goes.
    pub sink: SinkAddr,
    /// The lease ends this long after it arrived, unless a heartbeat renews it.
    pub lease_ms: u64,
    /// What was put with the rollout, for its environment; empty for most.
    pub payload: Blob,
}

/// What a coordinator says to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "a specification travels once per job; a box would only be in the way of matching"
)]
pub enum ToWorker {
    /// A job's specification, once per session, before its first lease.
    Job(JobSpec),
    /// Work. Never more than the credit.
    Lease {
        /// Epoch of the sender; a lower one than the session's is ignored.
        epoch: Epoch,
        /// The leases.
        leases: Vec<Lease>,
    },
    /// Stop these attempts; their results are not wanted.
    Revoke(Vec<AttemptId>),
    /// A job is finished; its specification may be forgotten.
    Forget(JobId),
    /// A new adapter exists.
    Announce {
        /// Which one.
        version: AdapterVersion,
        /// Who has it.
        source: SocketAddr,
    },
    /// Adapters nobody needs any more.
    Retire(Vec<Digest>),
    /// Take nothing new, finish, deliver, say `Drained`, exit.
    Drain {
        /// What is not finished by then is dropped.
        deadline_ms: u64,
    },
    /// The relay has synced results of this session up to this sequence number.
    /// (Learners say the same on their own sessions, [`crate::delivery::FromSink`].)
    Delivered {
        /// Last sequence number, inclusive.
        upto: u64,
    },
}

impl Message for FromWorker {
    const KIND: FrameKind = FrameKind::FromWorker;
}

impl Message for ToWorker {
    const KIND: FrameKind = FrameKind::ToWorker;
}
