//! A conversation from the shell's side: dial until somebody answers, read typed messages, keep
//! what is unread in the peer's stream.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use volley_link::{
    Backoff, ControlReceiver, ControlSender, Endpoint, Frame, LinkConfig, Role, Session,
};
use volley_protocol::codec::{self, Message};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::version::Hello;

use crate::env_vars::VOLLEY_SAME_HOST;
use crate::greeting::{Greeted, close_with, greet, link_fault};

// What the protocol lets its writers make is what the link lets pass; this crate knows both.
const _: () = assert!(
    volley_link::limits::CONTROL_FRAME_BYTES_MAX
        == volley_protocol::limits::CONTROL_FRAME_BYTES_MAX
);

/// Messages of one session that may wait in a driver's mailbox. Mailboxes themselves have no
/// bound; this is it. Further messages stay in the peer's stream, which flow control stops.
pub const MAILBOX_SHARE: usize = 256;

/// A message of this size counts as one of [`MAILBOX_SHARE`], a larger one as several: a session's
/// messages take at most 4 MiB there, as many as its sending half may hold.
const MESSAGE_BYTES: usize = 16 << 10;

/// What processes of one machine do not send by the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SameHost {
    /// Trajectories and adapters go by Unix sockets.
    pub bulk: bool,
    /// Clients read results from the coordinator's files.
    pub results: bool,
}

/// As [`VOLLEY_SAME_HOST`] says.
#[must_use]
pub fn same_host() -> SameHost {
    let told = VOLLEY_SAME_HOST.text();
    SameHost {
        bulk: !matches!(told.as_deref(), Some("off" | "results")),
        results: told.as_deref() != Some("off"),
    }
}

/// What every role's endpoint is told.
#[must_use]
pub fn link_config() -> LinkConfig {
    LinkConfig {
        local_bulk: same_host().bulk,
        ..LinkConfig::default()
    }
}

/// First and longest wait between dials of a coordinator: one that is started again is found
/// within a second, and one that is gone is not hammered.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// An open session whose greeting is over.
#[derive(Debug)]
pub struct Open {
    /// The session.
    pub session: Session,
    /// Frames out.
    pub sender: ControlSender,
    /// Frames in.
    pub receiver: ControlReceiver,
    /// Who answered.
    pub greeted: Greeted,
}

/// Dials once and says hello.
///
/// # Errors
/// Why there is no session.
pub async fn dial(
    endpoint: &Endpoint,
    addr: SocketAddr,
    expected: Role,
    hello: &Hello,
) -> Result<Open, Fault> {
    let dialled = endpoint.dial(addr, expected).await;
    let mut connected = dialled.map_err(|error| link_fault(&error))?;
    let greeted = greet(&mut connected, hello).await?;
    Ok(Open {
        session: connected.session,
        sender: connected.sender,
        receiver: connected.receiver,
        greeted,
    })
}

/// How reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// The peer finished its stream.
    Left,
    /// The session is over, in the link's words.
    Lost(String),
    /// The peer said what it may not say, and was told so.
    Refused(Fault),
    /// Whoever heard the messages does not want more.
    NotHeard,
}

impl fmt::Display for ReadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("the peer left"),
            Self::Lost(why) => f.write_str(why),
            Self::Refused(fault) => write!(f, "{fault}"),
            Self::NotHeard => f.write_str("the driver is gone"),
        }
    }
}

/// Reads messages until the session is over or `hear` returns false. The permit that comes with
/// each message is dropped by its reader when the message is dealt with.
pub async fn read<M: Message>(
    session: &Session,
    receiver: &mut ControlReceiver,
    hear: impl FnMut(M, Option<OwnedSemaphorePermit>) -> bool,
) -> ReadEnd {
    read_frames(session, receiver, |frame| decode(frame).map(Some), hear).await
}

/// As [`read`], where `parse` says what a frame is: a message, nothing to be heard, or a reason to
/// end the session.
pub async fn read_frames<T>(
    session: &Session,
    receiver: &mut ControlReceiver,
    mut parse: impl FnMut(&Frame) -> Result<Option<T>, Fault>,
    mut hear: impl FnMut(T, Option<OwnedSemaphorePermit>) -> bool,
) -> ReadEnd {
    let share = Arc::new(Semaphore::new(MAILBOX_SHARE));
    loop {
        let frame = match receiver.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return ReadEnd::Left,
            Err(error) => return ReadEnd::Lost(error.to_string()),
        };
        let message = match parse(&frame) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(fault) => {
                close_with(session, &fault);
                return ReadEnd::Refused(fault);
            }
        };
        // The semaphore is never closed, so permits always come.
        let weight = weight(frame.payload.len());
        let permit = Arc::clone(&share).acquire_many_owned(weight).await.ok();
        if !hear(message, permit) {
            return ReadEnd::NotHeard;
        }
    }
}

