//! Bulk objects: one unidirectional stream each, behind the control stream in priority.
//!
//! There is no queue here: bytes go from the caller into QUIC's send window and come out of its
//! receive window, both bounded, so a slow reader slows its writer and nobody else. Between two
//! processes of one machine a Unix socket and its buffer take their place ([`crate::local`]).

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::{net::UnixStream, sync::mpsc, time::timeout};

use crate::{
    close::{CloseReason, close_code},
    error::LinkError,
    local::{self, Arrival},
};

/// Priority of the control stream above every bulk stream.
pub(crate) const CONTROL_PRIORITY: i32 = 100;

/// Network chunks taken per read.
const CHUNKS_PER_READ: usize = 32;

/// Who goes first when streams compete for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BulkPriority {
    /// Adapters: large, and late is better than in the way.
    Background,
    /// Trajectories.
    Normal,
}

impl BulkPriority {
    pub(crate) fn level(self) -> i32 {
        match self {
            Self::Background => -10,
            Self::Normal => 0,
        }
    }
}

/// What travels on an in-memory bulk stream; a stream dropped before `End` was given up.
pub(crate) enum MemoryChunk {
    Bytes(Bytes),
    End,
}

enum SendWire {
    Quic(SendStream),
    Local(UnixStream),
    Memory(mpsc::Sender<MemoryChunk>),
}

/// Writes one object. Dropped without [`finish`](Self::finish), it tells the reader that the
/// object was given up: a half object never looks whole.
pub struct BulkSender {
    wire: SendWire,
    peer: SocketAddr,
    finished: bool,
}

impl BulkSender {
    pub(crate) fn quic(stream: SendStream, peer: SocketAddr) -> Self {
        Self {
            wire: SendWire::Quic(stream),
            peer,
            finished: false,
        }
    }

    pub(crate) fn local(stream: UnixStream, peer: SocketAddr) -> Self {
        Self {
            wire: SendWire::Local(stream),
            peer,
            finished: false,
        }
    }

    pub(crate) fn memory(chunks: mpsc::Sender<MemoryChunk>, peer: SocketAddr) -> Self {
        Self {
            wire: SendWire::Memory(chunks),
            peer,
            finished: false,
        }
    }

    /// Does it go by a Unix socket of this machine?
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.wire, SendWire::Local(_))
    }

    /// Writes `bytes` without copying them; waits while the reader is behind.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        if bytes.is_empty() {
            return Ok(());
        }
        match &mut self.wire {
            SendWire::Quic(stream) => stream
                .write_chunk(bytes)
                .await
                .map_err(|error| write_error(self.peer, error)),
            SendWire::Local(stream) => local::write(stream, bytes).await.map_err(abandoned),
            SendWire::Memory(chunks) => {
                chunks
                    .send(MemoryChunk::Bytes(bytes))
                    .await
                    .map_err(|_| LinkError::BulkAborted {
                        code: close_code::ABANDONED,
                    })
            }
        }
    }

    /// Writes `bytes`; waits while the reader is behind.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        match &mut self.wire {
            SendWire::Quic(stream) => stream
                .write_all(bytes)
                .await
                .map_err(|error| write_error(self.peer, error)),
            SendWire::Local(_) | SendWire::Memory(_) => {
                self.write_chunk(Bytes::copy_from_slice(bytes)).await
            }
        }
    }

    /// Declares the object complete. What is still under way is delivered in the background as
    /// long as the session lives; an acknowledgement of receipt is the protocol's business.
    pub async fn finish(mut self) -> Result<(), LinkError> {
        self.finished = true;
        match &mut self.wire {
            SendWire::Quic(stream) => stream.finish().map_err(|_| LinkError::BulkAborted {
                code: close_code::ABANDONED,
            }),
            SendWire::Local(stream) => local::finish(stream).await.map_err(abandoned),
            SendWire::Memory(chunks) => {
                chunks
                    .send(MemoryChunk::End)
                    .await
                    .map_err(|_| LinkError::BulkAborted {
                        code: close_code::ABANDONED,
                    })
            }
        }
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        if let (false, SendWire::Quic(stream)) = (self.finished, &mut self.wire) {
            // An error means that the stream is over already.
            let _ = stream.reset(close_code::ABANDONED.into());
        }
    }
}

impl std::fmt::Debug for BulkSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkSender")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

enum ReceiveWire {
    Quic {
        stream: RecvStream,
        chunks: Box<[Bytes; CHUNKS_PER_READ]>,
        next: usize,
        end: usize,
    },
    Local(Arrival),
    Memory(mpsc::Receiver<MemoryChunk>),
}

