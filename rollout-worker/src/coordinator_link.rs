//! The session with the coordinator: opened, kept, opened again. Whether a worker gives up is the
//! core's decision, not this loop's.

use std::net::SocketAddr;
use std::time::Duration;

use ractor::ActorRef;
use volley_link::{Backoff, Endpoint, Role};
use volley_protocol::version::Hello;
use volley_protocol::worker::ToWorker;
use volley_runtime::conversation::{self, Open, ReadEnd};

use crate::core::Input;
use crate::driver::{DriverMessage, Line};
use crate::sink_link::next_session;

/// First and longest wait between dials: a coordinator that is started again is found within a
/// second, and one that is gone is not hammered.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Keeps a session with the coordinator until the driver is gone.
pub(crate) async fn keep(
    endpoint: Endpoint,
    addr: SocketAddr,
    hello: Hello,
    driver: ActorRef<DriverMessage>,
) {
    let mut backoff = Backoff::new(REDIAL.0, REDIAL.1);
    loop {
        match conversation::dial(&endpoint, addr, Role::Coordinator, &hello).await {
            Ok(open) => {
                backoff.reset();
                if !serve(open, &driver).await {
                    return;
                }
            }
            Err(fault) => tracing::debug!(%addr, %fault, "no session with the coordinator yet"),
        }
        tokio::time::sleep(backoff.next_delay(rand::random())).await;
    }
}

/// Reads until the session ends; false when the driver is gone.
async fn serve(open: Open, driver: &ActorRef<DriverMessage>) -> bool {
    let Open {
        session,
        sender,
        mut receiver,
        greeted,
    } = open;
    let id = next_session();
    let line = Line {
        id,
        control: sender,
        session: session.clone(),
    };
    let input = Input::CoordinatorUp {
        session: id,
        epoch: greeted.epoch,
    };
    if driver
        .cast(DriverMessage::Connected { input, line })
        .is_err()
    {
        return false;
    }
    let hear = |message: ToWorker, permit| {
        let input = Input::Coordinator {
            session: id,
            message: Box::new(message),
        };
        driver.cast(DriverMessage::Input(input, permit)).is_ok()
    };
    if conversation::read(&session, &mut receiver, hear).await == ReadEnd::NotHeard {
        return false;
    }
    let reason = session.closed().await;
    tracing::warn!(?reason, "the session with the coordinator ended");
    driver
        .cast(DriverMessage::Input(
            Input::CoordinatorDown { session: id },
            None,
        ))
        .is_ok()
}
