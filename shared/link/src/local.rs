//! Bulk objects between two processes of one machine: Unix sockets instead of QUIC.
//!
//! Encrypting, cutting into datagrams and acknowledging costs some four nanoseconds a byte, which
//! protects nothing between two processes of the same user on the same machine. So each endpoint
//! has a *door*: a Unix socket in the abstract namespace, named after its UDP port. A bulk object
//! for a peer on the loopback address goes through its door; whatever does not work out travels by
//! QUIC, as for a peer elsewhere.
//!
//! ```text
//! sender                                     door
//!    | -- token (32 bytes), asks (1) --------> |   which session; both sides derive it from TLS
//!    | <--------------------- answer (32) ---- |   if it asked: the door holds the session, too
//!    | -- [u32 length][bytes] ... [0] -------> |   one object; an end without 0 was given up
//! ```
//!
//! Who has neither the session's keys nor this user's id gets in nowhere: the system tells each
//! side whose process the other one is, and the tokens come from the session's own key exchange.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::Connection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::close::close_code;
use crate::limits::BULK_STREAMS_MAX;
use crate::runtime::LinkRuntime;

/// Length of a token and of its answer.
const TOKEN_BYTES: usize = 32;

/// Visitors at a door that have not shown their token yet; further ones wait in the system's
/// backlog.
const VISITORS_MAX: usize = 1024;

/// A session takes an object in within this time, or ends: as long as a bulk stream may stall.
const TAKEN_WAIT: Duration = Duration::from_secs(30);

/// A reader takes a piece within this time, or is taken for dead.
const PIECE_WAIT: Duration = Duration::from_secs(30);

/// A visitor shows its token, and a door its answer, within this time or never.
const TOKEN_WAIT: Duration = Duration::from_secs(1);

/// Most bytes behind one length: large writes are cut, so that a length never claims more memory
/// than this at once.
const PIECE_BYTES_MAX: usize = 4 << 20;

/// Bytes taken per read where the caller wants pieces.
const READ_BYTES: usize = 256 << 10;

type Token = [u8; TOKEN_BYTES];

/// An endpoint's own door; cheap to clone. It closes with the last clone and session.
#[derive(Clone, Debug)]
pub(crate) struct Door(Arc<DoorShared>);

#[derive(Debug)]
struct DoorShared {
    rooms: Arc<Rooms>,
    accepting: tokio::task::AbortHandle,
}

