//! A conversation from the shell's side: dial until somebody answers, read typed messages, keep
//! what is unread in the peer's stream.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use volley_link::{ControlReceiver, ControlSender, Endpoint, Role, Session};
use volley_protocol::codec::{self, Message};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::version::Hello;

use crate::greeting::{Greeted, close_with, greet, link_fault};

// What the protocol lets its writers make is what the link lets pass; this crate knows both.
const _: () = assert!(
    volley_link::limits::CONTROL_FRAME_BYTES_MAX
        == volley_protocol::limits::CONTROL_FRAME_BYTES_MAX
);

/// Messages of one session that may wait in a driver's mailbox. Mailboxes themselves have no
/// bound; this is it. Further messages stay in the peer's stream, which flow control stops.
pub const MAILBOX_SHARE: usize = 256;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// The session is over.
    SessionOver,
    /// Whoever heard the messages does not want more.
    NotHeard,
}

/// Reads messages until the session is over or `hear` returns false. The permit that comes with
/// each message is dropped by its reader when the message is dealt with.
pub async fn read<M: Message>(
    session: &Session,
    receiver: &mut ControlReceiver,
    mut hear: impl FnMut(M, Option<OwnedSemaphorePermit>) -> bool,
) -> ReadEnd {
    let share = Arc::new(Semaphore::new(MAILBOX_SHARE));
    while let Ok(Some(frame)) = receiver.recv().await {
        let message = match codec::decode_frame::<M>(frame.kind, &frame.payload) {
            Ok(message) => message,
            Err(error) => {
                close_with(
                    session,
                    &Fault::new(ErrorCode::DecodeError, error.to_string()),
                );
                return ReadEnd::SessionOver;
            }
        };
        // The semaphore is never closed, so a permit always comes.
        let permit = Arc::clone(&share).acquire_owned().await.ok();
        if !hear(message, permit) {
            return ReadEnd::NotHeard;
        }
    }
    ReadEnd::SessionOver
}

/// Queues a message. A peer that does not read loses the session: everything that matters is said
/// again in the next one.
pub fn say<M: Message>(session: &Session, sender: &ControlSender, message: &M) {
    if let Err(error) = sender.try_send(M::KIND as u8, &codec::encode(message)) {
        tracing::warn!(peer = session.peer_name(), %error, "a message cannot be sent");
        close_with(session, &link_fault(&error));
    }
}
