//! The way to a role's driver for threads that are started before it: what they say until the
//! driver exists waits for it.

use std::sync::{Arc, OnceLock};

use ractor::{ActorRef, Message};

/// A handle to an actor that may not exist yet; cheap to clone.
#[derive(Debug)]
pub struct Mailbox<M: Message>(Arc<OnceLock<ActorRef<M>>>);

impl<M: Message> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Message> Default for Mailbox<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M: Message> Mailbox<M> {
    /// The actor exists now.
    pub fn open(&self, actor: ActorRef<M>) {
        let first = self.0.set(actor).is_ok();
        debug_assert!(first, "a mailbox is opened once");
    }

    /// Says something; blocks until the actor exists, which it does within milliseconds of
    /// start-up. For threads, not for async code.
    pub fn cast(&self, message: M) {
        if self.0.wait().cast(message).is_err() {
            tracing::debug!("the driver has left");
        }
    }
}
