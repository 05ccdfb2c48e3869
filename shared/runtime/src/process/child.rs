//! One child process, from its start to its end.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use volley_protocol::Fault;

use super::handoff;
use super::spec::{ChildLog, ChildSpec};
use crate::{env_vars, faults, files};

/// A running child, leader of its own process group: a Ctrl-C at the terminal reaches the
/// launcher alone, which ends its children in order.
///
/// The pid stays reserved until [`wait`](Self::wait) has returned, and what is left of the group
/// is killed before that, so that no signal ever hits a stranger. Dropping an unfinished child
/// kills its group.
#[derive(Debug)]
pub struct Child {
    name: String,
    pid: Pid,
    inner: std::process::Child,
    watch: ExitWatch,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts it.
    ///
    /// # Errors
    /// `IO_FAILED`, naming the program or its log file.
    pub fn spawn(spec: ChildSpec) -> Result<Self, Fault> {
        let failed = |error: io::Error| faults::io("start", &spec.program, &error);
        let stdin = handoff::prepare(&spec).map_err(failed)?;
        let (stdout, stderr) = outputs(&spec.log)?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .env(env_vars::VOLLEY_HANDOFF.name, "1")
            .stdin(Stdio::from(stdin))
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0);
        if let Some(dir) = &spec.dir {
            command.current_dir(dir);
        }
        let inner = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&inner);
        tracing::debug!(name = spec.name, pid = pid.as_raw_nonzero(), "started");
        Ok(Self {
            watch: ExitWatch::new(pid),
            name: spec.name,
            pid,
            inner,
            status: None,
        })
    }

    /// Its process id, which is also that of its group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its end, kills what is left of its group, and frees the pid. May be dropped and
    /// called again; after the end it answers at once. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system cannot tell, which is a defect.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.watch.exited(self.pid).await?;
        self.reap()
    }

    /// Its status if it has ended.
    ///
    /// # Errors
    /// When the system cannot tell, which is a defect.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() && has_exited(self.pid, WaitIdOptions::NOHANG)? {
            self.reap()?;
        }
        Ok(self.status)
    }

    /// Asks it to end: SIGTERM to the process, which ends its own children.
    pub fn terminate(&self) {
        if self.status.is_none() {
            // Fails only for a process that is already dead.
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    /// Ends its whole group at once: SIGKILL.
    pub fn kill(&self) {
        if self.status.is_none() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Asks it to end, and ends it after `grace`.
    ///
    /// # Errors
    /// When the system cannot tell how it ended, which is a defect.
    pub async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.terminate();
        if let Ok(ended) = tokio::time::timeout(grace, self.wait()).await {
            return ended;
        }
        tracing::warn!(name = self.name, ?grace, "does not end; killed");
        self.kill();
        self.wait().await
    }

    /// The leader is a zombie: its pid and group id cannot be reused yet.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let status = self.inner.wait()?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
            // SIGKILL was sent: the wait is short, and no zombie stays.
            let _ = self.inner.wait();
        }
    }
}

/// How the end of a process is noticed without reaping it.
#[derive(Debug)]
enum ExitWatch {
    /// Readable at the end: costs nothing while the child lives.
    #[cfg(target_os = "linux")]
    Pidfd(std::os::fd::OwnedFd),
    /// The same, registered with the runtime.
    #[cfg(target_os = "linux")]
    Registered(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>),
    /// No pidfd here (another system, or a sandbox that forbids them): a thread waits.
    Thread(Option<tokio::sync::oneshot::Receiver<io::Result<bool>>>),
}

impl ExitWatch {
    #[cfg(target_os = "linux")]
    fn new(pid: Pid) -> Self {
        use rustix::process::{PidfdFlags, pidfd_open};
        pidfd_open(pid, PidfdFlags::NONBLOCK).map_or(Self::Thread(None), Self::Pidfd)
    }

    #[cfg(not(target_os = "linux"))]
    fn new(_pid: Pid) -> Self {
        Self::Thread(None)
    }

    async fn exited(&mut self, pid: Pid) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            if let Self::Pidfd(pidfd) = self {
                *self = Self::Registered(register(pidfd.try_clone()?)?);
            }
            if let Self::Registered(pidfd) = self {
                let _guard = pidfd.readable().await?;
                return Ok(());
            }
        }
        self.thread_exited(pid).await
    }

    async fn thread_exited(&mut self, pid: Pid) -> io::Result<()> {
        let Self::Thread(seen) = self else {
            return Err(io::Error::other("a pidfd is not waited for by a thread"));
        };
        if seen.is_none() {
            let (tell, told) = tokio::sync::oneshot::channel();
            std::thread::Builder::new()
                .name("volley-wait".into())
                .spawn(move || tell.send(has_exited(pid, WaitIdOptions::empty())))?;
            *seen = Some(told);
        }
        match seen {
            Some(told) => told.await.map_err(io::Error::other)?.map(|_| ()),
            None => Ok(()),
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may swap their descriptor; an OwnedFd cannot"
)]
fn register(
    pidfd: std::os::fd::OwnedFd,
) -> io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    tokio::io::unix::AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)
}

