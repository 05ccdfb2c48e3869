//! Who plays: a thread of its own that holds the warm weights, so that sessions stay answered
//! while it computes. It is told what to play and reports what came of it; both channels are
//! bounded by the worker core's credit (never more episodes than slots are started).

pub(crate) mod engine;
pub(crate) mod scripted;
pub(crate) mod shelf;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use volley_protocol::adapter::AdapterVersion;
use volley_protocol::ids::AttemptId;
use volley_protocol::job::JobSpec;
use volley_protocol::trajectory::Trajectory;
use volley_protocol::worker::Lease;
use volley_protocol::{Digest, Fault};

use crate::adapter_bytes::AdapterBytes;
use crate::episode::EpisodeFault;

/// What the policy thread is told.
#[derive(Debug)]
pub(crate) enum PolicyCommand {
    /// Play this; its adapter is already in memory.
    Start { lease: Lease, spec: Arc<JobSpec> },
    /// Stop playing this; nothing is reported.
    Cancel(AttemptId),
    /// Take these bytes into memory.
    AddAdapter {
        version: AdapterVersion,
        bytes: AdapterBytes,
    },
    /// Forget these.
    DropAdapters(Vec<Digest>),
    /// Leave.
    Stop,
}

/// What the policy thread reports.
#[derive(Debug)]
pub(crate) enum PolicyEvent {
    /// An episode is over.
    Done(Box<Trajectory>),
    /// An episode failed.
    Failed {
        attempt: AttemptId,
        fault: EpisodeFault,
    },
    /// An adapter is in memory.
    AdapterReady(AdapterVersion),
    /// An adapter's bytes cannot be used.
    AdapterFailed {
        version: AdapterVersion,
        fault: Fault,
    },
}

/// Figures for people, written by the policy thread, read by heartbeats.
#[derive(Debug, Default)]
pub(crate) struct PolicyCounters {
    pub(crate) tokens: AtomicU64,
    pub(crate) prefill_tokens: AtomicU64,
}

impl PolicyCounters {
    pub(crate) fn add(&self, tokens: u64, prefill_tokens: u64) {
        // Figures for people: no other memory depends on their order.
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.prefill_tokens
            .fetch_add(prefill_tokens, Ordering::Relaxed);
    }
}

/// The driver's end of the policy thread.
#[derive(Debug)]
pub(crate) struct PolicyHandle {
    commands: mpsc::Sender<PolicyCommand>,
    pub(crate) counters: Arc<PolicyCounters>,
}

impl PolicyHandle {
    pub(crate) fn new(
        commands: mpsc::Sender<PolicyCommand>,
        counters: Arc<PolicyCounters>,
    ) -> Self {
        Self { commands, counters }
    }

    /// Tells the policy thread something. A thread that is gone has reported why already.
    pub(crate) fn tell(&self, command: PolicyCommand) {
        if self.commands.send(command).is_err() {
            tracing::debug!("the policy thread has left");
        }
    }
}

/// Where the policy thread reports to.
pub(crate) type Report = Arc<dyn Fn(PolicyEvent) + Send + Sync>;
