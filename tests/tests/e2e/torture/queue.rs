//! A queue that is filled, played and read while coordinator and workers are killed: every payload
//! that was put has one result, its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Role, Torture, say};
use crate::cluster::{address, assert_each_once, snapshot};
use crate::home::Home;
use crate::process::until;

const WORKERS: usize = 2;

/// Payloads that may be without a result before further ones are put. More than the leases of all
/// workers that were killed and are not given up yet (15 s), so that there is always work.
const BACKLOG_MAX: u64 = 4_000;

/// Payloads that are put at once.
const CHUNK: u64 = 50;

/// Longest wait before a kill. A coordinator is back after about 50 ms: half of the kills meet it
/// while it reads its store or greets its peers.
const PAUSE_MS_MAX: u64 = 120;

/// After so many kills something has to come before the next one.
const KILLS_PER_PROGRESS: u64 = 5;

/// The results of a queue as one reader prints them, over all lives of the coordinator.
struct Reader {
    file: File,
    lines: u64,
}

impl Reader {
    fn open(path: &Path) -> Self {
        let file = File::open(path).expect("the reader's output");
        Self { file, lines: 0 }
    }

    /// Whole lines so far.
    fn lines(&mut self) -> u64 {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).expect("read");
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lines
    }
}

/// A pipe with a name; what is written into it is put, line after line, by one client.
fn pipe(home: &Home) -> PathBuf {
    let path = home.path("payloads");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo").success());
    path
}

/// Writes payloads while there are few that wait; tells how many.
fn feed(pipe: &Path, came: &AtomicU64, enough: &AtomicBool) -> u64 {
    // For reading, too: nothing blocks here when the client that reads is gone.
    let mut options = OpenOptions::new();
    let pipe = options.read(true).write(true).open(pipe);
    let mut pipe = pipe.expect("a pipe");
    let mut put = 0;
    while put == 0 || !enough.load(Ordering::Relaxed) {
        if put < came.load(Ordering::Relaxed) + BACKLOG_MAX {
            let lines: String = (put..put + CHUNK).map(|n| format!("{n}\n")).collect();
            pipe.write_all(lines.as_bytes()).expect("somebody reads");
            put += CHUNK;
        }
        thread::sleep(Duration::from_millis(5));
    }
    put
}

/// Says that it is enough, also when the test fails.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn text(result: &Value) -> u64 {
    let transcript = result["transcript"].as_array().expect("a transcript");
    let user = transcript.iter().find(|message| message["role"] == "user");
    let text = user.and_then(|message| message["content"].as_str());
    text.and_then(|text| text.parse().ok()).expect("a payload")
}

/// A coordinator and its workers.
struct Players<'h> {
    coordinator: Role<'h>,
    workers: [Role<'h>; WORKERS],
}

impl<'h> Players<'h> {
    fn start(home: &'h Home, data: &str) -> Self {
        let command = ["coordinator", "--data-dir", data, "--max-workers", "0"];
        let coordinator = Role::start(home, &command);
        until("the cluster answers", || snapshot(home, Path::new(data)));
        let play = ["worker", "--cluster", data, "--scripted", "--slots", "8"];
        let workers = [(); WORKERS].map(|()| Role::start(home, &play));
        Self {
            coordinator,
            workers,
        }
    }

    /// Kills everybody as often as is due while results come; tells how many kills that were.
    fn kill(&mut self, torture: &mut Torture, reader: &mut Reader, came: &AtomicU64) -> u64 {
        let mut left = BTreeMap::from([("coordinator", torture.kills), ("worker", torture.kills)]);
        let mut done = 0;
        while let Some(victim) = torture.victim(&left) {
            torture.pause(PAUSE_MS_MAX);
            match victim {
                "coordinator" => self.coordinator.kill(),
                _ => self.workers[torture.rng.below(WORKERS as u64) as usize].kill(),
            }
            *left.entry(victim).or_default() -= 1;
            done += 1;
            let before = came.load(Ordering::Relaxed);
            until("a further result", || {
                let now = reader.lines();
                came.store(now, Ordering::Relaxed);
                (now > before || done % KILLS_PER_PROGRESS != 0).then_some(())
            });
        }
        done
    }

    fn stop(self) {
        for role in self.workers.into_iter().chain([self.coordinator]) {
            role.assert_said_nothing_bad();
            role.stop();
        }
    }
}

/// Each index once, each payload once, all with a reward.
#[track_caller]
fn assert_each_played_once(results: &[Value], total: u64) {
    assert_each_once(results, total);
    let played: BTreeSet<u64> = results.iter().map(text).collect();
    assert!(played.into_iter().eq(0..total), "a payload twice");
    let failed = results.iter().find(|result| !result["reward"].is_number());
    assert_eq!(failed, None, "a result without a reward");
}

#[test]
fn every_payload_has_one_result_although_coordinator_and_workers_are_killed() {
    let mut torture = Torture::new("queue");
    let home = Home::new();
    let data = home.path("data").display().to_string();
    let mut players = Players::start(&home, &data);
    let address = address(Path::new(&data)).expect("it was announced");
    let at = ["--json", "--addr", &address];

    let pipe = pipe(&home);
    let file = pipe.display().to_string();
    // No payload is poison, however often its worker was killed.
    let put = ["put", "echo", "--queue=torture", "--losses=1000000"];
    let put = home.start(&[&put[..], &["--payload", &file], &at].concat());
    let (came, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let ends = Enough(&enough);
        let feeder = scope.spawn(|| feed(&pipe, &came, &enough));
        let job = until("the queue", || {
            let listed = home.run(&[&["job", "list"][..], &at].concat()).objects();
            let job = listed.first()?["jobs"][0]["job"].as_str();
            job.map(str::to_owned)
        });
        let read = ["job", "results", &job, "--follow"];
        let read = home.start(&[&read[..], &at].concat());
        let mut reader = Reader::open(read.out());
        let done = players.kill(&mut torture, &mut reader, &came);
        drop(ends);
        let total = feeder.join().expect("the feeder");
        let put = put.end().with(0).objects().remove(0);
        assert_eq!(put["rollouts"], total);
        until("the last result", || {
            (reader.lines() >= total).then_some(())
        });
        let cancel = ["job", "cancel", &job];
        home.run(&[&cancel[..], &at[1..]].concat()).with(0);
        assert_each_played_once(&read.end().with(0).objects(), total);
        say(&format!("{done} kills, {total} payloads"));
    });
    players.stop();
    home.run(&["journal", "verify", &data]).with(0);
}
