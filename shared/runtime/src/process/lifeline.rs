//! A pipe nobody writes to: its end of file is the death of the process that holds the other end.
//!
//! The write end lives in this process alone (close-on-exec, never handed over), the read end is
//! handed to every child. The kernel closes the write end however the process ends, SIGKILL
//! included, and there is no pid that could be reused in between.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use volley_protocol::{ErrorCode, Fault};

/// Exit status of a process that outlived its parent by more than it was allowed:
/// `PEER_LOST`, like any other end for want of a counterpart.
const ABANDONED: i32 = ErrorCode::PeerLost.exit_status() as i32;

/// Read ends of lifelines. A process is alone when any of them reaches its end.
#[derive(Clone, Debug, Default)]
pub struct Lifelines {
    ends: Vec<Arc<OwnedFd>>,
}

/// Both ends of this process's own lifeline; lives until the process ends.
struct Own {
    read: Arc<OwnedFd>,
    /// Never used: open is what counts.
    _write: PipeWriter,
}

impl Lifelines {
    /// No lifeline: the process never becomes alone.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The lifeline of this process, to be handed to children that shall end with it.
    ///
    /// # Errors
    /// `IO_FAILED` when no pipe is to be had.
    pub fn own() -> Result<Self, Fault> {
        static OWN: OnceLock<Own> = OnceLock::new();
        if OWN.get().is_none() {
            // Close-on-exec from the first moment, on every system.
            let (read, write) = io::pipe().map_err(|error| {
                let message = format!("cannot make a pipe for child processes: {error}");
                Fault::new(ErrorCode::IoFailed, message)
            })?;
            // Two threads may race; the loser's pipe is closed unused.
            let _ = OWN.set(Own {
                read: Arc::new(read.into()),
                _write: write,
            });
        }
        let ends = OWN.get().map(|own| own.read.clone()).into_iter().collect();
        Ok(Self { ends })
    }

    /// These and those.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        self.ends.extend(others.ends.iter().cloned());
        self
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Starts to watch, on a thread of its own: a runtime that is wedged or saturated by an
    /// engine must notice too. With `exit_after`, that thread ends the process if it still lives
    /// so long after the parent's death.
    ///
    /// # Errors
    /// `IO_FAILED` when the thread cannot be started.
    pub fn watch(&self, exit_after: Option<Duration>) -> Result<ParentGone, Fault> {
        let (gone, seen) = watch::channel(false);
        if self.ends.is_empty() {
            return Ok(ParentGone {
                seen,
                _keep: Some(Arc::new(gone)),
            });
        }
        let lifelines = self.clone();
        std::thread::Builder::new()
            .name("volley-lifeline".into())
            .spawn(move || lifelines.wait_then_tell(&gone, exit_after))
            .map_err(|error| {
                let message = format!("cannot start the thread that watches the parent: {error}");
                Fault::new(ErrorCode::IoFailed, message)
            })?;
        Ok(ParentGone { seen, _keep: None })
    }

    pub(super) fn push(&mut self, end: OwnedFd) {
        self.ends.push(Arc::new(end));
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ends.iter().map(|end| end.as_fd())
    }

    fn wait_then_tell(&self, gone: &watch::Sender<bool>, exit_after: Option<Duration>) {
        if let Err(error) = self.block_until_end() {
            // Without a watch the process could be orphaned for ever; treat it as the end.
            tracing::error!(%error, "cannot watch the parent process");
        }
        gone.send_replace(true);
        if let Some(grace) = exit_after {
            std::thread::sleep(grace);
            tracing::error!("the parent process died; ending after {grace:?}");
            std::process::exit(ABANDONED);
        }
    }

    fn block_until_end(&self) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> = self
            .fds()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut fds, None) {
                // Nobody writes, so any event is the end (POLLHUP) or a broken descriptor.
                Ok(events) if events > 0 => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Tells when a parent process is dead. Clone it for every task that must know.
#[derive(Clone, Debug)]
pub struct ParentGone {
    seen: watch::Receiver<bool>,
    /// Without lifelines the sender stays here, so that the wait never ends.
    _keep: Option<Arc<watch::Sender<bool>>>,
}

impl ParentGone {
    /// Returns once a parent process is dead; never, when there is none.
    pub async fn wait(&mut self) {
        if self.seen.wait_for(|gone| *gone).await.is_err() {
            // The watching thread is gone, and so is what it knew.
            tracing::error!("the thread that watches the parent process ended");
        }
    }

    /// Is a parent process known to be dead?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.seen.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_any_pipe_is_noticed() {
        let (first, _write_first) = io::pipe().expect("pipe");
        let (second, write_second) = io::pipe().expect("pipe");
        let mut lifelines = Lifelines::none();
        lifelines.push(first.into());
        lifelines.push(second.into());
        let mut gone = lifelines.watch(None).expect("watch");
        let early = tokio::time::timeout(Duration::from_millis(50), gone.wait()).await;
        assert!(early.is_err() && !gone.is_gone());
        drop(write_second);
        let seen = tokio::time::timeout(Duration::from_secs(5), gone.wait()).await;
        assert!(seen.is_ok() && gone.is_gone());
    }

    #[tokio::test]
    async fn without_a_parent_nothing_ends() {
        let mut gone = Lifelines::none().watch(None).expect("watch");
        let wait = tokio::time::timeout(Duration::from_millis(20), gone.wait()).await;
        assert!(wait.is_err());
    }

    #[test]
    fn the_own_lifeline_is_one_pipe() {
        let (a, b) = (Lifelines::own().expect("a"), Lifelines::own().expect("b"));
        assert!(Arc::ptr_eq(&a.ends[0], &b.ends[0]));
        assert_eq!(a.and(&b).ends.len(), 2);
    }
}
