//! `volley coordinator`: keeps jobs, leases and the roster; starts and stops workers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use volley_coordinator::{CoordinatorOptions, WorkerTemplate};
use volley_engine::config::Compute;
use volley_protocol::Fault;
use volley_runtime::process::Handoff;

use super::{duration, serve};

/// Keeps jobs, leases and the roster; starts and stops workers on this machine.
#[derive(Args, Clone, Debug)]
pub(crate) struct CoordinatorArgs {
    /// Directory for everything that outlives the process.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Address to listen on. Default: where it listened last, or a free port of this machine.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Name of the cluster; settled when the data directory is new.
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub(crate) cluster: String,
    /// Model for the workers it starts; without one they play a scripted policy.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Never fewer workers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_workers: u32,
    /// Never more workers.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) max_workers: u32,
    /// Workers kept while a training run is connected.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) keep_warm: u32,
    /// Concurrent episodes of each worker.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) slots: u32,
    /// Threads of each worker's policy.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::threads)]
    pub(crate) threads: usize,
    /// Number format of the workers' matrix products: f32 or bf16.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = crate::compute)]
    pub(crate) compute: Compute,
    /// Workers that were not needed for this long are removed.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    pub(crate) idle_window: Duration,
    /// Directory for the workers' logs. Default: this process's standard error.
    #[arg(long, value_name = "DIR")]
    pub(crate) logs: Option<PathBuf>,
}

/// Serves until asked to end.
pub(crate) fn run(args: CoordinatorArgs, handoff: &Handoff) -> Result<(), Fault> {
    serve::start_log()?;
    serve::block_on(async {
        let mut scaling = volley_coordinator::ScalingConfig::default();
        scaling.min_workers = args.min_workers;
        scaling.max_workers = args.max_workers.max(args.min_workers);
        scaling.keep_warm = args.keep_warm.min(scaling.max_workers);
        scaling.slots_per_worker = args.slots;
        scaling.idle_window_ms = args.idle_window.as_millis() as u64;
        let launchers = handoff.lifelines().clone();
        let options = CoordinatorOptions {
            data_dir: args.data_dir,
            listen: args.listen,
            cluster: args.cluster,
            scaling,
            workers: WorkerTemplate {
                model: args.model,
                slots: args.slots,
                threads: args.threads,
                compute: args.compute.name().to_owned(),
                logs: args.logs,
            },
            stop: serve::when_asked_to_end(&launchers)?,
            launchers,
        };
        volley_coordinator::run(options).await
    })
}
