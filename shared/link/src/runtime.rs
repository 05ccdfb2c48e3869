//! The network's own thread.
//!
//! Every QUIC driver, timer and keep-alive runs here, on a runtime nobody else uses: an engine that
//! saturates all other threads still answers its peers, and therefore never looks dead.

use std::{fmt, future::Future, sync::Arc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinHandle,
};

use crate::error::LinkError;

/// After the last user is gone, close messages have this long to leave.
const FAREWELL: Duration = Duration::from_millis(50);

/// A handle to the network thread; cheap to clone. The thread ends after the last handle,
/// endpoint and session are gone.
#[derive(Clone)]
pub struct LinkRuntime(Arc<Shared>);

struct Shared {
    handle: Handle,
    /// Dropping it ends the thread.
    _alive: oneshot::Sender<()>,
}

impl LinkRuntime {
    /// Starts a network thread. One per process is enough.
    pub fn start() -> Result<Self, LinkError> {
        let failed = |error: std::io::Error| LinkError::Runtime {
            detail: format!("could not be started: {error}"),
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, gone) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("volley-link".into())
            .spawn(move || {
                runtime.block_on(async {
                    // Nothing is ever sent: the error is the signal.
                    let _ = gone.await;
                    tokio::time::sleep(FAREWELL).await;
                });
            })
            .map_err(failed)?;
        Ok(Self(Arc::new(Shared {
            handle,
            _alive: alive,
        })))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.0.handle.spawn(task)
    }

    /// Runs `task` on the network thread and waits for it; dropping the future cancels it.
    pub(crate) async fn run<T, F>(&self, task: F) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LinkError>> + Send + 'static,
    {
        let mut task = CancelOnDrop(self.spawn(task));
        (&mut task.0).await.unwrap_or_else(|error| {
            Err(LinkError::Runtime {
                detail: format!("lost a task: {error}"),
            })
        })
    }
}

struct CancelOnDrop<T>(JoinHandle<T>);

impl<T> Drop for CancelOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for LinkRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkRuntime")
    }
}
