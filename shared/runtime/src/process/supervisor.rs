//! Keeps a role alive: a dead one is started again, one that keeps dying is given up.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use volley_protocol::{ErrorCode, Fault};

use super::child::Child;
use super::spec::{ChildLog, ChildSpec};
use crate::telemetry;

/// Restarts that are tried before a role is given up …
const RESTARTS_MAX: usize = 5;
/// … within this time.
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// The first restart is immediate; the following ones wait 100 ms, 200 ms, … up to this.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(2);
/// Lines of a dead role's log that its fault quotes.
const LOG_LINES: usize = 12;

/// Ends that a restart cannot mend: usage, permission, configuration.
const HOPELESS: [i32; 3] = [2, 77, 78];

/// How many restarts a role has left. Pure: time comes in.
#[derive(Clone, Debug)]
pub struct RestartBudget {
    restarts: VecDeque<Instant>,
    restarts_max: usize,
    window: Duration,
}

impl Default for RestartBudget {
    fn default() -> Self {
        Self::new(RESTARTS_MAX, RESTART_WINDOW)
    }
}

impl RestartBudget {
    /// At most `restarts_max` restarts within any `window`.
    #[must_use]
    pub const fn new(restarts_max: usize, window: Duration) -> Self {
        Self {
            restarts: VecDeque::new(),
            restarts_max,
            window,
        }
    }

    /// How long to wait before the restart that is due now; `None` when there is none left.
    pub fn spend(&mut self, now: Instant) -> Option<Duration> {
        while let Some(oldest) = self.restarts.front()
            && now.duration_since(*oldest) > self.window
        {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.restarts_max {
            return None;
        }
        let before = self.restarts.len();
        self.restarts.push_back(now);
        debug_assert!(self.restarts.len() <= self.restarts_max);
        let wait = match before {
            0 => Duration::ZERO,
            n => Duration::from_millis(50 << n.min(10)),
        };
        Some(wait.min(RESTART_WAIT_MAX))
    }
}

/// How a supervised role ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleEnd {
    /// It ended by itself, with status 0.
    Finished,
    /// It was told to stop.
    Stopped(ExitStatus),
}

/// A supervised role. Dropping the handle kills the role.
#[derive(Debug)]
pub struct RoleHandle {
    name: String,
    pid: watch::Receiver<Option<u32>>,
    restarts: watch::Receiver<u32>,
    stop: mpsc::Sender<Duration>,
    task: JoinHandle<Result<RoleEnd, Fault>>,
    end: Option<Result<RoleEnd, Fault>>,
}

impl RoleHandle {
    /// The role's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its present process; `None` between two lives and after the end.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Its present process as a channel, for whoever must follow restarts.
    #[must_use]
    pub fn pid_changes(&self) -> watch::Receiver<Option<u32>> {
        self.pid.clone()
    }

    /// Restarts so far.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        *self.restarts.borrow()
    }

    /// Waits for the end. May be dropped and called again; after the end it answers at once.
    ///
    /// # Errors
    /// `ROLE_FAILED`, with the last lines of its log, when it kept dying.
    pub async fn ended(&mut self) -> Result<RoleEnd, Fault> {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let end = match (&mut self.task).await {
            Ok(end) => end,
            Err(error) => Err(Fault::new(
                ErrorCode::Internal,
                format!("the supervision of {} broke: {error}", self.name),
            )),
        };
        self.end.insert(end).clone()
    }

    /// Asks it to end, and kills it after `grace`.
    ///
    /// # Errors
    /// As [`ended`](Self::ended).
    pub async fn stop(mut self, grace: Duration) -> Result<RoleEnd, Fault> {
        // A closed channel means that it has ended already.
        let _ = self.stop.send(grace).await;
        self.ended().await
    }

    /// Asks it to end without waiting; [`ended`](Self::ended) tells when it has.
    pub fn request_stop(&self, grace: Duration) {
        // A full channel holds a request already.
        let _ = self.stop.try_send(grace);
    }
}

impl Drop for RoleHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a role and keeps it alive. `make` is called for every life, so that each gets fresh
/// descriptors. Needs a tokio runtime.
///
/// # Errors
/// When the first start fails; later ones are reported by [`RoleHandle::ended`].
pub fn supervise<F>(mut make: F, budget: RestartBudget) -> Result<RoleHandle, Fault>
where
    F: FnMut() -> Result<ChildSpec, Fault> + Send + 'static,
{
    let spec = make()?;
    let name = spec.name.clone();
    let log = spec.log.clone();
    let child = Child::spawn(spec)?;
    let (pid_out, pid) = watch::channel(Some(child.pid()));
    let (restarts_out, restarts) = watch::channel(0);
    let (stop, stops) = mpsc::channel(1);
    let keeper = Keeper {
        make: Box::new(make),
        name: name.clone(),
        log,
        budget,
        pid: pid_out,
        restarts: restarts_out,
        stops,
    };
    let task = tokio::spawn(keeper.keep(child));
    Ok(RoleHandle {
        name,
        pid,
        restarts,
        stop,
        task,
        end: None,
    })
}

struct Keeper {
    make: Box<dyn FnMut() -> Result<ChildSpec, Fault> + Send>,
    name: String,
    log: ChildLog,
    budget: RestartBudget,
    pid: watch::Sender<Option<u32>>,
    restarts: watch::Sender<u32>,
    stops: mpsc::Receiver<Duration>,
}

enum Seen {
    Exit(std::io::Result<ExitStatus>),
    Stop(Duration),
}