/// Looks (or waits, without `NOHANG`) without reaping.
fn has_exited(pid: Pid, how: WaitIdOptions) -> io::Result<bool> {
    loop {
        match waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | how,
        ) {
            Ok(status) => return Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn outputs(log: &ChildLog) -> Result<(Stdio, Stdio), Fault> {
    let here = Path::new("standard error");
    match log {
        ChildLog::Discard => Ok((Stdio::null(), Stdio::null())),
        ChildLog::Inherit => {
            let stderr = io::stderr();
            let copy = stderr.as_fd().try_clone_to_owned();
            let copy = copy.map_err(|error| faults::io("duplicate", here, &error))?;
            Ok((Stdio::from(copy), Stdio::inherit()))
        }
        ChildLog::File(path) => {
            let failed = |error: io::Error| faults::io("open the log file", path, &error);
            fs::create_dir_all(files::parent_of(path)).map_err(failed)?;
            let mut options = OpenOptions::new();
            let file = options
                .append(true)
                .create(true)
                .open(path)
                .map_err(failed)?;
            let copy = file.try_clone().map_err(failed)?;
            Ok((Stdio::from(copy), Stdio::from(file)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::process::Lifelines;
    use crate::test_support::{inheritable_fds, role, wait_until};

    fn shell(script: &str) -> ChildSpec {
        ChildSpec::program("/bin/sh", "shell", ["-c", script]).log(ChildLog::Discard)
    }

    fn alive(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie nobody reaps yet (its reaper is init) is dead for us.
        !stat.is_empty()
            && !stat
                .rsplit(')')
                .next()
                .unwrap_or("")
                .trim()
                .starts_with('Z')
    }

    #[tokio::test]
    async fn the_status_is_told_again_and_again() {
        let mut child = Child::spawn(shell("exit 7")).expect("spawn");
        let early = tokio::time::timeout(Duration::ZERO, child.wait()).await;
        drop(early);
        assert_eq!(child.wait().await.expect("wait").code(), Some(7));
        assert_eq!(child.wait().await.expect("wait").code(), Some(7));
        assert_eq!(
            child.try_wait().expect("try").and_then(|s| s.code()),
            Some(7)
        );
        child.terminate();
        child.kill();
    }

    #[tokio::test]
    async fn a_thread_waits_where_there_is_no_pidfd() {
        let mut child = Child::spawn(shell("sleep 0.05; exit 3")).expect("spawn");
        child.watch = ExitWatch::Thread(None);
        let early = tokio::time::timeout(Duration::from_millis(1), child.wait()).await;
        assert!(early.is_err());
        assert_eq!(child.wait().await.expect("wait").code(), Some(3));
    }

    #[tokio::test]
    async fn what_ignores_sigterm_is_killed_with_its_group() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let told = dir.path().join("pid");
        let script = format!(
            "trap '' TERM; sleep 600 & echo $! > {}; wait",
            told.display()
        );
        let mut child = Child::spawn(shell(&script)).expect("spawn");
        let grandchild: u32 = wait_until(|| fs::read_to_string(&told).ok()?.trim().parse().ok());
        assert!(alive(grandchild));
        assert_eq!(child.try_wait().expect("try"), None);
        let status = child.stop(Duration::from_millis(50)).await.expect("stop");
        assert_eq!(status.signal(), Some(9));
        wait_until(|| (!alive(grandchild)).then_some(()));
    }

    #[tokio::test]
    async fn nothing_of_a_group_outlives_its_leader_or_its_handle() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let told = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}", told.display());
        let mut child = Child::spawn(shell(&script)).expect("spawn");
        assert!(child.wait().await.expect("wait").success());
        let left: u32 = fs::read_to_string(&told)
            .expect("pid")
            .trim()
            .parse()
            .expect("a pid");
        wait_until(|| (!alive(left)).then_some(()));

        let dropped = Child::spawn(shell("sleep 600")).expect("spawn");
        let pid = dropped.pid();
        drop(dropped);
        assert!(!alive(pid));
    }

    #[tokio::test]
    async fn a_role_gets_its_identity_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("logs/role.log");
        let spec = role("report-handoff")
            .identity(b"key".to_vec())
            .lifelines(Lifelines::own().expect("lifeline"))
            .log(ChildLog::File(log.clone()));
        let mut child = Child::spawn(spec).expect("spawn");
        let status = child.wait().await.expect("wait");
        let text = fs::read_to_string(&log).expect("log");
        assert!(status.success(), "{text}");
        assert!(
            text.contains("identity=key lifeline=true second=none"),
            "{text}"
        );
        // What the test program itself was started with, and not one more.
        let expected = format!("stdin=/dev/null strangers={}", inheritable_fds());
        assert!(text.contains(&expected), "{text}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let spec = ChildSpec::program("/no/such/program", "x", ["y"]);
        let fault = Child::spawn(spec).expect_err("no program");
        assert!(fault.message.contains("/no/such/program"), "{fault}");
    }

    #[tokio::test]
    async fn the_death_of_the_launcher_ends_children_and_grandchildren() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("launcher.log");
        let spec = role("launch-two-deep").log(ChildLog::File(log.clone()));
        let mut launcher = Child::spawn(spec).expect("spawn");
        let pids: Vec<u32> = wait_until(|| {
            let text = fs::read_to_string(&log).ok()?;
            let pids = text
                .lines()
                .filter_map(|line| line.strip_prefix("watching pid="));
            let pids: Vec<u32> = pids.filter_map(|pid| pid.parse().ok()).collect();
            (pids.len() == 2).then_some(pids)
        });
        assert!(pids.iter().all(|pid| alive(*pid)));
        // SIGKILL to the launcher alone: neither Drop nor a group signal can help.
        kill_process(launcher.pid, Signal::KILL).expect("kill");
        launcher.wait().await.expect("wait");
        for pid in pids {
            wait_until(|| (!alive(pid)).then_some(()));
        }
    }
}
