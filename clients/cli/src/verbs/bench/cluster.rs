//! A cluster that exists for one measurement.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volley_client::Client;
use volley_protocol::JobId;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::{
    EnvSpec, JobKind, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef, Split,
};
use volley_protocol::snapshot::WorkerState;
use volley_runtime::process::{Handoff, RoleHandle};

use super::FanoutArgs;
use crate::roles::launch::{END_WITHIN, LocalCluster};

/// Workers that do not come within this time do not come.
const WORKERS_WITHIN: Duration = Duration::from_secs(60);

/// How often it is looked whether they are there.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A running cluster in a directory of its own.
pub(crate) struct BenchCluster {
    pub(crate) client: Client,
    coordinator: RoleHandle,
    directory: PathBuf,
}

impl BenchCluster {
    /// Starts a coordinator with up to `most` workers, `warm` of them at once.
    pub(crate) async fn start(
        args: &FanoutArgs,
        handoff: &Handoff,
        warm: u32,
        most: u32,
    ) -> Result<Self, Fault> {
        let directory = std::env::temp_dir().join(format!("volley-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| io_fault(&directory, &error))?;
        let cluster = LocalCluster {
            data_dir: directory.clone(),
            name: "bench".into(),
            listen: None,
            model: None,
            workers: most,
            min_workers: warm,
            keep_warm: 0,
            slots: args.k.clamp(1, 4096),
            threads: 1,
            compute: "f32",
            idle_window_ms: 60_000,
            logs: Some(directory.clone()),
        };
        let (coordinator, client) = cluster.start(handoff.lifelines()).await?;
        Ok(Self {
            client,
            coordinator,
            directory,
        })
    }

    /// The coordinator's data directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until so many workers are there; tells their pids.
    pub(crate) async fn workers(&self, count: u32) -> Result<Vec<u32>, Fault> {
        let begun = Instant::now();
        loop {
            let snapshot = self.client.snapshot().await?;
            let up = snapshot
                .workers
                .iter()
                .filter(|w| w.state == WorkerState::Up);
            let pids: Vec<u32> = up.map(|worker| worker.pid).collect();
            if pids.len() >= count as usize {
                return Ok(pids);
            }
            if begun.elapsed() > WORKERS_WITHIN {
                let there = pids.len();
                let message = format!("{there} of {count} workers came in {WORKERS_WITHIN:?}");
                return Err(Fault::new(ErrorCode::RoleFailed, message));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends everything and removes the directory.
    pub(crate) async fn end(self) -> Result<(), Fault> {
        self.client.close().await;
        self.coordinator.stop(END_WITHIN).await?;
        std::fs::remove_dir_all(&self.directory).map_err(|error| io_fault(&self.directory, &error))
    }
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
}

/// Rollouts that cost nothing, each with a trajectory of `tokens`.
pub(crate) fn job(kind: JobKind, rollouts: u64, tokens: u32, sleep_ms: u64) -> JobSpec {
    let config = [
        ("script_tokens".to_owned(), tokens.to_string()),
        ("sleep_ms".to_owned(), sleep_ms.to_string()),
    ];
    JobSpec {
        job: JobId(rand::random()),
        name: "bench".into(),
        kind,
        env: EnvSpec {
            name: "noop".into(),
            split: Split::Eval,
            config: config.into(),
        },
        first_instance: 0,
        rollouts,
        group_size: 1,
        policy: PolicyRef::Base,
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 60_000,
        take: None,
        priority: 0,
    }
}
