//! One file for each verb; here they are told apart and the asynchronous ones get a runtime.

pub(crate) mod adapter;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod job;
pub(crate) mod map;
pub(crate) mod policy;
pub(crate) mod put;
mod record;
pub(crate) mod run;
mod work;

use volley_client::{Client, ClientOptions};
use volley_protocol::{ErrorCode, Fault};
use volley_runtime::process::Handoff;

use crate::address;
use crate::args::{ClusterArgs, Verb};
use crate::errors::Stop;
use crate::monitor;
use crate::output::Output;
use crate::roles;

/// Does what was asked.
pub(crate) fn run(verb: Verb, output: &Output, handoff: Handoff) -> Result<(), Stop> {
    match verb {
        Verb::Train(args) => Ok(roles::train::run(args, &handoff)?),
        Verb::Up(args) => Ok(roles::up::run(args, &handoff)?),
        Verb::Coordinator(args) => Ok(roles::coordinator::run(args, &handoff)?),
        Verb::Worker(args) => Ok(roles::worker::run(args, handoff)?),
        Verb::Learner(args) => Ok(roles::learner::run(args, handoff)?),
        Verb::Map(args) => block_on(map::run(args, output)),
        Verb::Put(args) => block_on(put::run(args, output)),
        Verb::Job(verb) => block_on(job::run(verb, output)),
        Verb::Run(verb) => block_on(self::run::run(verb, output)),
        Verb::Adapter(verb) => block_on(adapter::run(verb, output)),
        Verb::Monitor(args) => block_on(monitor::run(args, output)),
        Verb::Doctor(args) => doctor::run(&args, output),
        Verb::Explain(args) => explain::run(&args, output),
        Verb::Completions(args) => completions::run(&args, output),
        Verb::Policy(verb) => policy::run(verb, output),
    }
}

/// Runs a verb on a runtime of its own; Ctrl-C ends it unless it listens itself.
fn block_on(verb: impl Future<Output = Result<(), Stop>>) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            outcome = verb => outcome,
            () = interrupted() => Err(interruption("interrupted").into()),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// Resolves with Ctrl-C.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the signal itself ends the process.
        std::future::pending::<()>().await;
    }
}

/// The fault of a command that was interrupted.
fn interruption(message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::Interrupted, message)
}

/// Connects to the cluster that the flags name.
async fn connect(cluster: &ClusterArgs, name: &str) -> Result<Client, Fault> {
    let address = address::discover(cluster)?;
    let options = ClientOptions {
        name: name.to_owned(),
        ..ClientOptions::default()
    };
    Client::connect_with(address, options).await
}
