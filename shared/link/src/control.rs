//! The two halves of a control stream, and the tasks that connect them with the network.

use std::{fmt, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    close::{CloseReason, close_code},
    error::LinkError,
    frame::{Frame, FrameDecoder},
    limits::{CONTROL_RECEIVE_CHUNKS_MAX, LINGER},
    queue::{Refusal, SendQueue},
    runtime::LinkRuntime,
};

/// What the reading task hands over: all frames one read completed, or why there are no more.
pub(crate) type Batch = Result<Vec<Frame>, LinkError>;

/// The sending half; cheap to clone. When the last clone is dropped, what is queued is still
/// delivered and then the stream ends.
#[derive(Clone)]
pub struct ControlSender(Arc<SenderShared>);

struct SenderShared {
    queue: Arc<SendQueue>,
    peer: SocketAddr,
}

impl Drop for SenderShared {
    fn drop(&mut self) {
        self.queue.finish();
    }
}

impl ControlSender {
    pub(crate) fn new(queue: Arc<SendQueue>, peer: SocketAddr) -> Self {
        Self(Arc::new(SenderShared { queue, peer }))
    }

    /// Queues a frame; waits while the peer reads too slowly. `Ok` means queued, not delivered.
    pub async fn send(&self, kind: u8, payload: &[u8]) -> Result<(), LinkError> {
        self.0
            .queue
            .push(kind, payload)
            .await
            .map_err(|refusal| self.error(refusal))
    }

    /// Queues a frame, or says at once that the queue is full (`SEND_QUEUE_FULL`).
    pub fn try_send(&self, kind: u8, payload: &[u8]) -> Result<(), LinkError> {
        self.0
            .queue
            .try_push(kind, payload)
            .map_err(|refusal| self.error(refusal))
    }

    /// Waits until everything queued was handed to the transport.
    pub async fn flush(&self) -> Result<(), LinkError> {
        let done = self.0.queue.flushed().await;
        done.map_err(|reason| LinkError::ended(self.0.peer, reason))
    }

    /// Says that nothing follows, and waits until the peer has acknowledged everything: do this
    /// before [`crate::Session::close`], which discards what is under way.
    pub async fn finish(&self) -> Result<(), LinkError> {
        self.0.queue.finish();
        let done = self.0.queue.drained().await;
        done.map_err(|reason| LinkError::ended(self.0.peer, reason))
    }

    fn error(&self, refusal: Refusal) -> LinkError {
        match refusal {
            Refusal::Full { queued } => LinkError::SendQueueFull { queued },
            Refusal::Finished => LinkError::SenderFinished,
            Refusal::Ended(reason) => LinkError::ended(self.0.peer, reason),
            Refusal::Error(error) => error,
        }
    }
}

impl fmt::Debug for ControlSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSender")
            .field("peer", &self.0.peer)
            .finish_non_exhaustive()
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct ControlReceiver {
    batches: mpsc::Receiver<Batch>,
    ready: std::vec::IntoIter<Frame>,
}

impl ControlReceiver {
    pub(crate) fn new(batches: mpsc::Receiver<Batch>) -> Self {
        Self {
            batches,
            ready: Vec::new().into_iter(),
        }
    }

    /// The next frame; `None` once the peer has finished its half. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.ready.next() {
                return Ok(Some(frame));
            }
            match self.batches.recv().await {
                Some(batch) => self.ready = batch?.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// A frame that has already arrived in the batch of the last [`recv`](Self::recv): drain these
    /// before waiting, and one wake-up serves many messages.
    pub fn next_ready(&mut self) -> Option<Frame> {
        self.ready.next()
    }
}

