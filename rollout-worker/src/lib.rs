//! The rollout worker: a warm policy, slots, episodes, delivery to sinks.
//!
//! ```text
//!  coordinator_link ─┐                      ┌─▶ policy thread: weights, adapters, KV caches
//!  sink_link ────────┼─▶ driver ◀▶ core ────┤     (episodes call their environments)
//!  policy reports ───┘                      └─▶ frames, batches of trajectories
//! ```
//!
//! [`core`] decides; everything else does.

mod adapter_bytes;
mod coordinator_link;
pub mod core;
mod dials;
mod driver;
mod episode;
mod fetching;
mod policy;
mod sink_link;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use ractor::Actor;
use tokio::sync::oneshot;
use volley_engine::EngineError;
use volley_engine::config::Compute;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::{LoadOptions, Model};
use volley_engine::packed::PackedCache;
use volley_engine::text::{ChatTemplate, Tokenizer, stop_tokens};
use volley_link::{Endpoint, Identity, LinkRuntime};
use volley_protocol::Digest;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::PeerId;
use volley_protocol::version::{Hello, PROTOCOL_VERSION};
use volley_runtime::conversation;
use volley_runtime::greeting::link_fault;
use volley_runtime::host_adapters::HostAdapters;
use volley_runtime::vital::Vital;

use crate::core::{Config, ExitReason, Worker};
use crate::driver::{Driver, DriverArguments, DriverMessage};
use crate::episode::Player;
use crate::policy::engine::{EnginePolicy, WarmPolicy};
pub use crate::policy::shelf::ADAPTER_READER_NICENESS;
use crate::policy::{PolicyCounters, PolicyEvent, PolicyHandle, scripted};
use crate::sink_link::Dialler;

/// Who answers the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySource {
    /// The model in that directory, with this many threads.
    Model {
        /// An ordinary Hugging Face folder.
        directory: PathBuf,
        /// Threads of the policy's arithmetic.
        threads: usize,
        /// Number format of its matrix products.
        compute: Compute,
        /// Where processes share packed weights.
        cache: Option<PathBuf>,
    },
    /// The same words every time, without a model.
    Scripted,
}

/// What a worker is started with.
#[derive(Debug)]
pub struct WorkerOptions {
    /// Where the coordinator listens.
    pub coordinator: SocketAddr,
    /// Certificate and key of a worker.
    pub identity: Identity,
    /// For people.
    pub name: String,
    /// Who plays.
    pub policy: PolicySource,
    /// Concurrent episodes.
    pub slots: u32,
    /// Which request of the autoscaler this process answers; 0 when a person started it.
    pub provision: u64,
    /// Adapters that processes of this host share.
    pub adapters: Option<HostAdapters>,
    /// Resolves when the process is asked to end; finish, deliver, leave.
    pub drain: oneshot::Receiver<()>,
}

/// Loads the policy once and plays until the coordinator, the caller or solitude ends it.
///
/// # Errors
/// When the model cannot be loaded or the network cannot be opened; nothing was leased then.
pub async fn run(options: WorkerOptions) -> Result<ExitReason, Fault> {
    let peer = PeerId(rand::random());
    let (commands, inbox) = mpsc::channel();
    let counters = Arc::new(PolicyCounters::default());
    let (reports, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let loaded = load(options.policy, peer, inbox, Arc::clone(&counters), reports).await?;

    let mut config = Config::new(options.slots, loaded.numerics, loaded.base);
    config.provision = options.provision;
    config.validate()?;
    let link = LinkRuntime::start().map_err(|error| link_fault(&error))?;
    let endpoint = Endpoint::client(&link, &options.identity, conversation::link_config())
        .map_err(|error| link_fault(&error))?;
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        peer,
        name: options.name,
        pid: std::process::id(),
    };

    let (on_exit, exited) = oneshot::channel();
    let arguments = DriverArguments {
        core: Worker::new(config),
        policy: PolicyHandle::new(commands, counters),
        dialler: Dialler {
            endpoint: endpoint.clone(),
            hello: hello.clone(),
        },
        host_adapters: options.adapters,
        on_exit,
    };
    let (driver, _) = Actor::spawn(None, Driver, arguments)
        .await
        .map_err(|error| {
            Fault::new(
                ErrorCode::Internal,
                format!("the worker's driver did not start: {error}"),
            )
        })?;
    let to_driver = driver.clone();
    tokio::spawn(async move {
        while let Some(event) = heard.recv().await {
            if to_driver.cast(DriverMessage::Policy(event)).is_err() {
                return;
            }
        }
    });
    let to_driver = driver.clone();
    let drain = options.drain;
    tokio::spawn(async move {
        if drain.await.is_ok() {
            let _ = to_driver.cast(DriverMessage::Input(crate::core::Input::DrainSignal, None));
        }
    });
    tokio::spawn(coordinator_link::keep(
        endpoint.clone(),
        options.coordinator,
        hello,
        driver,
    ));
    let reason = exited.await.map_err(|_| {
        Fault::new(
            ErrorCode::Internal,
            "the worker's driver ended without a reason",
        )
    })?;
    tracing::info!(reason = driver::describe(reason), "worker ends");
    endpoint.close(0, driver::describe(reason)).await;
    Ok(reason)
}

