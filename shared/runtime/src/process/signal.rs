//! SIGTERM and SIGINT as futures.

use tokio::signal::unix::{Signal, SignalKind, signal};
use volley_protocol::{ErrorCode, Fault};

/// Which signal asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGINT: a person pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: a supervisor or the system.
    Terminate,
}

/// Both signals, caught from construction on: a second Ctrl-C is seen as well.
#[derive(Debug)]
pub struct ShutdownSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl ShutdownSignals {
    /// Catches both signals. Needs a tokio runtime.
    ///
    /// # Errors
    /// `INTERNAL` when the system refuses a handler.
    pub fn install() -> Result<Self, Fault> {
        let catch = |kind| {
            signal(kind).map_err(|error| {
                let message = format!("cannot catch signals: {error}");
                Fault::new(ErrorCode::Internal, message)
            })
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// The next signal. Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Shutdown {
        tokio::select! {
            _ = self.interrupt.recv() => Shutdown::Interrupt,
            _ = self.terminate.recv() => Shutdown::Terminate,
        }
    }
}

/// The first signal, for a shell that needs no second.
///
/// # Errors
/// `INTERNAL` when the system refuses a handler.
pub async fn shutdown_signal() -> Result<Shutdown, Fault> {
    Ok(ShutdownSignals::install()?.recv().await)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::process::{Child, ChildLog};
    use crate::test_support::{role, wait_until};

    #[tokio::test]
    async fn both_signals_are_told_apart_and_none_is_lost() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("role.log");
        let spec = role("hear-two-signals").log(ChildLog::File(log.clone()));
        let mut child = Child::spawn(spec).expect("spawn");
        let heard = |what: &str| {
            wait_until(|| fs::read_to_string(&log).ok()?.contains(what).then_some(()));
        };
        heard("ready");
        let pid = i32::try_from(child.pid()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("kill");
        heard("Interrupt");
        child.terminate();
        heard("Terminate");
        assert!(child.wait().await.expect("wait").success());
    }
}
