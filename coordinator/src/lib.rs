//! The coordinator's shell: sessions, group commit, relay sink, provisioners.
//!
//! ```text
//!  session actors ──▶ driver actor ◀▶ core          (volley-coordinator-core decides)
//!                        │  │  └──▶ provisioner     worker processes
//!                        │  └─────▶ relay thread    results of map and put, by cursor
//!                        └────────▶ committer thread ──▶ store (SQLite, group commit)
//! ```

mod committer;
mod data_dir;
mod driver;
pub mod journal;
mod listen;
mod orphans;
mod outbound;
mod provisioner;
mod relay;
mod session;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ractor::Actor;
use tokio::sync::oneshot;
use tokio::time::timeout;
use volley_coordinator_core::{Coordinator, CoordinatorConfig, Input, Record};
use volley_link::{ClusterCa, Endpoint, LinkConfig, LinkRuntime, Listener, Role, close_code};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, PeerId};
use volley_runtime::cluster_file::ClusterFile;
use volley_runtime::conversation;
use volley_runtime::greeting::link_fault;
use volley_runtime::mailbox::Mailbox;
use volley_runtime::process::Lifelines;
use volley_runtime::store::{META_LISTEN, PayloadKey, SqliteStore, Store};

use crate::committer::Committer;
use crate::data_dir::DataDir;
use crate::driver::{Driver, DriverArguments, DriverMessage};
use crate::outbound::Outbound;
use crate::provisioner::ProcessProvisioner;
use crate::relay::{Relay, RelayRequest};

/// Peers that are there learn of the end within a round trip; one that is not is not waited for.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);

pub use crate::provisioner::{Provisioner, WorkerTemplate};
pub use volley_coordinator_core::ScalingConfig;

/// What a coordinator is started with.
#[derive(Debug)]
pub struct CoordinatorOptions {
    /// Everything that outlives the process.
    pub data_dir: PathBuf,
    /// Where to listen. `None`: where the last life listened, or any free port of loopback.
    pub listen: Option<SocketAddr>,
    /// Name of the cluster, used when the data directory is new.
    pub cluster: String,
    /// How many workers, and when.
    pub scaling: ScalingConfig,
    /// How to start them.
    pub workers: WorkerTemplate,
    /// Lifelines of the launchers above, handed on to workers.
    pub launchers: Lifelines,
    /// Resolves when the process is asked to end.
    pub stop: oneshot::Receiver<()>,
}

/// Serves until it is asked to end.
///
/// # Errors
/// `DATA_DIR_LOCKED`, `ADDRESS_IN_USE`, `STORE_FAILED`, or what the identity files lack.
pub async fn run(options: CoordinatorOptions) -> Result<(), Fault> {
    let Prepared {
        directory,
        ca,
        store,
        epoch,
        core,
        listener,
    } = prepare(&options)?;
    let address = listener.local_addr();
    let cluster = ca.cluster_id().to_owned();

    // Threads and actors know the driver before it exists: what they say until then is kept.
    let mailbox = Mailbox::default();
    let outbound = Outbound::default();
    let relay = Relay::start(
        &directory.results(),
        epoch,
        outbound.clone(),
        tell(&mailbox),
        fail(&mailbox),
    )?;
    let (store, to_relay) = (Box::new(store), relay.clone());
    let durable = move |job, rollouts| to_relay.ask(RelayRequest::Durable { job, rollouts });
    let committer = Committer::start(store, outbound.clone(), durable, fail(&mailbox))
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("committer: {error}")))?;
    let to_core = Arc::new(tell(&mailbox));
    let provisioner =
        ProcessProvisioner::new(options.workers, address, ca, options.launchers, to_core);

    let (on_exit, exited) = oneshot::channel();
    let arguments = DriverArguments {
        core,
        mailbox,
        outbound,
        committer,
        relay,
        provisioner: Box::new(provisioner),
        on_exit,
    };
    let failed = |error| format!("the driver did not start: {error}");
    let (driver, _) = Actor::spawn(None, Driver, arguments)
        .await
        .map_err(|error| Fault::new(ErrorCode::Internal, failed(error)))?;
    let peer = PeerId(rand::random());
    let (stop_accepting, closing) = oneshot::channel::<()>();
    let accepting = listen::accept(listener, epoch, peer, driver.clone(), closing);
    let accepting = tokio::spawn(accepting);

    let identities = [Role::Client, Role::Monitor].map(|role| directory.identity_path(role));
    let file = ClusterFile::announce(directory.path(), &identities, address, &cluster)?;
    tracing::info!(%address, epoch = epoch.0, "coordinator ready");
    let stopping = driver.clone();
    tokio::spawn(async move {
        if options.stop.await.is_ok() {
            let _ = stopping.cast(DriverMessage::Shutdown);
        }
    });
    let outcome = exited.await.unwrap_or_else(|_| {
        Err(Fault::new(
            ErrorCode::Internal,
            "the coordinator's driver ended without a reason",
        ))
    });
    file.withdraw();
    drop(stop_accepting);
    if let Ok(listener) = accepting.await {
        say_farewell(&listener).await;
    }
    outcome
}

