//! What a coordinator wants done. The shell carries effects out in their order.
//!
//! Effects of one call of [`crate::Coordinator::apply`] (or of several that the shell batches) form
//! one group commit: every `Persist` of the batch is written and synced together. An effect with
//! `after_commit` waits for that sync; all others may leave at once. A held message may be
//! overtaken by later ones on the same session: every receiver tolerates that.

use volley_protocol::client::{ClientReply, ReplyBody};
use volley_protocol::learner::ToLearner;
use volley_protocol::worker::ToWorker;
use volley_protocol::{ErrorCode, Fault, JobId, JobSpec, RolloutId};

use crate::input::SessionId;
use crate::record::Record;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write this with the next group commit.
    Persist(Record),
    /// The payloads of a put ([`Record::Put`]) are not needed any more: delete them with the next
    /// group commit, which also has the record that closes its last rollout.
    PayloadsDone {
        /// Which queue.
        job: JobId,
        /// Index of the put's first rollout.
        start: u64,
    },
    /// Say this to a worker.
    ToWorker {
        /// On which session.
        session: SessionId,
        /// What.
        message: ToWorker,
        /// Only after the batch's records, and all earlier ones, are synced: leases that play a
        /// group's pinned version, which no crash may change.
        after_commit: bool,
    },
    /// Say this to a learner.
    ToLearner {
        /// On which session.
        session: SessionId,
        /// What.
        message: ToLearner,
        /// Only after the batch's records are synced.
        after_commit: bool,
    },
    /// Answer a client.
    Reply {
        /// On which session.
        session: SessionId,
        /// What.
        reply: ClientReply,
        /// Only after the batch's records are synced.
        after_commit: bool,
    },
    /// Open (or create) the relay's segments of a job. After `Start` the shell answers each with
    /// [`crate::Input::RelayRestored`]; later ones need no answer.
    ///
    /// A result is valid for this job when its attempt has the current epoch, or the one before
    /// and `index < known`. Anything else belongs to an extent that a crash took back before it
    /// was synced: acknowledge it to the worker, but do not keep it. For the same reason, records
    /// at or beyond `known` that are found in the segments are deleted when they are opened.
    /// The job has `max(spec.rollouts, known)` rollouts until [`Effect::RelayGrew`] says more; no
    /// lease of this epoch is for one beyond them, so a worker that delivers one is not to be
    /// believed.
    RelayOpen {
        /// The job.
        spec: JobSpec,
        /// Rollouts that were durable when this life began; 0 for a new job.
        known: u64,
    },
    /// A queue has further rollouts.
    RelayGrew {
        /// Which job.
        job: JobId,
        /// How many it has in all.
        rollouts: u64,
    },
    /// Write a final failure record, unless the rollout has a record already (then ignore it).
    /// The core counts it as closed at once and wants no `RelaySettled` for it.
    RelayFailed {
        /// Which rollout.
        rollout: RolloutId,
        /// Why.
        fault: Fault,
    },
    /// The job is closed: after its last record, `complete` is true.
    /// Rollouts of a cancelled job may have no record at all.
    RelayComplete {
        /// Which job.
        job: JobId,
    },
    /// Nobody wants the results any more: delete the segments.
    RelayExpire {
        /// Which job.
        job: JobId,
    },
    /// Answer a `Results` request from the relay's segments.
    ResultsQuery {
        /// Who asks.
        session: SessionId,
        /// Number of the question.
        id: u32,
        /// Which job.
        job: JobId,
        /// Where to begin.
        cursor: u64,
        /// How long to wait when there is nothing new; within its bound already.
        wait_ms: u64,
        /// It can read the relay's file itself.
        near: bool,
    },
    /// Start a worker process that says this number in its `Register`.
    StartWorker {
        /// Unique over restarts of the coordinator.
        provision: u64,
    },
    /// End a worker process that did not end by itself.
    KillWorker {
        /// 0 when it never connected: then `provision` tells which one.
        pid: u32,
        /// Request that started it.
        provision: u64,
    },
    /// Close a session; the peer is told why.
    CloseSession {
        /// Which one.
        session: SessionId,
        /// Why.
        fault: Fault,
    },
    /// Something went wrong that a person should know, though nobody asked.
    Report {
        /// What.
        fault: Fault,
    },
}

/// A message that need not wait for a commit.
pub(crate) const fn to_worker(session: SessionId, message: ToWorker) -> Effect {
    Effect::ToWorker {
        session,
        message,
        after_commit: false,
    }
}

/// An answer to a client.
pub(crate) const fn reply(
    session: SessionId,
    id: u32,
    body: ReplyBody,
    after_commit: bool,
) -> Effect {
    Effect::Reply {
        session,
        reply: ClientReply { id, body },
        after_commit,
    }
}

/// Ends a session whose peer did something wrong.
pub(crate) fn close(session: SessionId, code: ErrorCode, why: impl Into<String>) -> Effect {
    Effect::CloseSession {
        session,
        fault: Fault::new(code, why),
    }
}

/// Writes something down.
pub(crate) fn persist(record: Record, out: &mut Vec<Effect>) {
    out.push(Effect::Persist(record));
}