/// Reads one object. Dropped before its end, it tells the sender to stop.
pub struct BulkReceiver {
    wire: ReceiveWire,
    peer: SocketAddr,
    stall: Duration,
}

impl BulkReceiver {
    pub(crate) fn quic(stream: RecvStream, peer: SocketAddr, stall: Duration) -> Self {
        let wire = ReceiveWire::Quic {
            stream,
            chunks: Box::default(),
            next: 0,
            end: 0,
        };
        Self { wire, peer, stall }
    }

    pub(crate) fn local(stream: UnixStream, peer: SocketAddr, stall: Duration) -> Self {
        let wire = ReceiveWire::Local(Arrival::new(stream));
        Self { wire, peer, stall }
    }

    pub(crate) fn memory(
        chunks: mpsc::Receiver<MemoryChunk>,
        peer: SocketAddr,
        stall: Duration,
    ) -> Self {
        Self {
            wire: ReceiveWire::Memory(chunks),
            peer,
            stall,
        }
    }

    /// The next bytes in order, of whatever size; `None` at the end of a complete object.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        let (peer, limit) = (self.peer, self.stall);
        match &mut self.wire {
            ReceiveWire::Quic {
                stream,
                chunks,
                next,
                end,
            } => {
                if next == end {
                    let read = timeout(limit, stream.read_chunks(&mut chunks[..]))
                        .await
                        .map_err(|_| LinkError::BulkStalled { limit })?
                        .map_err(|error| read_error(peer, error))?;
                    let Some(count) = read else { return Ok(None) };
                    (*next, *end) = (0, count);
                }
                let bytes = std::mem::take(&mut chunks[*next]);
                *next += 1;
                Ok(Some(bytes))
            }
            ReceiveWire::Local(arrival) => timeout(limit, arrival.read())
                .await
                .map_err(|_| LinkError::BulkStalled { limit })?
                .map_err(abandoned),
            ReceiveWire::Memory(chunks) => match timeout(limit, chunks.recv()).await {
                Ok(Some(MemoryChunk::Bytes(bytes))) => Ok(Some(bytes)),
                Ok(Some(MemoryChunk::End)) => {
                    chunks.close();
                    Ok(None)
                }
                Ok(None) => Err(LinkError::BulkAborted {
                    code: close_code::ABANDONED,
                }),
                Err(_) => Err(LinkError::BulkStalled { limit }),
            },
        }
    }

    /// The whole rest of the object, if it has at most `limit` bytes. Memory grows with what
    /// arrives.
    pub async fn read_to_end(mut self, limit: usize) -> Result<Vec<u8>, LinkError> {
        let mut object = Vec::new();
        if let ReceiveWire::Local(arrival) = &mut self.wire {
            return read_arrival(arrival, limit, self.stall).await;
        }
        while let Some(chunk) = self.read_chunk().await? {
            if chunk.len() > limit - object.len() {
                return Err(LinkError::BulkTooLarge { limit });
            }
            object.extend_from_slice(&chunk);
        }
        Ok(object)
    }
}

impl std::fmt::Debug for BulkReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkReceiver")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

async fn read_arrival(
    arrival: &mut Arrival,
    limit: usize,
    stall: Duration,
) -> Result<Vec<u8>, LinkError> {
    let mut object = Vec::new();
    loop {
        let read = timeout(stall, arrival.read_into(&mut object)).await;
        let more = read.map_err(|_| LinkError::BulkStalled { limit: stall })?;
        if object.len() + arrival.announced() > limit {
            return Err(LinkError::BulkTooLarge { limit });
        }
        if !more.map_err(abandoned)? {
            return Ok(object);
        }
    }
}

/// A Unix socket ends without a reason: its other end is gone, or has given the object up.
fn abandoned(_: std::io::Error) -> LinkError {
    LinkError::BulkAborted {
        code: close_code::ABANDONED,
    }
}

fn write_error(peer: SocketAddr, error: WriteError) -> LinkError {
    match error {
        WriteError::Stopped(code) => LinkError::BulkAborted { code: short(code) },
        WriteError::ConnectionLost(error) => LinkError::ended(peer, error.into()),
        other => transport(peer, &other),
    }
}

fn read_error(peer: SocketAddr, error: ReadError) -> LinkError {
    match error {
        ReadError::Reset(code) => LinkError::BulkAborted { code: short(code) },
        ReadError::ConnectionLost(error) => LinkError::ended(peer, error.into()),
        other => transport(peer, &other),
    }
}

fn transport(peer: SocketAddr, error: &dyn std::error::Error) -> LinkError {
    LinkError::ended(
        peer,
        CloseReason::Transport {
            detail: error.to_string(),
        },
    )
}

fn short(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}