struct Loaded {
    numerics: String,
    base: Digest,
}

/// Loads the policy on its own thread, which then plays until it is told to stop.
async fn load(
    source: PolicySource,
    worker: PeerId,
    inbox: mpsc::Receiver<policy::PolicyCommand>,
    counters: Arc<PolicyCounters>,
    reports: tokio::sync::mpsc::UnboundedSender<PolicyEvent>,
) -> Result<Loaded, Fault> {
    // The core never has more than slots + prefetch episodes open, which bounds this channel.
    let report: policy::Report = Arc::new(move |event| drop(reports.send(event)));
    let (ready, loaded) = oneshot::channel();
    let play = move || {
        let _vital = Vital("policy");
        match source {
            PolicySource::Scripted => {
                let numerics = "scripted".to_owned();
                let player = Player {
                    worker,
                    numerics: numerics.clone(),
                };
                let _ = ready.send(Ok(Loaded {
                    numerics,
                    base: Digest::default(),
                }));
                scripted::run(&inbox, &player, &report);
            }
            PolicySource::Model {
                directory,
                threads,
                compute,
                cache,
            } => match warm(&directory, threads, compute, cache) {
                Err(error) => drop(ready.send(Err(Fault::from(&error)))),
                Ok(warm) => {
                    let numerics = compute.numerics_class().to_owned();
                    let base = Digest(warm.model.digest());
                    let player = Player {
                        worker,
                        numerics: numerics.clone(),
                    };
                    match EnginePolicy::new(warm, player, counters, report) {
                        Err(fault) => drop(ready.send(Err(fault))),
                        Ok(policy) => {
                            let _ = ready.send(Ok(Loaded { numerics, base }));
                            policy.run(&inbox);
                        }
                    }
                }
            },
        }
    };
    std::thread::Builder::new()
        .name("policy".into())
        .spawn(play)
        .map_err(|error| {
            Fault::new(
                ErrorCode::Internal,
                format!("no thread for the policy: {error}"),
            )
        })?;
    loaded.await.unwrap_or_else(|_| {
        Err(Fault::new(
            ErrorCode::Internal,
            "the policy thread ended while it loaded",
        ))
    })
}

fn warm(
    directory: &std::path::Path,
    threads: usize,
    compute: Compute,
    cache: Option<PathBuf>,
) -> Result<WarmPolicy, EngineError> {
    let options = LoadOptions {
        compute,
        cache: cache.map(PackedCache::new),
        training: false,
    };
    let model = Model::load_with(directory, &options)?;
    for packing in model.packings() {
        if packing.is_trouble() {
            tracing::warn!("{packing}");
        } else {
            tracing::info!("{packing}");
        }
    }
    Ok(WarmPolicy {
        model: Arc::new(model),
        tokenizer: Tokenizer::load(directory)?,
        chat: ChatTemplate::load(directory)?,
        stop: stop_tokens(directory)?.into(),
        threads: Threads::new(threads),
    })
}