/// Moves bytes from the queue to the stream until one of them ends.
pub(crate) async fn write_task(queue: Arc<SendQueue>, mut stream: SendStream, rt: LinkRuntime) {
    // Also resolves when the connection ends while nothing is being written.
    let mut stopped = pin!(stream.stopped());
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = queue.take() => bytes,
            end = &mut stopped => return queue.fail(stopped_reason(end)),
        };
        let Some(bytes) = bytes else { break };
        if let Err(error) = stream.write_chunk(bytes).await {
            return queue.fail(match error {
                WriteError::ConnectionLost(error) => error.into(),
                other => CloseReason::Transport {
                    detail: other.to_string(),
                },
            });
        }
    }
    // An error means that the stream is over already, which `stopped` tells better.
    let _ = stream.finish();
    match timeout(LINGER, stopped).await {
        Ok(Ok(None)) => queue.finished(),
        Ok(end) => queue.fail(stopped_reason(end)),
        Err(_) => queue.fail(CloseReason::Transport {
            detail: format!("the last bytes were not acknowledged within {LINGER:?}"),
        }),
    }
    drop(rt);
}

fn stopped_reason(end: Result<Option<VarInt>, StoppedError>) -> CloseReason {
    match end {
        Err(StoppedError::ConnectionLost(error)) => error.into(),
        Ok(code) => CloseReason::Transport {
            detail: format!("the peer stopped reading its control stream ({code:?})"),
        },
        Err(error) => CloseReason::Transport {
            detail: error.to_string(),
        },
    }
}

/// Moves frames from the stream to the receiver until one of them ends.
pub(crate) struct ReadTask {
    pub(crate) connection: Connection,
    pub(crate) stream: RecvStream,
    pub(crate) batches: mpsc::Sender<Batch>,
    /// An acceptor gives its peer this long for the first frame.
    pub(crate) first_frame: Option<Duration>,
    pub(crate) runtime: LinkRuntime,
}

impl ReadTask {
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.pump().await {
            let code = match &error {
                LinkError::FrameTooLarge { .. } => Some(close_code::FRAME_TOO_LARGE),
                LinkError::FrameTruncated { .. } => Some(close_code::FRAME_TRUNCATED),
                LinkError::FirstFrameTimeout { .. } => Some(close_code::FIRST_FRAME_TIMEOUT),
                _ => None,
            };
            if let Some(code) = code {
                let peer = self.connection.remote_address();
                tracing::warn!(%peer, code = error.code(), "closing session: {error}");
                self.connection.close(code.into(), error.code().as_bytes());
            }
            // The receiver may be gone; then nobody wants to know.
            let _ = self.batches.send(Err(error)).await;
        }
        drop(self.runtime);
    }

    async fn pump(&mut self) -> Result<(), LinkError> {
        let mut decoder = FrameDecoder::new();
        let mut chunks: [Bytes; CONTROL_RECEIVE_CHUNKS_MAX] = Default::default();
        let mut first = pin!(async {
            match self.first_frame {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        });
        let mut waiting = true;
        loop {
            let read = tokio::select! {
                read = self.stream.read_chunks(&mut chunks) => read,
                () = self.batches.closed() => return Ok(()),
                () = &mut first, if waiting => {
                    let peer = self.connection.remote_address();
                    let limit = self.first_frame.unwrap_or_default();
                    return Err(LinkError::FirstFrameTimeout { peer, limit });
                }
            };
            let count = match read {
                Ok(Some(count)) => count,
                Ok(None) => return decoder.finish(),
                Err(error) => return Err(self.read_error(error)),
            };
            let mut batch = Vec::new();
            for chunk in &mut chunks[..count] {
                let decoded = decoder.decode(std::mem::take(chunk), &mut batch);
                if decoded.is_err() {
                    // What came before the bad frame is still delivered, in order.
                    let _ = self.batches.send(Ok(batch)).await;
                    return decoded;
                }
            }
            if batch.is_empty() {
                continue;
            }
            waiting = false;
            if self.batches.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
    }

    fn read_error(&self, error: ReadError) -> LinkError {
        let reason = match error {
            ReadError::ConnectionLost(error) => error.into(),
            other => CloseReason::Transport {
                detail: other.to_string(),
            },
        };
        LinkError::ended(self.connection.remote_address(), reason)
    }
}
