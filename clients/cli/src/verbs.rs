//! One file for each verb; here they are told apart and the asynchronous ones get a runtime.

pub(crate) mod adapter;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod job;
pub(crate) mod journal;
mod lines;
pub(crate) mod map;
pub(crate) mod policy;
pub(crate) mod put;
mod record;
mod retry;
pub(crate) mod run;
mod work;

use std::sync::{Mutex, PoisonError};

use volley_client::{Client, ClientOptions};
use volley_protocol::{ErrorCode, Fault, JobId};
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
        Verb::Map(args) => block_on(async |end| map::run(args, output, end).await),
        Verb::Put(args) => block_on(async |end| put::run(args, output, end).await),
        Verb::Job(verb) => block_on(async |end| job::run(verb, output, end).await),
        Verb::Run(verb) => block_on(async |_| self::run::run(verb, output).await),
        Verb::Adapter(verb) => block_on(async |_| adapter::run(verb, output).await),
        Verb::Monitor(args) => block_on(async |_| monitor::run(args, output).await),
        Verb::Doctor(args) => doctor::run(&args, output),
        Verb::Explain(args) => explain::run(&args, output),
        Verb::Completions(args) => completions::run(&args, output),
        Verb::Bench(verb) => bench::run(verb, output, &handoff),
        Verb::Policy(verb) => policy::run(verb, output),
        Verb::Journal(verb) => journal::run(&verb, output),
    }
}

/// Runs a verb on a runtime of its own, until Ctrl-C.
fn block_on(verb: impl AsyncFnOnce(&Interruption) -> Result<(), Stop>) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("no runtime: {error}")))?;
    let interruption = Interruption::default();
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            outcome = verb(&interruption) => outcome,
            () = interrupted() => Err(interruption.told().into()),
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

/// What to say when Ctrl-C ends a verb.
#[derive(Debug, Default)]
pub(crate) struct Interruption(Mutex<Option<Fault>>);

impl Interruption {
    /// From here on the verb leaves this job behind.
    pub(crate) fn leaves(&self, job: JobId) {
        let message = format!("interrupted; job {job} goes on");
        let hint = format!("volley job results {job} --follow; or: volley job cancel {job}");
        let fault = Fault::new(ErrorCode::Interrupted, message).with_hint(hint);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    fn told(&self) -> Fault {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        left.unwrap_or_else(|| Fault::new(ErrorCode::Interrupted, "interrupted"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_interrupts_learns_how_to_come_back() {
        let interruption = Interruption::default();
        assert_eq!(interruption.told().hint, "");
        interruption.leaves(JobId(0xab));
        let fault = interruption.told();
        assert_eq!(fault.code.exit_status(), 130);
        assert!(fault.hint.contains("--follow") && fault.hint.contains("cancel"));
    }
}