impl Drop for DoorShared {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The sessions behind a door, by their tokens.
#[derive(Debug, Default)]
struct Rooms(Mutex<HashMap<Token, Room>>);

#[derive(Clone, Debug)]
struct Room {
    answer: Token,
    visitors: mpsc::Sender<StdStream>,
    waiting: Arc<Semaphore>,
    connection: Connection,
}

impl Rooms {
    fn find(&self, token: &Token) -> Option<Room> {
        let rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.get(token).cloned()
    }
}

impl Door {
    /// Opens the door of the endpoint with this UDP port; `None` where that is not possible.
    pub(crate) fn open(runtime: &LinkRuntime, port: u16) -> Option<Self> {
        let _on_the_network_thread = runtime.handle().enter();
        match UnixListener::bind(name(port)) {
            Ok(listener) => {
                let rooms = Arc::new(Rooms::default());
                let accepting = runtime.spawn(accept(listener, Arc::clone(&rooms)));
                let accepting = accepting.abort_handle();
                Some(Self(Arc::new(DoorShared { rooms, accepting })))
            }
            Err(error) => {
                tracing::debug!(port, %error, "no bulk by Unix sockets");
                None
            }
        }
    }
}

/// The abstract name of the door beside a UDP port. Both live in the same network namespace, so
/// that who reaches the one on the loopback address can see the other.
fn name(port: u16) -> String {
    // A leading zero is what makes a name abstract; where there are none, binding it fails.
    format!("\0volley/bulk/{port}")
}

async fn accept(listener: UnixListener, rooms: Arc<Rooms>) {
    let waiting = Arc::new(Semaphore::new(VISITORS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else {
            return;
        };
        let Ok((visitor, _)) = listener.accept().await else {
            // Out of descriptors, for example: they wait in the backlog meanwhile.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let rooms = Arc::clone(&rooms);
        tokio::spawn(async move {
            // A visitor that is not let in sees its end, which is all it is told.
            let known = recognise(visitor, &rooms).await;
            // From here on it is its session's bound that counts, not everybody's.
            drop(permit);
            if let Ok(Some((room, visitor))) = known {
                room.take_in(visitor).await;
            }
        });
    }
}

impl Room {
    /// Waits until the session takes the visitor in. A session whose objects nobody wants for so
    /// long, or that sends ever more, ends: its peer learns that they did not arrive.
    async fn take_in(self, visitor: StdStream) {
        let Ok(_waits) = self.waiting.try_acquire() else {
            return self.end("too many bulk objects wait");
        };
        if let Err(SendTimeoutError::Timeout(_)) =
            self.visitors.send_timeout(visitor, TAKEN_WAIT).await
        {
            self.end("bulk objects are not taken");
        }
    }

    fn end(&self, why: &str) {
        tracing::warn!(peer = %self.connection.remote_address(), "{why}");
        let code = close_code::ABANDONED;
        self.connection.close(code.into(), why.as_bytes());
    }
}

/// The session that a visitor's token belongs to.
async fn recognise(
    mut visitor: UnixStream,
    rooms: &Rooms,
) -> io::Result<Option<(Room, StdStream)>> {
    check_user(&visitor)?;
    let (mut token, mut asks) = ([0; TOKEN_BYTES], [0]);
    timeout(TOKEN_WAIT, async {
        visitor.read_exact(&mut token).await?;
        visitor.read_exact(&mut asks).await
    })
    .await??;
    let Some(room) = rooms.find(&token) else {
        return Ok(None);
    };
    // An answer that nobody reads would look like a broken connection to who has left already.
    if asks == [1] {
        visitor.write_all(&room.answer).await?;
    }
    Ok(Some((room, visitor.into_std()?)))
}

/// Is the process at the other end one of this user's?
fn check_user(stream: &UnixStream) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if stream.peer_cred()?.uid() == own {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

const UNTRIED: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// A session's two ways through doors: out through the peer's, in through our own.
#[derive(Debug)]
pub(crate) struct Passage {
    door: Door,
    peer_port: u16,
    /// Shown at the peer's door, and what it must answer.
    out: (Token, Token),
    /// Of our own door.
    inward: Token,
    visitors: tokio::sync::Mutex<mpsc::Receiver<StdStream>>,
    state: AtomicU8,
}

impl Drop for Passage {
    fn drop(&mut self) {
        let rooms = &self.door.0.rooms.0;
        let mut rooms = rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.remove(&self.inward);
    }
}

impl Passage {
    /// The passage of a session whose keys are exchanged, if its peer is on this machine. Must
    /// exist before the peer can know that the session is open.
    pub(crate) fn of(connection: &Connection, door: Option<&Door>, dialled: bool) -> Option<Self> {
        let peer = connection.remote_address();
        if !peer.ip().to_canonical().is_loopback() {
            return None;
        }
        let door = door?.clone();
        let token = |of_dialler: bool, answers: bool| {
            let mut token = [0; TOKEN_BYTES];
            let label: &[u8] = if of_dialler {
                b"volley bulk from dialler"
            } else {
                b"volley bulk from listener"
            };
            let context: &[u8] = if answers { b"answer" } else { b"token" };
            let derived = connection.export_keying_material(&mut token, label, context);
            derived.ok().map(|()| token)
        };
        let out = (token(dialled, false)?, token(dialled, true)?);
        let (inward, answer) = (token(!dialled, false)?, token(!dialled, true)?);
        let (sender, visitors) = mpsc::channel(BULK_STREAMS_MAX as usize);
        let room = Room {
            answer,
            visitors: sender,
            waiting: Arc::new(Semaphore::new(BULK_STREAMS_MAX as usize)),
            connection: connection.clone(),
        };
        let mut rooms = door
            .0
            .rooms
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rooms.insert(inward, room);
        drop(rooms);
        Some(Self {
            door,
            peer_port: peer.port(),
            out,
            inward,
            visitors: tokio::sync::Mutex::new(visitors),
            state: AtomicU8::new(UNTRIED),
        })
    }

    /// A way through the peer's door; `None` when this object had better take QUIC.
    pub(crate) async fn leave(&self) -> Option<UnixStream> {
        let state = self.state.load(Ordering::Acquire);
        if state == CLOSED {
            return None;
        }
        match self.knock(state == UNTRIED).await {
            Ok(stream) => {
                self.state.store(OPEN, Ordering::Release);
                Some(stream)
            }
            Err(error) => {
                if state == UNTRIED {
                    tracing::debug!(port = self.peer_port, %error, "bulk goes by QUIC");
                    self.state.store(CLOSED, Ordering::Release);
                }
                None
            }
        }
    }

    /// Shows the token. The first time the answer is waited for: later the door is known.
    async fn knock(&self, first: bool) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(name(self.peer_port)).await?;
        check_user(&stream)?;
        let mut shown = [u8::from(first); TOKEN_BYTES + 1];
        shown[..TOKEN_BYTES].copy_from_slice(&self.out.0);
        stream.write_all(&shown).await?;
        if first {
            let mut answer = [0; TOKEN_BYTES];
            timeout(TOKEN_WAIT, stream.read_exact(&mut answer)).await??;
            if answer != self.out.1 {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
        Ok(stream)
    }

    /// The next object that came in through our door. Cancel-safe; never ends.
    pub(crate) async fn enter(&self) -> UnixStream {
        let mut visitors = self.visitors.lock().await;
        loop {
            match visitors.recv().await.map(UnixStream::from_std) {
                Some(Ok(stream)) => return stream,
                Some(Err(error)) => tracing::warn!(%error, "an object by Unix socket is lost"),
                None => std::future::pending().await,
            }
        }
    }
}

/// Writes a piece of an object.
pub(crate) async fn write(stream: &mut UnixStream, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
        let head = Bytes::copy_from_slice(&(piece.len() as u32).to_le_bytes());
        timeout(PIECE_WAIT, stream.write_all_buf(&mut head.chain(piece))).await??;
    }
    Ok(())
}

/// Declares an object complete.
pub(crate) async fn finish(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&[0; 4]).await
}

/// Reads an object.
#[derive(Debug)]
pub(crate) struct Arrival {
    stream: UnixStream,
    /// Of the piece that is being read.
    left: usize,
    over: bool,
}

impl Arrival {
    pub(crate) const fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            left: 0,
            over: false,
        }
    }

    /// Waits until a piece is there; false at the end of the object.
    async fn begin_piece(&mut self) -> io::Result<bool> {
        if self.left == 0 && !self.over {
            let length = self.stream.read_u32_le().await? as usize;
            if length > PIECE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.left = length;
            self.over = length == 0;
        }
        Ok(!self.over)
    }

    /// The next bytes; `None` at the end of a complete object.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        if !self.begin_piece().await? {
            return Ok(None);
        }
        let mut bytes = BytesMut::with_capacity(self.left.min(READ_BYTES));
        self.take(&mut bytes).await?;
        Ok(Some(bytes.freeze()))
    }

    /// Appends the next bytes to an object; false at its end. They land where they stay.
    pub(crate) async fn read_into(&mut self, object: &mut Vec<u8>) -> io::Result<bool> {
        if !self.begin_piece().await? {
            return Ok(false);
        }
        object.reserve(self.left);
        self.take(object).await?;
        Ok(true)
    }

    /// Bytes that were announced and not read yet.
    pub(crate) const fn announced(&self) -> usize {
        self.left
    }

    async fn take(&mut self, into: &mut impl bytes::BufMut) -> io::Result<()> {
        let mut piece = (&mut self.stream).take(self.left as u64);
        match piece.read_buf(into).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            taken => {
                self.left -= taken;
                Ok(())
            }
        }
    }
}
