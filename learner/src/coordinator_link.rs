//! The session with the coordinator, in the driver's words. A learner whose coordinator is gone
//! keeps its state and waits; its launcher decides when to give up.

use std::net::SocketAddr;

use ractor::ActorRef;
use volley_learner_core::{Input, SessionId};
use volley_link::Endpoint;
use volley_protocol::learner::ToLearner;
use volley_protocol::version::Hello;
use volley_runtime::conversation::{self, Kept};

use crate::driver::DriverMessage;
use crate::sink::next_session;

/// Keeps a session with the coordinator until the driver is gone.
pub(crate) async fn keep(
    endpoint: Endpoint,
    addr: SocketAddr,
    hello: Hello,
    driver: ActorRef<DriverMessage>,
) {
    // Numbered anew whenever it is opened, which comes first.
    let mut id = SessionId(0);
    let hear = |event: Kept<ToLearner>| {
        let message = match event {
            Kept::Up {
                session, sender, ..
            } => {
                id = next_session();
                DriverMessage::CoordinatorUp(id, session, sender)
            }
            Kept::Said(message, permit) => {
                let input = Input::Coordinator {
                    session: id,
                    message,
                };
                DriverMessage::Input(input, permit)
            }
            Kept::Down => DriverMessage::Input(Input::CoordinatorDown { session: id }, None),
        };
        driver.cast(message).is_ok()
    };
    conversation::keep(&endpoint, addr, &hello, hear).await;
}
