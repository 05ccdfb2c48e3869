//! Everything that a worker's shell is asked to do, in the order in which it is to be done.

use std::net::SocketAddr;
use std::sync::Arc;

use volley_protocol::worker::{FromWorker, Lease, SinkAddr};
use volley_protocol::{AdapterVersion, AttemptId, Digest, JobSpec};

use super::input::SessionId;

/// Why a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The coordinator drained it.
    Drained,
    /// No coordinator for too long.
    Alone,
    /// The process was asked to end.
    Signal,
}

/// Everything that a worker's shell is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Say it to the coordinator, in the session that is open.
    Send(FromWorker),
    /// Play it in a slot. Its adapter is in memory and stays there until the episode ends.
    /// Answer `EpisodeDone` or `EpisodeFailed`.
    StartEpisode {
        /// What to play.
        lease: Lease,
        /// Its job.
        spec: Arc<JobSpec>,
    },
    /// Stop it. Its slot counts as free at once; a result that comes all the same is answered
    /// with `Free`.
    CancelEpisode {
        /// Which one.
        attempt: AttemptId,
    },
    /// Ask for an adapter in this session, check its digest, load it; answer `AdapterReady` or
    /// `AdapterFailed`. Asked once per digest and session; when the session ends first, the
    /// request is void and comes again in the next one.
    FetchAdapter {
        /// Which one.
        version: AdapterVersion,
        /// The learner that has it.
        source: SocketAddr,
        /// The open session with it.
        session: SessionId,
    },
    /// Forget these adapters: no episode plays with them.
    DropAdapters(Vec<Digest>),
    /// Open a session with a learner, unless a dial to it is under way already.
    DialSink {
        /// Its address.
        addr: SocketAddr,
    },
    /// Close the session, or stop dialling: nothing is left to say there.
    HangUpSink {
        /// Its address.
        addr: SocketAddr,
    },
    /// Send these records, in this order, as one batch.
    Deliver {
        /// Where to.
        sink: SinkAddr,
        /// In which session: the coordinator's for the relay.
        session: SessionId,
        /// Sequence number of the first record; a session counts from 1.
        first_seq: u64,
        /// Whose records.
        attempts: Vec<AttemptId>,
    },
    /// The bytes of these attempts are not needed any more.
    Free {
        /// Whose.
        attempts: Vec<AttemptId>,
    },
    /// Flush the sessions and end the process.
    Exit {
        /// Why.
        reason: ExitReason,
    },
}
