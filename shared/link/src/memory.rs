//! A session without sockets, for tests of shells: same face, same framing, no network.
//!
//! Control bytes pass through the real queue and the real decoder; bulk streams are channels. It
//! must be created inside a tokio runtime, and works with paused time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, mpsc, watch};

use crate::{
    bulk::{BulkReceiver, BulkSender},
    close::{CloseReason, peer_text},
    control::{Batch, ControlReceiver, ControlSender},
    error::LinkError,
    frame::FrameDecoder,
    limits::{BULK_STREAMS_MAX, CONTROL_RECEIVE_BATCHES_MAX},
    queue::SendQueue,
    role::Peer,
    session::{Connected, Session},
};

/// Chunks of one object waiting for their reader.
const BULK_CHUNKS_MAX: usize = 16;

/// Who closed, and what was said.
type Closed = Option<(usize, u32, String)>;

/// One side of a pair.
pub(crate) struct MemoryWire {
    side: usize,
    bulk_out: mpsc::Sender<BulkReceiver>,
    bulk_in: Mutex<mpsc::Receiver<BulkReceiver>>,
    closed: Arc<watch::Sender<Closed>>,
}

impl MemoryWire {
    pub(crate) async fn open_bulk(
        &self,
        peer: SocketAddr,
        stall: Duration,
    ) -> Result<BulkSender, LinkError> {
        let (sender, chunks) = mpsc::channel(BULK_CHUNKS_MAX);
        let receiver = BulkReceiver::memory(chunks, peer, stall);
        tokio::select! {
            biased;
            reason = self.closed() => Err(LinkError::ended(peer, reason)),
            sent = self.bulk_out.send(receiver) => match sent {
                Ok(()) => Ok(BulkSender::memory(sender, peer)),
                Err(_) => Err(LinkError::ended(peer, self.closed().await)),
            },
        }
    }

    pub(crate) async fn accept_bulk(&self, peer: SocketAddr) -> Result<BulkReceiver, LinkError> {
        let mut bulk_in = self.bulk_in.lock().await;
        tokio::select! {
            biased;
            reason = self.closed() => Err(LinkError::ended(peer, reason)),
            Some(receiver) = bulk_in.recv() => Ok(receiver),
        }
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        let mut closed = self.closed.subscribe();
        // It cannot fail: this side holds the sender.
        let _ = closed.wait_for(Option::is_some).await;
        reason_for(self.side, &closed.borrow())
    }

    pub(crate) fn close(&self, code: u32, reason: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some((self.side, code, peer_text(reason.as_bytes())));
            }
            first
        });
    }
}

impl Drop for MemoryWire {
    fn drop(&mut self) {
        self.close(crate::close::close_code::NORMAL, "");
    }
}

fn reason_for(side: usize, closed: &Closed) -> CloseReason {
    match closed {
        Some((by, code, reason)) if *by != side => CloseReason::Peer {
            code: *code,
            reason: reason.clone(),
        },
        _ => CloseReason::Local,
    }
}

/// Two connected sessions: the first belongs to `a` and sees `b` as its peer, and vice versa.
pub fn memory_pair(a: Peer, b: Peer) -> (Connected, Connected) {
    let closed = Arc::new(watch::Sender::new(None));
    let (bulk_to_b, bulk_at_b) = mpsc::channel(BULK_STREAMS_MAX as usize);
    let (bulk_to_a, bulk_at_a) = mpsc::channel(BULK_STREAMS_MAX as usize);
    let wire = |side, bulk_out, bulk_in| {
        let bulk_in = Mutex::new(bulk_in);
        Arc::new(MemoryWire {
            side,
            bulk_out,
            bulk_in,
            closed: closed.clone(),
        })
    };
    let wire_a = wire(0, bulk_to_b, bulk_at_a);
    let wire_b = wire(1, bulk_to_a, bulk_at_b);
    let (addr_a, addr_b) = (local(1), local(2));
    let (sender_a, receiver_b) = direction(addr_a, addr_b, &wire_a, &wire_b);
    let (sender_b, receiver_a) = direction(addr_b, addr_a, &wire_b, &wire_a);
    let session_a = Session::memory(b, addr_b, wire_a);
    let session_b = Session::memory(a, addr_a, wire_b);
    (
        Connected {
            session: session_a,
            sender: sender_a,
            receiver: receiver_a,
        },
        Connected {
            session: session_b,
            sender: sender_b,
            receiver: receiver_b,
        },
    )
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Control frames one way: queue, pump, decoder, receiver. The pump keeps both sides alive for as
/// long as their halves are, as open streams do on a network.
fn direction(
    from_addr: SocketAddr,
    to_addr: SocketAddr,
    from: &Arc<MemoryWire>,
    to: &Arc<MemoryWire>,
) -> (ControlSender, ControlReceiver) {
    let queue = Arc::new(SendQueue::new());
    let (batches, received) = mpsc::channel(CONTROL_RECEIVE_BATCHES_MAX);
    let sender = ControlSender::new(queue.clone(), to_addr);
    let (from, to) = (from.clone(), to.clone());
    tokio::spawn(async move {
        let end = tokio::select! {
            biased;
            end = pump(&queue, &batches) => end,
            reason = from.closed() => {
                queue.fail(reason);
                Some(LinkError::ended(from_addr, to.closed().await))
            }
        };
        if let Some(error) = end {
            // The receiver may be gone; then nobody wants to know.
            let _ = batches.send(Err(error)).await;
        }
    });
    (sender, ControlReceiver::new(received))
}

async fn pump(queue: &SendQueue, batches: &mpsc::Sender<Batch>) -> Option<LinkError> {
    let mut decoder = FrameDecoder::new();
    loop {
        let bytes = tokio::select! {
            bytes = queue.take() => bytes,
            () = batches.closed() => {
                let detail = "the peer stopped reading its control stream".into();
                queue.fail(CloseReason::Transport { detail });
                return None;
            }
        };
        let Some(bytes) = bytes else { break };
        let mut batch = Vec::new();
        if let Err(error) = decoder.decode(bytes, &mut batch) {
            return Some(error);
        }
        if batches.send(Ok(batch)).await.is_err() {
            return None;
        }
    }
    queue.finished();
    None
}
