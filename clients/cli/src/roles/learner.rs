//! `volley learner`: trains one run and publishes its adapters.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use volley_learner::{Caches, LearnerOptions};
use volley_link::Role;
use volley_protocol::Fault;
use volley_protocol::run::RunState;
use volley_runtime::cache_dir;
use volley_runtime::host_adapters::HostAdapters;
use volley_runtime::process::Handoff;

use super::serve;
use super::worker::address;

/// Trains one run and publishes its adapters.
#[derive(Args, Clone, Debug)]
pub(crate) struct LearnerArgs {
    /// The run's directory; its recipe.toml says what to do, earlier steps are continued.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// Where the coordinator listens. Default: as --cluster says.
    #[arg(long, value_name = "ADDR")]
    pub(crate) coordinator: Option<SocketAddr>,
    /// The coordinator's data directory: its address and this learner's certificate are there.
    #[arg(long, value_name = "DIR")]
    pub(crate) cluster: Option<PathBuf>,
    /// Certificate and key of this learner.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Address at which workers reach this learner.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) listen: IpAddr,
}

/// Trains until the run is finished and the process is asked to end.
pub(crate) fn run(args: LearnerArgs, mut handoff: Handoff) -> Result<(), Fault> {
    serve::start_log()?;
    serve::block_on(async {
        let (file, cluster) = (args.identity.as_deref(), args.cluster.as_deref());
        let options = LearnerOptions {
            identity: serve::identity(&mut handoff, file, cluster, Role::Learner)?,
            coordinator: address(args.coordinator, cluster)?,
            listen: SocketAddr::new(args.listen, 0),
            run_dir: args.run_dir,
            caches: Caches {
                packed: cache_dir::packed_weights(),
                adapters: HostAdapters::from_environment(),
            },
            stop: serve::when_asked_to_end(handoff.lifelines())?,
        };
        match volley_learner::run(options).await? {
            RunState::Failed(fault) => Err(fault),
            RunState::Training | RunState::Finished | RunState::Stopped => Ok(()),
        }
    })
}
