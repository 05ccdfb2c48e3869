//! The sink: where workers deliver trajectories and fetch adapters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ractor::ActorRef;
use tokio::sync::Semaphore;
use volley_learner_core::SessionId;
use volley_link::{BulkPriority, Connected, LinkError, Listener, Role, Session};
use volley_protocol::codec::CodecError;
use volley_protocol::delivery::{BulkKind, FromSink, ToSink};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, PeerId};
use volley_protocol::limits::TRAJECTORY_BATCH_BYTES_MAX;
use volley_protocol::{Digest, trajectory};
use volley_runtime::conversation;
use volley_runtime::greeting::{close_with, hear, link_fault, welcome};

use crate::driver::{Delivery, DriverMessage};
use crate::versions::Versions;

/// Bulk streams of one worker that are read and decoded at the same time: all that its outbox may
/// have in flight, so that none waits unread and fills the connection's window. 128 MiB at most.
const BULK_STREAMS_AT_ONCE: usize = 32;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// Rewards and metrics beyond this are nonsense; environments are held to the same bound.
const REWARD_MAGNITUDE_MAX: f64 = 1e6;

/// A number that no session of this process had before.
pub(crate) fn next_session() -> SessionId {
    SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed))
}

/// Accepts until the listener is closed.
pub(crate) async fn accept(
    mut listener: Listener,
    peer: PeerId,
    versions: Versions,
    limits: Limits,
    driver: ActorRef<DriverMessage>,
) {
    while let Some(connected) = listener.accept().await {
        let (driver, versions) = (driver.clone(), versions.clone());
        tokio::spawn(async move {
            let addr = connected.session.remote_addr();
            if let Err(fault) = serve(connected, peer, versions, limits, &driver).await {
                tracing::warn!(%addr, %fault, "a peer was turned away");
            }
        });
    }
}

async fn serve(
    mut connected: Connected,
    peer: PeerId,
    versions: Versions,
    limits: Limits,
    driver: &ActorRef<DriverMessage>,
) -> Result<(), Fault> {
    hear(&mut connected).await?;
    let role = connected.session.peer_role();
    if !matches!(role, Role::Worker | Role::Client) {
        let fault = Fault::new(
            ErrorCode::Forbidden,
            format!("a {role} has no business here"),
        );
        close_with(&connected.session, &fault);
        return Err(fault);
    }
    let cluster = connected.session.peer().cluster_id().to_owned();
    // A learner has no epoch of its own.
    welcome(&connected, &cluster, Epoch(0), peer).await?;

    let Connected {
        session,
        sender,
        mut receiver,
    } = connected;
    let id = next_session();
    let bulk = (role == Role::Worker).then(|| {
        // The driver outlives its sessions, but for the moment of leaving.
        let _ = driver.cast(DriverMessage::WorkerUp(id, session.clone(), sender.clone()));
        tokio::spawn(receive(session.clone(), id, limits, driver.clone()))
    });
    let fetches = |ToSink::Fetch { digest }, permit| {
        let (session, sender, versions) = (session.clone(), sender.clone(), versions.clone());
        tokio::spawn(async move {
            match versions.bytes(digest).await {
                Some(bytes) => {
                    if let Err(error) = send_adapter(&session, digest, &bytes).await {
                        tracing::debug!(%error, "an adapter did not reach its worker");
                    }
                }
                None => conversation::say(&session, &sender, &FromSink::AdapterMissing { digest }),
            }
            drop(permit);
        });
        true
    };
    conversation::read(&session, &mut receiver, fetches).await;
    if let Some(bulk) = bulk {
        bulk.abort();
        let _ = driver.cast(DriverMessage::WorkerGone(id));
    }
    Ok(())
}

/// Reads a worker's trajectories, a bounded number of batches at a time.
async fn receive(session: Session, id: SessionId, limits: Limits, driver: ActorRef<DriverMessage>) {
    let at_once = Arc::new(Semaphore::new(BULK_STREAMS_AT_ONCE));
    while let Ok(stream) = session.accept_bulk().await {
        // The semaphore is never closed, so a permit always comes.
        let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else {
            return;
        };
        let (session, driver) = (session.clone(), driver.clone());
        tokio::spawn(async move {
            let bytes = match stream.read_to_end(TRAJECTORY_BATCH_BYTES_MAX).await {
                Ok(bytes) => bytes,
                // Its numbers are missing now: only a new session can bring them again.
                Err(error) => return close_with(&session, &link_fault(&error)),
            };
            match decode(&bytes, limits) {
                Ok((first_seq, records)) => {
                    let delivery = Delivery {
                        session: id,
                        first_seq,
                        records,
                    };
                    let _ = driver.cast(DriverMessage::Arrived(delivery, permit));
                }
                Err(error) => {
                    close_with(
                        &session,
                        &Fault::new(ErrorCode::DecodeError, error.to_string()),
                    );
                }
            }
        });
    }
}

/// What a trajectory of this run's model can hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
}

type Records = Vec<Result<Arc<trajectory::Trajectory>, String>>;

fn decode(bytes: &[u8], limits: Limits) -> Result<(u64, Records), CodecError> {
    let batch = trajectory::decode_batch(bytes)?;
    let records = batch
        .records
        .into_iter()
        .map(|view| usable(view.into_trajectory(), limits));
    Ok((batch.first_seq, records.collect()))
}

/// A worker checks its episodes; what slips through must not reach the optimiser.
fn usable(
    trajectory: trajectory::Trajectory,
    limits: Limits,
) -> Result<Arc<trajectory::Trajectory>, String> {
    let header = &trajectory.header;
    let sane = |number: &f64| number.abs() <= REWARD_MAGNITUDE_MAX;
    if !sane(&header.reward) || !header.metrics.values().all(sane) {
        return Err("a reward or metric is not finite or out of bounds".into());
    }
    if !(2..=limits.context).contains(&trajectory.tokens.len()) {
        return Err(format!("it has {} tokens", trajectory.tokens.len()));
    }
    if trajectory
        .tokens
        .iter()
        .any(|token| *token as usize >= limits.vocabulary)
    {
        return Err("a token is outside the model's vocabulary".into());
    }
    let sampled = trajectory.sampled.iter().zip(&trajectory.logprobs);
    if sampled.clone().any(|(sampled, _)| *sampled > 1) {
        return Err("its mask has values other than 0 and 1".into());
    }
    if trajectory
        .logprobs
        .iter()
        .any(|logprob| !logprob.is_finite() || *logprob > 0.0)
    {
        return Err("a log-probability is not finite or above 0".into());
    }
    Ok(Arc::new(trajectory))
}

async fn send_adapter(session: &Session, digest: Digest, bytes: &[u8]) -> Result<(), LinkError> {
    let mut stream = session.open_bulk(BulkPriority::Background).await?;
    let mut head = Vec::with_capacity(33);
    head.push(BulkKind::Adapter as u8);
    head.extend_from_slice(&digest.0);
    stream.write_all(&head).await?;
    stream.write_all(bytes).await?;
    stream.finish().await
}