impl Keeper {
    async fn keep(mut self, mut child: Child) -> Result<RoleEnd, Fault> {
        loop {
            let seen = tokio::select! {
                status = child.wait() => Seen::Exit(status),
                Some(grace) = self.stops.recv() => Seen::Stop(grace),
            };
            let status = match seen {
                Seen::Stop(grace) => {
                    let status = child.stop(grace).await;
                    self.pid.send_replace(None);
                    return status
                        .map(RoleEnd::Stopped)
                        .map_err(|e| self.lost_sight(&e));
                }
                Seen::Exit(status) => status.map_err(|error| self.lost_sight(&error))?,
            };
            self.pid.send_replace(None);
            if status.success() {
                return Ok(RoleEnd::Finished);
            }
            let wait = self.restart_due(status)?;
            tracing::warn!(role = self.name, %status, ?wait, "died; starting it again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Some(_) = self.stops.recv() => return Ok(RoleEnd::Stopped(status)),
            }
            child = Child::spawn((self.make)()?)?;
            self.pid.send_replace(Some(child.pid()));
            self.restarts.send_modify(|restarts| *restarts += 1);
        }
    }

    fn restart_due(&mut self, status: ExitStatus) -> Result<Duration, Fault> {
        if status.code().is_some_and(|code| HOPELESS.contains(&code)) {
            return Err(self.given_up(&format!("ended with {status}")));
        }
        match self.budget.spend(Instant::now()) {
            Some(wait) => Ok(wait),
            None => Err(self.given_up(&format!(
                "died {} times within {} s, at last with {status}",
                self.budget.restarts_max + 1,
                self.budget.window.as_secs()
            ))),
        }
    }

    fn given_up(&self, what: &str) -> Fault {
        let fault = |message| Fault::new(ErrorCode::RoleFailed, message);
        let ChildLog::File(path) = &self.log else {
            return fault(format!("{} {what}", self.name))
                .with_hint("its own words are above, on standard error");
        };
        let lines = telemetry::last_lines(path, LOG_LINES);
        let quoted = if lines.is_empty() {
            "its log is empty".to_owned()
        } else {
            format!("its log ends with:\n  {}", lines.join("\n  "))
        };
        fault(format!("{} {what}; {quoted}", self.name))
            .with_hint(format!("read {}", path.display()))
    }

    fn lost_sight(&self, error: &std::io::Error) -> Fault {
        let message = format!("cannot wait for {}: {error}", self.name);
        Fault::new(ErrorCode::Internal, message)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str, log: &Path) -> ChildSpec {
        ChildSpec::program("/bin/sh", "worker-1", ["-c", script]).log(ChildLog::File(log.into()))
    }

    #[test]
    fn the_budget_refills_as_time_passes() {
        let mut budget = RestartBudget::new(2, Duration::from_secs(60));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(budget.spend(at(0)), Some(Duration::ZERO));
        assert_eq!(budget.spend(at(1)), Some(Duration::from_millis(100)));
        assert_eq!(budget.spend(at(2)), None);
        assert_eq!(budget.spend(at(61)), Some(Duration::from_millis(100)));
        assert_eq!(budget.spend(at(500)), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_role_that_keeps_dying_is_given_up_with_its_last_words() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("worker-1.log");
        let path = log.clone();
        let make = move || Ok(shell("echo cannot think; kill -9 $$", &path));
        let budget = RestartBudget::new(2, Duration::from_secs(60));
        let mut role = supervise(make, budget).expect("start");
        let fault = role.ended().await.expect_err("gives up");
        assert_eq!(fault.code, ErrorCode::RoleFailed);
        assert!(fault.message.contains("worker-1 died 3 times"), "{fault}");
        assert!(fault.message.contains("SIGKILL"), "{fault}");
        assert!(fault.message.ends_with("cannot think"), "{fault}");
        assert_eq!((role.restarts(), role.pid()), (2, None));
    }

    #[tokio::test]
    async fn a_configuration_error_is_not_repeated() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("r.log");
        let path = log.clone();
        let make = move || Ok(shell("echo once; exit 78", &path));
        let mut role = supervise(make, RestartBudget::default()).expect("start");
        let fault = role.ended().await.expect_err("gives up");
        assert!(fault.message.contains("once"), "{fault}");
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "once\n");
    }

    #[tokio::test]
    async fn a_dead_role_comes_back_at_once_and_stops_when_told() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("r.log");
        let make = move || Ok(shell("exec sleep 600", &log));
        let role = supervise(make, RestartBudget::default()).expect("start");
        let mut pids = role.pid_changes();
        let first = role.pid().expect("it runs");
        let raw = i32::try_from(first).expect("a pid");
        let pid = rustix::process::Pid::from_raw(raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        let second = pids.wait_for(|pid| pid.is_some_and(|pid| pid != first));
        tokio::time::timeout(Duration::from_secs(5), second)
            .await
            .expect("in time")
            .expect("restarted");
        assert_eq!(role.restarts(), 1);
        let end = role.stop(Duration::from_secs(5)).await.expect("stop");
        assert!(matches!(end, RoleEnd::Stopped(status) if !status.success()));
    }

    #[tokio::test]
    async fn a_role_that_is_done_is_not_started_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("r.log");
        let make = move || Ok(shell("exit 0", &log));
        let mut role = supervise(make, RestartBudget::default()).expect("start");
        assert_eq!(role.ended().await, Ok(RoleEnd::Finished));
    }
}
