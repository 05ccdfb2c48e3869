//! What every role process does around its work: take what the launcher handed over, watch for
//! signals and for the launcher's death, end in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use volley_link::{Identity, Role};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::greeting::link_fault;
use volley_runtime::process::{Handoff, Lifelines, ShutdownSignals};
use volley_runtime::telemetry::{self, LogOutput};

/// A process that still lives this long after its launcher's death ends itself.
const OUTLIVE_LAUNCHER: Duration = Duration::from_secs(30);

/// What a role logs unless `VOLLEY_LOG` says otherwise: QUIC's own chatter only when it matters.
const LOG_FILTER: &str = "info,quinn=warn,quinn_proto=warn,rustls=warn,ractor=warn";

/// Starts the log of a role: standard error, which its launcher leads to a file.
pub(crate) fn start_log() -> Result<(), Fault> {
    telemetry::init(LOG_FILTER, &LogOutput::Stderr)
}

/// Runs async work on a runtime of its own. Roles compute on threads of their own; two threads
/// are enough for what is left.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    // Blocking threads that still wait for something must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Resolves when a signal asks this process to end, or its launcher is gone.
pub(crate) fn when_asked_to_end(launchers: &Lifelines) -> Result<oneshot::Receiver<()>, Fault> {
    let mut signals = ShutdownSignals::install()?;
    let mut gone = launchers.watch(Some(OUTLIVE_LAUNCHER))?;
    let (ask, asked) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            signal = signals.recv() => tracing::info!(?signal, "asked to end"),
            () = gone.wait() => tracing::warn!("the launcher is gone"),
        }
        // The role may have ended by itself.
        let _ = ask.send(());
    });
    Ok(asked)
}

/// The identity of this process: handed over by its launcher, or read from a file.
pub(crate) fn identity(
    handoff: &mut Handoff,
    file: Option<&Path>,
    cluster: Option<&Path>,
    role: Role,
) -> Result<Identity, Fault> {
    if let Some(bytes) = handoff.take_identity() {
        return Identity::from_bytes(&bytes).map_err(|error| link_fault(&error));
    }
    let file: PathBuf = match (file, cluster) {
        (Some(file), _) => file.to_owned(),
        (None, Some(cluster)) => cluster.join("identities").join(format!("{role}.identity")),
        (None, None) => {
            let fault = Fault::new(
                ErrorCode::IdentityInvalid,
                format!("a {role} needs a certificate of its cluster"),
            );
            return Err(fault.with_hint(
                "name the coordinator's data directory with --cluster, or a file with --identity",
            ));
        }
    };
    Identity::load(&file).map_err(|error| link_fault(&error))
}
