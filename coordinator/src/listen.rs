//! Takes in peers: hello, welcome, and a session actor for each.

use ractor::ActorRef;
use tokio::sync::oneshot;
use volley_link::{Connected, Listener, Role};
use volley_protocol::Fault;
use volley_protocol::fault::ErrorCode;
use volley_protocol::ids::{Epoch, PeerId};
use volley_runtime::greeting::{close_with, hear, welcome};

use crate::driver::DriverMessage;
use crate::session::NewSession;

/// Accepts until the listener is closed, or `closing` resolves; gives the listener back.
pub(crate) async fn accept(
    mut listener: Listener,
    epoch: Epoch,
    peer: PeerId,
    driver: ActorRef<DriverMessage>,
    mut closing: oneshot::Receiver<()>,
) -> Listener {
    loop {
        let connected = tokio::select! {
            connected = listener.accept() => connected,
            _ = &mut closing => return listener,
        };
        let Some(connected) = connected else {
            return listener;
        };
        let driver = driver.clone();
        // Hellos have a deadline; a slow peer must not hold up the next one.
        tokio::spawn(async move {
            let addr = connected.session.remote_addr();
            match greet_peer(connected, epoch, peer).await {
                Ok(new) => drop(driver.cast(DriverMessage::Connected(Box::new(new)))),
                Err(fault) => tracing::warn!(%addr, %fault, "a peer was turned away"),
            }
        });
    }
}

async fn greet_peer(
    mut connected: Connected,
    epoch: Epoch,
    peer: PeerId,
) -> Result<NewSession, Fault> {
    let hello = hear(&mut connected).await?;
    if connected.session.peer_role() == Role::Coordinator {
        let fault = Fault::new(
            ErrorCode::Forbidden,
            "a coordinator does not dial another one",
        );
        close_with(&connected.session, &fault);
        return Err(fault);
    }
    let cluster = connected.session.peer().cluster_id().to_owned();
    welcome(&connected, &cluster, epoch, peer).await?;
    Ok(NewSession::new(hello, connected))
}
