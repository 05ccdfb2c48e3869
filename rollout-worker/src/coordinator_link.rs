//! The session with the coordinator, in the driver's words.

use std::net::SocketAddr;

use ractor::ActorRef;
use volley_link::Endpoint;
use volley_protocol::version::Hello;
use volley_protocol::worker::ToWorker;
use volley_runtime::conversation::{self, Kept};

use crate::core::{Input, SessionId};
use crate::driver::{DriverMessage, Line};
use crate::sink_link::next_session;

/// Keeps a session with the coordinator until the driver is gone.
pub(crate) async fn keep(
    endpoint: Endpoint,
    addr: SocketAddr,
    hello: Hello,
    driver: ActorRef<DriverMessage>,
) {
    // Numbered anew whenever it is opened, which comes first.
    let mut id = SessionId(0);
    let hear = |event: Kept<ToWorker>| {
        let message = match event {
            Kept::Up {
                session,
                sender,
                greeted,
            } => {
                id = next_session();
                DriverMessage::Connected {
                    input: Input::CoordinatorUp {
                        session: id,
                        epoch: greeted.epoch,
                    },
                    line: Line {
                        id,
                        control: sender,
                        session,
                    },
                }
            }
            Kept::Said(message, permit) => {
                let input = Input::Coordinator {
                    session: id,
                    message: Box::new(message),
                };
                DriverMessage::Input(input, permit)
            }
            Kept::Down => DriverMessage::Input(Input::CoordinatorDown { session: id }, None),
        };
        driver.cast(message).is_ok()
    };
    conversation::keep(&endpoint, addr, &hello, hear).await;
}
