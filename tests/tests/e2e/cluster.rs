//! A cluster of a test, and what is asked of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::home::{Done, Home, Running};
use crate::process::{self, until};

/// A cluster that was started by hand or by `volley up`.
#[derive(Debug)]
pub(crate) struct Cluster<'h> {
    home: &'h Home,
    pub(crate) data_dir: PathBuf,
    command: Vec<String>,
    /// The command that was started: `volley up` or the coordinator itself.
    pub(crate) root: Running,
}

impl<'h> Cluster<'h> {
    /// `volley up` with the model inside the program.
    pub(crate) fn up(home: &'h Home, options: &[&str]) -> Self {
        Self::start(home, "up", options)
    }

    /// `volley coordinator`: its workers play a scripted policy.
    pub(crate) fn scripted(home: &'h Home, options: &[&str]) -> Self {
        Self::start(home, "coordinator", options)
    }

    fn start(home: &'h Home, verb: &str, options: &[&str]) -> Self {
        Self::start_with(home, verb, options, &[])
    }

    /// The same with further variables in the environment of its first life.
    pub(crate) fn start_with(
        home: &'h Home,
        verb: &str,
        options: &[&str],
        env: &[(&str, &Path)],
    ) -> Self {
        let data_dir = home.path("data");
        let mut command = vec![verb.to_owned(), "--data-dir".to_owned()];
        command.push(data_dir.display().to_string());
        command.extend(options.iter().map(|option| (*option).to_owned()));
        let root = home.start_with(&command, env);
        let mut this = Self {
            home,
            data_dir,
            command,
            root,
        };
        this.wait_until_it_answers();
        this
    }

    /// The same command line once more, when the process before is gone with its lock.
    pub(crate) fn start_again(&mut self) {
        until("the end of the process before", || {
            self.root.has_ended().then_some(())
        });
        self.root = self.home.start(&self.command);
    }

    /// The same command with other options, when the process before is gone with its lock.
    pub(crate) fn start_again_with(&mut self, options: &[&str]) {
        self.command.truncate(3);
        let options = options.iter().map(|option| (*option).to_owned());
        self.command.extend(options);
        self.start_again();
    }

    /// The same command line once more, whatever comes of it.
    pub(crate) fn start_again_at_once(&mut self) {
        self.root = self.home.start(&self.command);
    }

    /// The same command line once more, when the process before has ended with this status.
    pub(crate) fn start_again_after(&mut self, status: i32) {
        let next = self.home.start(&self.command);
        std::mem::replace(&mut self.root, next).end().with(status);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        until("the cluster answers", || {
            assert!(!self.root.has_ended(), "it ended: {}", self.root.err());
            address(&self.data_dir)?;
            (self.ask(&["monitor", "--json"]).status == Some(0)).then_some(())
        });
    }

    pub(crate) fn address(&self) -> String {
        address(&self.data_dir).expect("an announced cluster")
    }

    /// `volley ARGS --addr ADDRESS`, to its end.
    pub(crate) fn ask(&self, args: &[&str]) -> Done {
        self.begin(args).end()
    }

    /// `volley ARGS --addr ADDRESS`.
    pub(crate) fn begin(&self, args: &[&str]) -> Running {
        let address = self.address();
        let mut args = args.to_vec();
        args.extend(["--addr", &address]);
        self.home.start(&args)
    }

    pub(crate) fn snapshot(&self) -> Value {
        snapshot(self.home, &self.data_dir).expect("the cluster answers")
    }

    pub(crate) fn coordinator_pid(&self) -> u32 {
        let pid = self.snapshot()["pid"].as_u64();
        pid.and_then(|pid| pid.try_into().ok())
            .expect("a process id")
    }

    /// Kills the coordinator where it stands.
    pub(crate) fn kill_coordinator(&self) {
        process::signal(self.coordinator_pid(), Signal::KILL);
    }

    /// A small map succeeds: the cluster still does its work.
    #[track_caller]
    pub(crate) fn still_serves(&self) {
        let map = self.ask(&["map", "arithmetic", "--seeds", "0..16", "--json"]);
        assert_complete(&map.with(0), 16);
    }
}

/// Where the cluster of a data directory listens, once it has said so.
pub(crate) fn address(data_dir: &Path) -> Option<String> {
    let text = fs::read(data_dir.join("cluster.json")).ok()?;
    let file: Value = serde_json::from_slice(&text).ok()?;
    Some(file["address"].as_str()?.to_owned())
}

/// What the monitor says, if there is a cluster that answers.
pub(crate) fn snapshot(home: &Home, data_dir: &Path) -> Option<Value> {
    let address = address(data_dir)?;
    let done = home.run(&["monitor", "--json", "--addr", &address]);
    // Of a degraded cluster it tells, too, with exit status 1.
    matches!(done.status, Some(0 | 1))
        .then(|| done.objects().pop())
        .flatten()
}

/// Each index of `0..count` once, and all of them with a reward.
#[track_caller]
pub(crate) fn assert_complete(map: &Done, count: u64) {
    let results = map.objects();
    let failed = results.iter().find(|result| !result["reward"].is_number());
    assert_eq!(failed, None, "a result without a reward");
    assert_each_once(&results, count);
}

/// Each index of `0..count` once.
#[track_caller]
pub(crate) fn assert_each_once(results: &[Value], count: u64) {
    let index = |result: &Value| result["index"].as_u64().expect("an index");
    let indices: BTreeSet<u64> = results.iter().map(index).collect();
    assert_eq!(results.len() as u64, count, "results");
    assert!(indices.into_iter().eq(0..count), "an index twice");
}
