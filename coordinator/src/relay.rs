//! The coordinator's own sink: results of `map` and `put` jobs, kept for their clients.
//!
//! One append-only segment file for each job. A result is accepted when its record is synced; the
//! first one of a rollout wins; only then the worker may free its bytes and the core closes the
//! rollout. Clients read by cursor, which is an offset in the file, so nothing is kept in memory
//! but which rollouts are there.

mod keeper;
mod results;

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use volley_coordinator_core::{Input, SessionId};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::{Epoch, JobId, RolloutId};
use volley_runtime::vital::Vital;

use crate::outbound::Outbound;
use keeper::Keeper;

/// Batches and questions waiting for the relay. A batch has at most 4 MiB, so this bounds its
/// memory to 256 MiB; above it bulk streams are not read and workers hold their bytes.
const QUEUE_MAX: usize = 64;

/// What the relay is asked to do.
#[derive(Debug)]
pub(crate) enum RelayRequest {
    /// The job exists: results of other jobs are not kept. Answered with what its file holds.
    Open {
        /// Which job.
        job: JobId,
        /// Rollouts that were durable when this life of the coordinator began.
        known: u64,
        /// Rollouts that it has now.
        rollouts: u64,
    },
    /// The job has this many rollouts now.
    Grew { job: JobId, rollouts: u64 },
    /// So many rollouts of the job are synced: their results may be read.
    Durable { job: JobId, rollouts: u64 },
    /// A batch of trajectories that a worker delivered.
    Store { session: SessionId, batch: Vec<u8> },
    /// A rollout failed for good.
    Failed { rollout: RolloutId, fault: Fault },
    /// Every rollout of the job is closed.
    Complete(JobId),
    /// Its results are no longer kept.
    Expire(JobId),
    /// A client wants a page.
    Query {
        session: SessionId,
        id: u32,
        job: JobId,
        cursor: u64,
        wait_ms: u64,
        /// It reads the file itself.
        near: bool,
    },
    /// A worker's session is gone.
    SessionGone(SessionId),
}

/// Hands requests to the relay's thread.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    queue: mpsc::SyncSender<RelayRequest>,
}

impl Relay {
    /// Starts the thread over the files in `directory`. `to_core` takes what was settled;
    /// `on_failure` is called once, when a file can no longer be trusted.
    pub(crate) fn start(
        directory: &Path,
        epoch: Epoch,
        outbound: Outbound,
        to_core: impl Fn(Input) + Send + 'static,
        on_failure: impl FnOnce(Fault) + Send + 'static,
    ) -> Result<Self, Fault> {
        let mut keeper = Keeper::new(directory, epoch, outbound)?;
        let (queue, requests) = mpsc::sync_channel(QUEUE_MAX);
        thread::Builder::new()
            .name("relay".into())
            .spawn(move || {
                let _vital = Vital("relay");
                if let Err(fault) = keeper.run(&requests, &to_core) {
                    on_failure(fault);
                }
            })
            .map_err(|error| Fault::new(ErrorCode::Internal, format!("relay thread: {error}")))?;
        Ok(Self { queue })
    }

    /// Queues a request; waits while the relay is behind.
    pub(crate) fn ask(&self, request: RelayRequest) {
        if self.queue.send(request).is_err() {
            tracing::debug!("the relay has failed; nothing is accepted any more");
        }
    }
}
