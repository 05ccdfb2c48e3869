//! The learner's shell: intake segments, training step, checkpoints, adapters.
//!
//! ```text
//!  workers ══▶ sink ──▶ driver ◀▶ core          (volley-learner-core decides)
//!                         │  ├──▶ intake thread   accepted results, synced
//!                         │  └──▶ trainer thread  step ─▶ adapter ─▶ record, synced
//!  coordinator ◀────────▶ │
//!  workers ◀══ versions ◀─┘
//! ```

mod coordinator_link;
mod driver;
mod intake;
pub mod journal;
mod records;
mod reference;
mod restore;
mod sink;
mod step;
mod trainer;
mod transcripts;
mod versions;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ractor::Actor;
use tokio::sync::oneshot;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::{LoadOptions, Model};
use volley_engine::packed::PackedCache;
use volley_learner_core::{Input, Learner};
use volley_link::{Endpoint, Identity, LinkRuntime, Listener};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::PeerId;
use volley_protocol::run::RunState;
use volley_protocol::version::{Hello, PROTOCOL_VERSION};
use volley_runtime::conversation;
use volley_runtime::greeting::link_fault;
use volley_runtime::host_adapters::HostAdapters;
use volley_runtime::lock::DirLock;
use volley_runtime::mailbox::Mailbox;
use volley_runtime::recipe::Recipe;
use volley_runtime::run_dir::RunDir;

pub use crate::reference::load_reference;

use crate::driver::{Driver, DriverArguments, DriverMessage};
use crate::intake::Intake;
use crate::restore::Restored;

/// What processes of a host share; `None` where they do not.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Packed weights of models.
    pub packed: Option<PathBuf>,
    /// Adapters.
    pub adapters: Option<HostAdapters>,
}

/// What a learner is started with.
#[derive(Debug)]
pub struct LearnerOptions {
    /// Certificate and key of a learner.
    pub identity: Identity,
    /// Where the coordinator listens.
    pub coordinator: SocketAddr,
    /// Where workers reach this learner; port 0 picks one.
    pub listen: SocketAddr,
    /// The run's directory, with its recipe.
    pub run_dir: PathBuf,
    /// What it shares with other processes of this host.
    pub caches: Caches,
    /// Resolves when the process is asked to end: finish the step, write a checkpoint, leave.
    pub stop: oneshot::Receiver<()>,
}

/// Trains until the process is asked to end, or the disk fails.
///
/// # Errors
/// What is wrong with the recipe, the model, the run directory or the network.
pub async fn run(options: LearnerOptions) -> Result<RunState, Fault> {
    let directory = RunDir::open(&options.run_dir)?;
    // Two learners in one directory would cut each other's files.
    let _lock = DirLock::acquire(directory.path())?;
    let (listener, endpoint) = open_network(&options)?;
    let sink_addr = listener.local_addr();
    let restored = restored(directory, options.caches.clone(), sink_addr).await?;
    let Restored {
        config,
        state,
        held,
        trainer,
        intake_dir,
        versions,
        limits,
    } = restored;
    let name = format!("learner {}", config.run.name);

    let mailbox = Mailbox::default();
    let disk_failed = |mailbox: &Mailbox<DriverMessage>| {
        let mailbox = mailbox.clone();
        move |fault| mailbox.cast(DriverMessage::DiskFailed(fault))
    };
    let intake = Intake::start(
        &intake_dir,
        tell(&mailbox, |upto| Input::Synced { upto }),
        disk_failed(&mailbox),
    )?;
    let trainer = trainer.start(tell(&mailbox, |input| input), disk_failed(&mailbox))?;
    let (on_exit, exited) = oneshot::channel();
    let arguments = DriverArguments {
        core: Learner::new(config, state)?,
        intake,
        trainer,
        versions: versions.clone(),
        held,
        on_exit,
    };
    let (driver, _) = Actor::spawn(None, Driver, arguments)
        .await
        .map_err(|error| internal(format!("the driver did not start: {error}")))?;
    mailbox.open(driver.clone());

    let peer = PeerId(rand::random());
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        peer,
        name,
        pid: std::process::id(),
    };
    tokio::spawn(sink::accept(
        listener,
        peer,
        versions,
        limits,
        driver.clone(),
    ));
    let keep = coordinator_link::keep(endpoint.clone(), options.coordinator, hello, driver);
    tokio::spawn(keep);
    let stop = options.stop;
    tokio::spawn(async move {
        if stop.await.is_ok() {
            mailbox.cast(DriverMessage::Input(Input::Stop, None));
        }
    });
    let outcome = exited
        .await
        .map_err(|_| internal("the learner's driver ended without a reason"))?;
    endpoint.close(0, "the learner ends").await;
    outcome
}

/// Loads and replays, which computes: the runtime's threads are for the network.
async fn restored(
    directory: RunDir,
    caches: Caches,
    sink_addr: SocketAddr,
) -> Result<Restored, Fault> {
    tokio::task::spawn_blocking(move || restore::restore(&directory, caches, sink_addr))
        .await
        .map_err(|error| internal(format!("restoring failed: {error}")))?
}

/// The sink's socket, and one to dial the coordinator with.
fn open_network(options: &LearnerOptions) -> Result<(Listener, Endpoint), Fault> {
    let link = LinkRuntime::start().map_err(|error| link_fault(&error))?;
    let (identity, config) = (&options.identity, conversation::link_config());
    let listener = Endpoint::listen(&link, options.listen, identity, config.clone())
        .map_err(|error| link_fault(&error))?;
    let endpoint = Endpoint::client(&link, identity, config).map_err(|error| link_fault(&error))?;
    Ok((listener, endpoint))
}

/// A callback that tells the core something.
fn tell<T>(
    mailbox: &Mailbox<DriverMessage>,
    input: impl Fn(T) -> Input + Send + 'static,
) -> impl Fn(T) + Send + 'static {
    let mailbox = mailbox.clone();
    move |what| mailbox.cast(DriverMessage::Input(input(what), None))
}

fn internal(message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::Internal, message)
}

/// Loads the base model of a run.
fn load_model(recipe: &Recipe, cache: Option<PathBuf>) -> Result<Arc<Model>, Fault> {
    let options = LoadOptions {
        compute: restore::compute(recipe),
        cache: cache.map(PackedCache::new),
        training: true,
    };
    let model = Model::load_with(&recipe.model, &options).map_err(|error| Fault::from(&error))?;
    for packing in model.packings() {
        if packing.is_trouble() {
            tracing::warn!("{packing}");
        } else {
            tracing::info!("{packing}");
        }
    }
    Ok(Arc::new(model))
}

/// Threads of the learner's arithmetic.
fn threads(count: usize) -> Threads {
    Threads::new(count)
}
