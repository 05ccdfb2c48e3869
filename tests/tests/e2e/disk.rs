//! Disks that fail under running processes: full, broken, read-only. Whoever writes stops
//! acknowledging at once, says what and where, ends with status 74 without trying again, and its
//! next life has everything that was acknowledged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{Cluster, assert_complete};
use crate::home::{Home, Running};
use crate::process::until;
use crate::recipe::{Recipe, adapter, event, wait_for_step};

const RECIPE: Recipe = Recipe::LONGER;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// The library of `disk/faulty.c`, and the directory that tells it when to fail.
struct Disk {
    library: PathBuf,
    dir: PathBuf,
}

impl Disk {
    fn new(home: &Home) -> Self {
        let (library, dir) = (home.path("faulty.so"), home.path("faulty"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/disk/faulty.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status()
            .expect("a C compiler, which building needs, too");
        assert!(compiled.success(), "{compiled}");
        fs::create_dir(&dir).expect("a test may write into its home");
        Self { library, dir }
    }

    fn env(&self) -> [(&str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("FAULTY_DISK", &self.dir)]
    }

    /// From now on `call` fails on every path that contains `part`.
    fn fail(&self, call: &str, part: &str, errno: i32) {
        let fresh = self.dir.join("arming");
        fs::write(&fresh, format!("{call} {part} {errno}\n")).expect("write");
        fs::rename(fresh, self.dir.join("armed")).expect("rename");
    }

    fn mend(&self) {
        fs::remove_file(self.dir.join("armed")).expect("it was broken");
    }

    /// Failures so far: call, pid, descriptor, path.
    fn failures(&self) -> Vec<(String, String, String, String)> {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let failure = |line: &str| {
            let mut words = line.splitn(4, ' ').map(str::to_owned);
            let mut word = || words.next().expect("four words");
            (word(), word(), word(), word())
        };
        log.lines().map(failure).collect()
    }

    /// No process tried the same call on the same descriptor again after it had failed.
    #[track_caller]
    fn assert_nothing_was_tried_again(&self) {
        let failures = self.failures();
        assert!(!failures.is_empty(), "the disk never failed");
        let mut tried: Vec<_> = failures.clone();
        tried.sort();
        tried.dedup();
        assert_eq!(tried.len(), failures.len(), "tried again: {failures:?}");
    }
}

/// What the process that wrote said when it ended.
#[track_caller]
fn assert_told(said: &str, path: &str, why: &str) {
    let line = said
        .lines()
        .find(|line| line.contains("error[STORE_FAILED]"));
    let line = line.unwrap_or_else(|| panic!("it did not say STORE_FAILED: {said}"));
    assert!(line.contains(path), "no path: {line}");
    assert!(line.contains(why), "no reason: {line}");
    assert!(said.contains("hint: "), "nothing to do: {said}");
}

/// A coordinator whose disk fails while a job is played.
#[track_caller]
fn coordinator_survives(call: &str, part: &str, errno: i32, why: &str) {
    let home = Home::new();
    let disk = Disk::new(&home);
    let mut cluster = Cluster::start_with(&home, "coordinator", &[], &disk.env());
    let before = cluster.ask(&["map", "arithmetic", "--seeds", "0..16", "--json"]);
    assert_complete(&before.with(0), 16);

    disk.fail(call, part, errno);
    let map = cluster.begin(&["map", "arithmetic", "--seeds", "0..200", "--json"]);
    until("the end of the coordinator", || {
        cluster.root.has_ended().then_some(())
    });
    assert_eq!(map.lines(), 0, "told of a result that is not safe");
    // The log is SQLite's own affair: the store is what people know.
    let path = part.strip_suffix("-wal").unwrap_or(part);
    assert_told(&cluster.root.err(), path, why);
    disk.assert_nothing_was_tried_again();

    disk.mend();
    cluster.start_again_after(74);
    assert_complete(&map.end().with(0), 200);
    let jobs = cluster.ask(&["job", "list", "--json"]).with(0).objects();
    let accepted = |job: &serde_json::Value| job["accepted"].as_u64();
    let mut accepted: Vec<_> = jobs[0]["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .filter_map(accepted)
        .collect();
    accepted.sort_unstable();
    assert_eq!(accepted, [16, 200]);
}

#[test]
fn a_coordinator_whose_log_cannot_be_synced_stops_and_comes_back_whole() {
    coordinator_survives("sync", "coordinator.db-wal", EIO, "sync failed");
}

#[test]
fn a_coordinator_whose_log_has_no_room_stops_and_comes_back_whole() {
    coordinator_survives("write", "coordinator.db-wal", ENOSPC, "full");
}

#[test]
fn a_relay_that_cannot_sync_stops_and_comes_back_whole() {
    coordinator_survives("sync", ".results", EIO, "os error 5");
}

#[test]
fn a_relay_without_room_stops_and_comes_back_whole() {
    coordinator_survives("short", ".results", ENOSPC, "os error 28");
}

#[test]
fn a_read_only_data_directory_is_told_with_its_path() {
    let home = Home::new();
    let disk = Disk::new(&home);
    disk.fail("open", "/data/", EROFS);
    let data = home.path("data");
    let args = ["coordinator", "--data-dir", data.to_str().expect("text")];
    let done = home.start_with(&args, &disk.env()).end().with(74);
    assert!(done.err.contains("/data/"), "{}", done.err);
    assert!(
        done.err
            .contains("hint: choose a directory on a writable file system"),
        "{}",
        done.err
    );
}

/// A learner whose disk fails in the middle of a run: its supervisor starts it again, and the run
/// ends with the same adapter, to the bit.
#[track_caller]
fn learner_survives(call: &str, part: &str, errno: i32, why: &str) {
    let undisturbed = {
        let home = Home::new();
        RECIPE.start(&home).end().with(0);
        adapter(&home.path("run"), RECIPE.steps)
    };
    let home = Home::new();
    let disk = Disk::new(&home);
    home.write("recipe.toml", RECIPE.text());
    let train = [
        "train",
        "recipe.toml",
        "--run-dir",
        "run",
        "--seed",
        "7",
        "--json",
    ];
    let mut run: Running = home.start_with(&train, &disk.env());
    wait_for_step(&mut run, 1);
    disk.fail(call, part, errno);
    until("a failure of the disk", || {
        (!disk.failures().is_empty()).then_some(())
    });
    disk.mend();
    let finished = event(&run.end().with(0).objects(), "finished");
    assert_eq!(finished["steps"], RECIPE.steps);
    let log = fs::read_to_string(home.path("run/logs/learner.log")).expect("a log");
    assert_told(&log, part, why);
    disk.assert_nothing_was_tried_again();
    let same = adapter(&home.path("run"), RECIPE.steps) == undisturbed;
    assert!(same, "another adapter than without the disturbance");
    home.run(&["journal", "verify", "run"]).with(0);
}

#[test]
fn a_learner_whose_intake_cannot_be_synced_goes_on_to_the_bit() {
    learner_survives("sync", "run/intake", EIO, "os error 5");
}

#[test]
fn a_learner_whose_intake_has_no_room_goes_on_to_the_bit() {
    learner_survives("short", "run/intake", ENOSPC, "os error 28");
}

#[test]
fn a_learner_that_cannot_sync_a_step_record_goes_on_to_the_bit() {
    learner_survives("sync", "steps.jsonl", EIO, "os error 5");
}

#[test]
fn a_learner_whose_step_record_is_cut_short_goes_on_to_the_bit() {
    learner_survives("short", "steps.jsonl", ENOSPC, "os error 28");
}