/// Sessions were closed, each with its reason; here their last packets leave.
async fn say_farewell(listener: &Listener) {
    let closed = listener.close(close_code::NORMAL, "the coordinator has ended");
    if timeout(FAREWELL_WITHIN, closed).await.is_err() {
        tracing::debug!("some peers did not answer the farewell");
    }
}

/// A callback that tells the driver that a file cannot be trusted any more.
fn fail(mailbox: &Mailbox<DriverMessage>) -> impl FnOnce(Fault) + Send + 'static {
    let mailbox = mailbox.clone();
    move |fault| mailbox.cast(DriverMessage::StoreFailed(fault))
}

/// What is there before anything moves.
struct Prepared {
    directory: DataDir,
    ca: ClusterCa,
    store: SqliteStore,
    epoch: Epoch,
    core: Coordinator,
    listener: Listener,
}

/// Locks the directory, reads everything back, opens the socket.
fn prepare(options: &CoordinatorOptions) -> Result<Prepared, Fault> {
    let directory = DataDir::open(&options.data_dir)?;
    let ca = directory.authority(&options.cluster)?;
    directory.hand_out(&ca)?;
    let mut store = SqliteStore::open(&directory.store())?;
    let (epoch, records) = remember(&mut store)?;
    orphans::collect(&directory.results(), &records, SystemTime::now())?;

    let link = LinkRuntime::start().map_err(|error| link_fault(&error))?;
    let identity = ca
        .issue(Role::Coordinator, "coordinator")
        .map_err(|e| link_fault(&e))?;
    let config = LinkConfig {
        reset_key: Some(directory.reset_key()?),
        ..conversation::link_config()
    };
    let address = match options.listen {
        Some(address) => address,
        None => last_address(&mut store)?,
    };
    let listener =
        Endpoint::listen(&link, address, &identity, config).map_err(|error| link_fault(&error))?;
    store.meta_set(META_LISTEN, &listener.local_addr().to_string())?;

    let core_config = CoordinatorConfig {
        cluster: ca.cluster_id().to_owned(),
        pid: std::process::id(),
        scaling: options.scaling.clone(),
        ..CoordinatorConfig::default()
    };
    let core = Coordinator::restore(core_config, epoch, records);
    Ok(Prepared {
        directory,
        ca,
        store,
        epoch,
        core,
        listener,
    })
}

/// The address of the last life: a restart is found where it was.
fn last_address(store: &mut SqliteStore) -> Result<SocketAddr, Fault> {
    let last = store
        .meta_get(META_LISTEN)?
        .and_then(|text| text.parse().ok());
    Ok(last.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))))
}

/// Everything earlier lives recorded, and the epoch of this one, synced.
fn remember(store: &mut SqliteStore) -> Result<(Epoch, Vec<Record>), Fault> {
    let mut records = Vec::new();
    let mut kept = store.load_payloads()?;
    for text in store.load()? {
        let mut record = serde_json::from_str(&text).map_err(|error| {
            let message = format!("a record of the store is damaged: {error}: {text}");
            Fault::new(ErrorCode::StoreFailed, message)
        })?;
        if let Record::Put {
            job,
            start,
            payloads,
            ..
        } = &mut record
        {
            let (job, start) = (*job, *start);
            *payloads = kept.remove(&PayloadKey { job, start });
        }
        records.push(record);
    }
    let last = records.iter().filter_map(|record| match record {
        Record::Epoch(epoch) => Some(epoch.0),
        _ => None,
    });
    let epoch = Epoch(last.max().unwrap_or(0) + 1);
    let text = serde_json::to_string(&Record::Epoch(epoch))
        .map_err(|error| Fault::new(ErrorCode::Internal, error.to_string()))?;
    store.append(&[text])?;
    Ok((epoch, records))
}

/// The wall clock at the process's start, so that recorded moments mean something to people.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis() as u64
}

/// A callback that tells the core something.
fn tell(mailbox: &Mailbox<DriverMessage>) -> impl Fn(Input) + Send + Sync + 'static {
    let mailbox = mailbox.clone();
    move |input| mailbox.cast(DriverMessage::Input(input, None))
}
