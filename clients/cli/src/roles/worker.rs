//! `volley worker`: holds a warm policy and plays episodes.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use volley_engine::config::Compute;
use volley_link::Role;
use volley_protocol::Fault;
use volley_protocol::fault::ErrorCode;
use volley_runtime::cache_dir;
use volley_runtime::cluster_file::ClusterFile;
use volley_runtime::host_adapters::HostAdapters;
use volley_runtime::process::Handoff;
use volley_worker::{PolicySource, WorkerOptions};

use super::serve;

/// Holds a warm policy and plays episodes.
#[derive(Args, Clone, Debug)]
pub(crate) struct WorkerArgs {
    /// Where the coordinator listens. Default: as --cluster says.
    #[arg(long, value_name = "ADDR")]
    pub(crate) coordinator: Option<SocketAddr>,
    /// The coordinator's data directory: its address and this worker's certificate are there.
    #[arg(long, value_name = "DIR")]
    pub(crate) cluster: Option<PathBuf>,
    /// Certificate and key of this worker.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Model folder (Hugging Face layout).
    #[arg(long, value_name = "DIR", required_unless_present = "scripted")]
    pub(crate) model: Option<PathBuf>,
    /// Play the same words every time, without a model.
    #[arg(long, conflicts_with = "model")]
    pub(crate) scripted: bool,
    /// Name for people.
    #[arg(long, value_name = "NAME", default_value = "worker")]
    pub(crate) name: String,
    /// Concurrent episodes.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) slots: u32,
    /// Threads of the policy.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::threads)]
    pub(crate) threads: usize,
    /// Number format of the matrix products: f32 or bf16.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = crate::compute)]
    pub(crate) compute: Compute,
    /// Request of the autoscaler that this process answers.
    #[arg(long, hide = true, default_value_t = 0)]
    pub(crate) provision: u64,
}

/// Plays until drained.
pub(crate) fn run(args: WorkerArgs, mut handoff: Handoff) -> Result<(), Fault> {
    volley_env::quiet_guarded_panics();
    serve::start_log()?;
    serve::block_on(async {
        let (file, cluster) = (args.identity.as_deref(), args.cluster.as_deref());
        let identity = serve::identity(&mut handoff, file, cluster, Role::Worker)?;
        let policy = match args.model {
            Some(directory) => PolicySource::Model {
                directory,
                threads: args.threads,
                compute: args.compute,
                cache: cache_dir::packed_weights(),
            },
            None => PolicySource::Scripted,
        };
        let options = WorkerOptions {
            coordinator: address(args.coordinator, cluster)?,
            identity,
            name: args.name,
            policy,
            slots: args.slots,
            provision: args.provision,
            adapters: HostAdapters::from_environment(),
            drain: serve::when_asked_to_end(handoff.lifelines())?,
        };
        volley_worker::run(options).await.map(drop)
    })
}

/// Where the coordinator is: as told, or as its data directory says.
pub(super) fn address(
    told: Option<SocketAddr>,
    cluster: Option<&std::path::Path>,
) -> Result<SocketAddr, Fault> {
    match (told, cluster) {
        (Some(addr), _) => Ok(addr),
        (None, Some(directory)) => Ok(ClusterFile::read(directory)?.address),
        (None, None) => {
            let fault = Fault::new(
                ErrorCode::CoordinatorUnreachable,
                "no coordinator was named",
            );
            Err(fault.with_hint("name its data directory with --cluster"))
        }
    }
}
