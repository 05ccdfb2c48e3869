//! One actor for each connected peer: it reads frames, knows from the certificate which
//! conversation its peer may hold, and passes messages on. A frame of another conversation is
//! refused with `FORBIDDEN`; bytes that are no message end the session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::Semaphore;
use volley_coordinator_core::{Input, SessionId};
use volley_link::{Connected, ControlReceiver, ControlSender, Frame, Role, Session};
use volley_protocol::client::{ClientReply, ClientRequest, ReplyBody};
use volley_protocol::codec::{self, FrameKind};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::learner::FromLearner;
use volley_protocol::limits::TRAJECTORY_BATCH_BYTES_MAX;
use volley_protocol::version::Hello;
use volley_protocol::worker::FromWorker;
use volley_runtime::conversation::{self, ReadEnd, decode};
use volley_runtime::greeting::{close_with, link_fault};

use crate::driver::DriverMessage;
use crate::relay::{Relay, RelayRequest};

/// Bulk streams of one worker that are read at the same time: all that its outbox may have in
/// flight, so that none waits unread and fills the connection's window. 128 MiB at most.
const BULK_STREAMS_AT_ONCE: usize = 32;

/// Refused frames after which a peer is told to leave.
const FORBIDDEN_MAX: u32 = 16;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// A peer that said who it is.
#[derive(Debug)]
pub(crate) struct NewSession {
    pub(crate) id: SessionId,
    pub(crate) role: Role,
    pub(crate) hello: Hello,
    pub(crate) session: Session,
    pub(crate) control: ControlSender,
    pub(crate) frames: ControlReceiver,
}

impl NewSession {
    pub(crate) fn new(hello: Hello, connected: Connected) -> Self {
        let id = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
        let Connected {
            session,
            sender,
            receiver,
        } = connected;
        let role = session.peer_role();
        Self {
            id,
            role,
            hello,
            session,
            control: sender,
            frames: receiver,
        }
    }

    /// What the core is told first.
    pub(crate) fn up_input(&self) -> Option<Input> {
        let (session, pid) = (self.id, self.hello.pid);
        match self.role {
            Role::Worker => Some(Input::WorkerUp {
                session,
                worker: self.hello.peer,
                name: self.hello.name.clone(),
                pid,
            }),
            Role::Learner => Some(Input::LearnerUp {
                session,
                peer: self.hello.peer,
                pid,
            }),
            Role::Client | Role::Monitor | Role::Coordinator => None,
        }
    }
}

/// The actor. Its only message is "read until the peer is gone".
#[derive(Debug)]
pub(crate) struct PeerSession;

/// Start reading.
#[derive(Debug)]
pub(crate) struct Read;

/// The actor's state.
pub(crate) struct PeerState {
    peer: NewSession,
    driver: ActorRef<DriverMessage>,
    relay: Relay,
}

impl Actor for PeerSession {
    type Msg = Read;
    type State = PeerState;
    type Arguments = (NewSession, ActorRef<DriverMessage>, Relay);

