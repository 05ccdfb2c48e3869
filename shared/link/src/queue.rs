//! The bounded queue between a control stream's senders and its one writer.
//!
//! Senders encode straight into one shared buffer, so that a frame costs a short lock and a copy,
//! and whatever piled up since the last write leaves as one write: coalescing without a timer.

use std::{
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::{
    close::CloseReason,
    error::LinkError,
    frame::encode_frame,
    limits::{CONTROL_QUEUE_BYTES_MAX, CONTROL_WRITE_BYTES_MAX},
};

/// ```text
/// Open ── finish ──> Finishing ── writer is done ──> Finished
///   └───────────────────┴────── connection ends ──> Failed
/// ```
#[derive(Clone, Debug)]
enum Phase {
    Open,
    Finishing,
    Finished,
    Failed(CloseReason),
}

#[derive(Debug)]
struct State {
    buf: BytesMut,
    /// The writer holds bytes it has not yet passed on.
    writing: bool,
    phase: Phase,
}

/// Why a frame could not be queued.
pub(crate) enum Refusal {
    /// Bytes are waiting at the bound.
    Full {
        queued: usize,
    },
    Finished,
    Ended(CloseReason),
    Error(LinkError),
}

#[derive(Debug)]
pub(crate) struct SendQueue {
    state: Mutex<State>,
    /// For the writer: bytes arrived or the phase changed.
    readable: Notify,
    /// For everyone else: bytes left or the phase changed.
    progress: Notify,
}

impl SendQueue {
    pub(crate) fn new() -> Self {
        let state = State {
            buf: BytesMut::new(),
            writing: false,
            phase: Phase::Open,
        };
        Self {
            state: Mutex::new(state),
            readable: Notify::new(),
            progress: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; a poisoned queue is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame unless the queue is at its bound.
    pub(crate) fn try_push(&self, kind: u8, payload: &[u8]) -> Result<(), Refusal> {
        let was_empty = {
            let mut state = self.state();
            match &state.phase {
                Phase::Open => {}
                Phase::Finishing | Phase::Finished => return Err(Refusal::Finished),
                Phase::Failed(reason) => return Err(Refusal::Ended(reason.clone())),
            }
            let queued = state.buf.len();
            if queued >= CONTROL_QUEUE_BYTES_MAX {
                return Err(Refusal::Full { queued });
            }
            encode_frame(kind, payload, &mut state.buf).map_err(Refusal::Error)?;
            queued == 0
        };
        if was_empty {
            self.readable.notify_one();
        }
        Ok(())
    }

    /// Queues a frame, waiting while the queue is at its bound.
    pub(crate) async fn push(&self, kind: u8, payload: &[u8]) -> Result<(), Refusal> {
        match self.try_push(kind, payload) {
            Err(Refusal::Full { .. }) => {}
            done => return done,
        }
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            match self.try_push(kind, payload) {
                Err(Refusal::Full { .. }) => progress.await,
                done => return done,
            }
        }
    }

    /// For the one writer: the next bytes, or `None` once the queue is finished and empty, or
    /// has failed.
    pub(crate) async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if matches!(state.phase, Phase::Failed(_)) {
                    return None;
                }
                state.writing = !state.buf.is_empty();
                if state.writing {
                    let was_full = state.buf.len() >= CONTROL_QUEUE_BYTES_MAX;
                    let len = state.buf.len().min(CONTROL_WRITE_BYTES_MAX);
                    let bytes = state.buf.split_to(len).freeze();
                    drop(state);
                    if was_full {
                        self.progress.notify_waiters();
                    }
                    return Some(bytes);
                }
                if matches!(state.phase, Phase::Finishing) {
                    return None;
                }
            }
            self.progress.notify_waiters();
            self.readable.notified().await;
        }
    }

    /// No more frames will be queued; the writer drains what is there.
    pub(crate) fn finish(&self) {
        self.change_phase(|phase| matches!(phase, Phase::Open), Phase::Finishing);
    }

    /// The writer has passed on everything and the peer has it.
    pub(crate) fn finished(&self) {
        self.change_phase(|phase| matches!(phase, Phase::Finishing), Phase::Finished);
    }

    /// The connection ended first.
    pub(crate) fn fail(&self, reason: CloseReason) {
        self.change_phase(
            |phase| matches!(phase, Phase::Open | Phase::Finishing),
            Phase::Failed(reason),
        );
    }

    fn change_phase(&self, from: impl Fn(&Phase) -> bool, to: Phase) {
        {
            let mut state = self.state();
            if !from(&state.phase) {
                return;
            }
            if matches!(to, Phase::Failed(_)) {
                state.buf = BytesMut::new();
            }
            state.phase = to;
        }
        self.readable.notify_one();
        self.progress.notify_waiters();
    }

    /// Waits until the writer has passed on everything queued so far.
    pub(crate) async fn flushed(&self) -> Result<(), CloseReason> {
        self.wait(|state| state.buf.is_empty() && !state.writing)
            .await
    }

    /// Waits until the peer has acknowledged everything.
    pub(crate) async fn drained(&self) -> Result<(), CloseReason> {
        self.wait(|state| matches!(state.phase, Phase::Finished))
            .await
    }

    async fn wait(&self, done: impl Fn(&State) -> bool) -> Result<(), CloseReason> {
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            {
                let state = self.state();
                if let Phase::Failed(reason) = &state.phase {
                    return Err(reason.clone());
                }
                if done(&state) {
                    return Ok(());
                }
            }
            progress.await;
        }
    }
}
