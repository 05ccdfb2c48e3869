//! Sessions with learners: where results go and adapters come from.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ractor::ActorRef;
use tokio::task::JoinHandle;
use volley_link::{BulkPriority, BulkReceiver, Endpoint, LinkError, Role, Session};
use volley_protocol::Digest;
use volley_protocol::delivery::{BulkKind, FromSink};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::limits::ADAPTER_BYTES_MAX;
use volley_protocol::version::Hello;
use volley_runtime::conversation::{self, Open};
use volley_runtime::greeting::{close_with, link_fault};

use crate::core::{Input, SessionId};
use crate::dials::DialId;
use crate::driver::{DriverMessage, Line};

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// A number that no session of this process had before.
pub(crate) fn next_session() -> SessionId {
    SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed))
}

/// Opens sessions with learners.
#[derive(Clone, Debug)]
pub(crate) struct Dialler {
    pub(crate) endpoint: Endpoint,
    pub(crate) hello: Hello,
}

impl Dialler {
    /// Dials once; the core asks again when it has to.
    pub(crate) fn dial(
        &self,
        addr: SocketAddr,
        dial: DialId,
        driver: ActorRef<DriverMessage>,
    ) -> JoinHandle<()> {
        let this = self.clone();
        tokio::spawn(async move {
            let dialled = conversation::dial(&this.endpoint, addr, Role::Learner, &this.hello);
            let session = match dialled.await {
                Ok(open) => Some(serve(open, addr, dial, &driver).await),
                Err(fault) => {
                    tracing::debug!(%addr, %fault, "no session with the learner yet");
                    None
                }
            };
            // The driver outlives its sessions, but for the moment of leaving.
            let _ = driver.cast(DriverMessage::SinkOver {
                addr,
                dial,
                session,
            });
        })
    }
}

/// Reads until the session is over; tells its number.
async fn serve(
    open: Open,
    addr: SocketAddr,
    dial: DialId,
    driver: &ActorRef<DriverMessage>,
) -> SessionId {
    let Open {
        session,
        sender,
        mut receiver,
        ..
    } = open;
    let id = next_session();
    let line = Line {
        id,
        control: sender,
        session: session.clone(),
    };
    if driver
        .cast(DriverMessage::SinkConnected { addr, dial, line })
        .is_err()
    {
        return id;
    }
    let adapters = tokio::spawn(receive_adapters(session.clone(), driver.clone()));
    let hear = |message: FromSink, permit| {
        let input = Input::Sink {
            addr,
            session: id,
            message,
        };
        driver.cast(DriverMessage::Input(input, permit)).is_ok()
    };
    conversation::read(&session, &mut receiver, hear).await;
    adapters.abort();
    id
}

/// Adapters come one after the other: the next one waits until this one is checked.
async fn receive_adapters(session: Session, driver: ActorRef<DriverMessage>) {
    while let Ok(stream) = session.accept_bulk().await {
        match receive_adapter(stream).await {
            Ok((digest, bytes)) => {
                let bytes = bytes.into();
                if driver
                    .cast(DriverMessage::AdapterBytes { digest, bytes })
                    .is_err()
                {
                    return;
                }
            }
            Err(fault) => {
                // Trust in this peer's bytes is gone; a new session asks again.
                close_with(&session, &fault);
                return;
            }
        }
    }
}

/// One adapter: `[kind][digest][bytes]`, taken only under its own name.
async fn receive_adapter(stream: BulkReceiver) -> Result<(Digest, Vec<u8>), Fault> {
    const HEAD: usize = 1 + 32;
    let read = stream.read_to_end(ADAPTER_BYTES_MAX + HEAD).await;
    let mut bytes = read.map_err(|error| link_fault(&error))?;
    if bytes.len() < HEAD || bytes[0] != BulkKind::Adapter as u8 {
        return Err(Fault::new(
            ErrorCode::DecodeError,
            "a bulk stream is no adapter",
        ));
    }
    let body = bytes.split_off(HEAD);
    let mut name = [0; 32];
    name.copy_from_slice(&bytes[1..]);
    let (named, is) = (Digest(name), Digest::of(&body));
    if named == is {
        Ok((named, body))
    } else {
        let message = format!(
            "an adapter named {} has the digest {}",
            named.short(),
            is.short()
        );
        Err(Fault::new(ErrorCode::DecodeError, message))
    }
}

/// Sends one bulk object.
pub(crate) async fn send_bulk(session: &Session, bytes: Vec<u8>) -> Result<(), LinkError> {
    let mut stream = session.open_bulk(BulkPriority::Normal).await?;
    stream.write_chunk(bytes.into()).await?;
    stream.finish().await
}