    async fn pre_start(
        &self,
        myself: ActorRef<Read>,
        (peer, driver, relay): (NewSession, ActorRef<DriverMessage>, Relay),
    ) -> Result<PeerState, ActorProcessingErr> {
        myself.cast(Read)?;
        Ok(PeerState {
            peer,
            driver,
            relay,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Read>,
        Read: Read,
        state: &mut PeerState,
    ) -> Result<(), ActorProcessingErr> {
        let bulk = (state.peer.role == Role::Worker).then(|| {
            let session = state.peer.session.clone();
            tokio::spawn(read_bulk(session, state.peer.id, state.relay.clone()))
        });
        let reason = state.read_control().await;
        if let Some(bulk) = bulk {
            bulk.abort();
        }
        let (role, name) = (state.peer.role, &state.peer.hello.name);
        tracing::info!(%role, name, %reason, "session ended");
        myself.stop(None);
        Ok(())
    }
}

impl PeerState {
    async fn read_control(&mut self) -> ReadEnd {
        let NewSession {
            id,
            role,
            hello,
            session,
            control,
            frames,
        } = &mut self.peer;
        let mut gate = Gate {
            session: *id,
            role: *role,
            name: &hello.name,
            control,
            forbidden: 0,
        };
        let driver = &self.driver;
        let hear = |input, permit| driver.cast(DriverMessage::Input(input, permit)).is_ok();
        conversation::read_frames(session, frames, |frame| gate.parse(frame), hear).await
    }
}

/// Lets through what the role in a peer's certificate may say.
struct Gate<'a> {
    session: SessionId,
    role: Role,
    name: &'a str,
    control: &'a ControlSender,
    forbidden: u32,
}

impl Gate<'_> {
    /// The input behind a frame. `None`: it was refused, and the conversation goes on.
    fn parse(&mut self, frame: &Frame) -> Result<Option<Input>, Fault> {
        let session = self.session;
        let due = match self.role {
            Role::Worker => FrameKind::FromWorker,
            Role::Learner => FrameKind::FromLearner,
            Role::Client | Role::Monitor | Role::Coordinator => FrameKind::ClientRequest,
        };
        if frame.kind != due as u8 && is_known_request(frame.kind) {
            return self.refuse(frame.kind).map(|()| None);
        }
        Ok(Some(match due {
            FrameKind::FromWorker => {
                let message: FromWorker = decode(frame)?;
                Input::Worker { session, message }
            }
            FrameKind::FromLearner => {
                let message: FromLearner = decode(frame)?;
                Input::Learner { session, message }
            }
            _ => {
                let request: ClientRequest = decode(frame)?;
                let monitor = self.role == Role::Monitor;
                Input::Client {
                    session,
                    request,
                    monitor,
                }
            }
        }))
    }

    /// A message of another role. A client is told and may go on, up to a bound; a worker or
    /// learner that does this is no worker or learner, and loses its session.
    fn refuse(&mut self, kind: u8) -> Result<(), Fault> {
        self.forbidden += 1;
        let (role, name) = (self.role, self.name);
        let message = format!("a {role} certificate may not send messages of kind {kind}");
        let fault = Fault::new(ErrorCode::Forbidden, message);
        tracing::warn!(%role, name, %fault, "a message of another role was refused");
        let client = matches!(role, Role::Client | Role::Monitor);
        if !client || self.forbidden >= FORBIDDEN_MAX {
            return Err(fault);
        }
        let reply = ClientReply {
            id: 0,
            body: ReplyBody::Fault(fault),
        };
        // A peer that does not read its refusals loses nothing but them.
        let _ = self
            .control
            .try_send(FrameKind::ClientReply as u8, &codec::encode(&reply));
        Ok(())
    }
}

/// Is it a message that some role may send to a coordinator?
fn is_known_request(kind: u8) -> bool {
    [
        FrameKind::FromWorker,
        FrameKind::FromLearner,
        FrameKind::ClientRequest,
        FrameKind::ToSink,
    ]
    .iter()
    .any(|known| *known as u8 == kind)
}

/// Reads a worker's bulk streams into the relay, a bounded number at a time.
async fn read_bulk(session: Session, id: SessionId, relay: Relay) {
    let at_once = Arc::new(Semaphore::new(BULK_STREAMS_AT_ONCE));
    while let Ok(stream) = session.accept_bulk().await {
        let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else {
            return;
        };
        let (session, relay) = (session.clone(), relay.clone());
        tokio::spawn(async move {
            match stream.read_to_end(TRAJECTORY_BATCH_BYTES_MAX).await {
                Ok(batch) => {
                    // The relay's queue is bounded and may make this wait, so not on this runtime.
                    let ask = move || relay.ask(RelayRequest::Store { session: id, batch });
                    if tokio::task::spawn_blocking(ask).await.is_err() {
                        tracing::error!("handing a batch to the relay failed");
                    }
                }
                // Its numbers are missing now: only a new session can bring them again.
                Err(error) => close_with(&session, &link_fault(&error)),
            }
            drop(permit);
        });
    }
}