/// How many messages of the usual size a frame counts as.
fn weight(payload_bytes: usize) -> u32 {
    let share = 1 + payload_bytes / MESSAGE_BYTES;
    u32::try_from(share.min(MAILBOX_SHARE)).unwrap_or(1)
}

/// The message in a frame.
///
/// # Errors
/// `DECODE_ERROR`.
pub fn decode<M: Message>(frame: &Frame) -> Result<M, Fault> {
    codec::decode_frame(frame.kind, &frame.payload)
        .map_err(|error| Fault::new(ErrorCode::DecodeError, error.to_string()))
}

/// What happens to the session with a coordinator.
#[derive(Debug)]
pub enum Kept<M> {
    /// It is open. The first, and again after each [`Kept::Down`].
    Up {
        /// The session.
        session: Session,
        /// Frames out.
        sender: ControlSender,
        /// Who answered.
        greeted: Greeted,
    },
    /// The coordinator said something.
    Said(M, Option<OwnedSemaphorePermit>),
    /// It is over.
    Down,
}

/// Keeps a session with the coordinator: opens it, reads it, opens it again, until `hear` returns
/// false. Whether a role gives up is its driver's decision, not this loop's.
pub async fn keep<M: Message>(
    endpoint: &Endpoint,
    addr: SocketAddr,
    hello: &Hello,
    mut hear: impl FnMut(Kept<M>) -> bool,
) {
    let mut backoff = Backoff::new(REDIAL.0, REDIAL.1);
    loop {
        match dial(endpoint, addr, Role::Coordinator, hello).await {
            Ok(open) => {
                backoff.reset();
                if !serve(open, &mut hear).await {
                    return;
                }
            }
            Err(fault) => tracing::debug!(%addr, %fault, "no session with the coordinator yet"),
        }
        tokio::time::sleep(backoff.next_delay(rand::random())).await;
    }
}

/// Reads until the session ends; false when nobody wants to hear of it.
async fn serve<M: Message>(open: Open, hear: &mut impl FnMut(Kept<M>) -> bool) -> bool {
    let Open {
        session,
        sender,
        mut receiver,
        greeted,
    } = open;
    let up = Kept::Up {
        session: session.clone(),
        sender,
        greeted,
    };
    if !hear(up) {
        return false;
    }
    let said = |message, permit| hear(Kept::Said(message, permit));
    if read(&session, &mut receiver, said).await == ReadEnd::NotHeard {
        return false;
    }
    let reason = session.closed().await;
    tracing::warn!(?reason, "the session with the coordinator ended");
    hear(Kept::Down)
}

/// Queues a message. A peer that does not read loses the session: everything that matters is said
/// again in the next one.
pub fn say<M: Message>(session: &Session, sender: &ControlSender, message: &M) {
    if let Err(error) = sender.try_send(M::KIND as u8, &codec::encode(message)) {
        tracing::warn!(peer = session.peer_name(), %error, "a message cannot be sent");
        close_with(session, &link_fault(&error));
    }
}

#[cfg(test)]
mod tests {
    use volley_link::limits::{CONTROL_FRAME_BYTES_MAX, CONTROL_QUEUE_BYTES_MAX};

    use super::*;

    #[test]
    fn what_waits_of_a_session_has_a_bound_in_messages_and_in_bytes() {
        assert_eq!((weight(0), weight(MESSAGE_BYTES - 1)), (1, 1));
        assert_eq!((weight(MESSAGE_BYTES), weight(usize::MAX)), (2, 256));
        for payload_bytes in [1, MESSAGE_BYTES, 65_536, CONTROL_FRAME_BYTES_MAX] {
            let messages = MAILBOX_SHARE / weight(payload_bytes) as usize;
            assert!(messages > 0, "{payload_bytes} bytes never have their turn");
            assert!(messages * payload_bytes <= CONTROL_QUEUE_BYTES_MAX);
        }
    }
}
