//! Starts role processes of a cluster on this machine and keeps them alive.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volley_client::{Client, ClientOptions, ClusterAddress};
use volley_link::{Identity, Role};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::cluster_file::ClusterFile;
use volley_runtime::greeting::link_fault;
use volley_runtime::process::{
    ChildLog, ChildSpec, Lifelines, RestartBudget, RoleHandle, supervise,
};

/// A coordinator that has not announced itself after this long will not any more.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How often its announcement is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A role that was asked to end gets this long; a learner finishes its step meanwhile.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(30);

/// What the coordinator of a local cluster is started with.
#[derive(Clone, Debug)]
pub(crate) struct LocalCluster {
    pub(crate) data_dir: PathBuf,
    pub(crate) name: String,
    pub(crate) listen: Option<std::net::SocketAddr>,
    pub(crate) model: Option<PathBuf>,
    pub(crate) workers: u32,
    /// Workers that are there even when there is nothing to do.
    pub(crate) min_workers: u32,
    pub(crate) keep_warm: u32,
    pub(crate) slots: u32,
    pub(crate) threads: usize,
    /// Number format of the workers' matrix products.
    pub(crate) compute: &'static str,
    pub(crate) idle_window_ms: u64,
    /// Directory for logs; `None` is standard error.
    pub(crate) logs: Option<PathBuf>,
}

impl LocalCluster {
    /// Starts the coordinator and waits until it answers.
    pub(crate) async fn start(&self, launchers: &Lifelines) -> Result<(RoleHandle, Client), Fault> {
        let announced_before = ClusterFile::read(&self.data_dir)
            .ok()
            .map(|file| life(&file));
        let (this, lifelines) = (self.clone(), Lifelines::own()?.and(launchers));
        let make = move || this.coordinator(&lifelines);
        let mut role = supervise(make, RestartBudget::default())?;
        let client = tokio::select! {
            ended = role.ended() => {
                let unexpected = Fault::new(ErrorCode::RoleFailed, "the coordinator ended at once");
                return Err(ended.err().unwrap_or(unexpected));
            }
            client = self.connect(announced_before) => client?,
        };
        Ok((role, client))
    }

    fn coordinator(&self, lifelines: &Lifelines) -> Result<ChildSpec, Fault> {
        let mut args: Vec<OsString> = vec![
            "coordinator".into(),
            "--data-dir".into(),
            self.data_dir.clone().into(),
            format!("--cluster={}", self.name).into(),
            format!("--max-workers={}", self.workers).into(),
            format!("--min-workers={}", self.min_workers).into(),
            format!("--keep-warm={}", self.keep_warm).into(),
            format!("--slots={}", self.slots).into(),
            format!("--threads={}", self.threads).into(),
            format!("--compute={}", self.compute).into(),
            format!("--idle-window={}ms", self.idle_window_ms).into(),
        ];
        if let Some(listen) = self.listen {
            args.push(format!("--listen={listen}").into());
        }
        if let Some(model) = &self.model {
            args.extend(["--model".into(), model.clone().into()]);
        }
        if let Some(logs) = &self.logs {
            args.extend(["--logs".into(), logs.clone().into()]);
        }
        let spec = ChildSpec::role("coordinator", args)?;
        Ok(spec
            .lifelines(lifelines.clone())
            .log(self.log("coordinator")))
    }

    /// A learner on this cluster, kept alive.
    pub(crate) fn learner(
        &self,
        run_dir: &Path,
        launchers: &Lifelines,
    ) -> Result<RoleHandle, Fault> {
        let (this, run_dir) = (self.clone(), run_dir.to_owned());
        let lifelines = Lifelines::own()?.and(launchers);
        let make = move || {
            let path = identity_path(&this.data_dir, Role::Learner);
            let identity = Identity::load(&path).map_err(|error| link_fault(&error))?;
            let args: [OsString; 5] = [
                "learner".into(),
                "--run-dir".into(),
                run_dir.clone().into(),
                "--cluster".into(),
                this.data_dir.clone().into(),
            ];
            let spec = ChildSpec::role("learner", args)?;
            let spec = spec
                .identity(identity.to_bytes())
                .lifelines(lifelines.clone());
            Ok(spec.log(this.log("learner")))
        };
        supervise(make, RestartBudget::default())
    }

    fn log(&self, role: &str) -> ChildLog {
        let file = |logs: &PathBuf| ChildLog::File(logs.join(format!("{role}.log")));
        self.logs.as_ref().map_or(ChildLog::Inherit, file)
    }

    /// Waits for the announcement of the process that was just started, then for its welcome.
    async fn connect(&self, announced_before: Option<(u32, u64)>) -> Result<Client, Fault> {
        let late = tokio::time::Instant::now() + READY_WITHIN;
        let file = loop {
            match ClusterFile::read(&self.data_dir) {
                Ok(file) if Some(life(&file)) != announced_before => break file,
                _ if tokio::time::Instant::now() < late => tokio::time::sleep(LOOK_EVERY).await,
                _ => {
                    let waited = READY_WITHIN.as_secs();
                    let message = format!("the coordinator did not announce itself in {waited} s");
                    return Err(Fault::new(ErrorCode::CoordinatorUnreachable, message));
                }
            }
        };
        let path = identity_path(&self.data_dir, Role::Client);
        let identity = Identity::load(&path).map_err(|error| link_fault(&error))?;
        let address = ClusterAddress {
            addr: file.address,
            identity,
        };
        let options = ClientOptions {
            name: "volley launcher".into(),
            ..ClientOptions::default()
        };
        Client::connect_with(address, options).await
    }
}

/// What tells one life of a coordinator from the next: pids come again.
const fn life(file: &ClusterFile) -> (u32, u64) {
    (file.pid, file.started_unix_ms)
}

/// Where a cluster keeps the identity of a role.
pub(crate) fn identity_path(data_dir: &Path, role: Role) -> PathBuf {
    data_dir.join("identities").join(format!("{role}.identity"))
}
