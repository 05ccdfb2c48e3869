//! `volley journal` on directories as a stopped cluster leaves them, and as nobody should.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, assert_complete};
use crate::home::Home;
use crate::process::until;
use crate::recipe::Recipe;

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("read");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("write");
}

fn results_of(data: &Path) -> PathBuf {
    let entries = fs::read_dir(data.join("results")).expect("results");
    let mut paths = entries.map(|entry| entry.expect("entry").path());
    let is_results = |path: &PathBuf| path.extension().is_some_and(|e| e == "results");
    paths.find(is_results).expect("a job's results")
}

fn files(home: &Home, place: &str, status: i32) -> Vec<Value> {
    let done = home
        .run(&["journal", "verify", place, "--json"])
        .with(status);
    let told = done.objects().pop().expect("an object");
    assert_eq!(told["schema"], "volley.journal/1");
    told["files"].as_array().expect("files").clone()
}

fn of_kind<'a>(files: &'a [Value], kind: &str) -> &'a Value {
    let found = files.iter().find(|file| file["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}: {files:?}"))
}

/// A data directory with one job of 40 rollouts, at rest after this signal.
fn rested(home: &Home, signal: Signal) -> Cluster<'_> {
    let mut cluster = Cluster::scripted(home, &[]);
    let map = cluster.ask(&["map", "arithmetic", "--seeds", "0..40", "--json"]);
    assert_complete(&map.with(0), 40);
    let busy = home.run(&["journal", "verify", "data"]).with(75);
    assert!(busy.err.contains("error[DATA_DIR_LOCKED]"), "{}", busy.err);
    cluster.root.signal(signal);
    until("the end of the coordinator", || {
        cluster.root.has_ended().then_some(())
    });
    cluster
}

#[test]
fn damaged_results_are_found_refused_and_repaired_and_what_is_lost_is_reported() {
    let home = Home::new();
    let mut cluster = rested(&home, Signal::TERM);
    let before = files(&home, "data", 0);
    assert_eq!(of_kind(&before, "store")["state"], "whole");
    let results = of_kind(&before, "results");
    assert_eq!(
        (&results["state"], &results["records"]),
        (&"sealed".into(), &40.into())
    );

    let path = results_of(&cluster.data_dir);
    flip(&path, 400);
    let damaged = files(&home, "data", 1);
    let found = of_kind(&damaged, "results");
    assert_eq!(found["state"], "damaged");
    assert!(found["offset"].as_u64().is_some_and(|offset| offset < 400));

    cluster.start_again_at_once();
    until("the end of the coordinator", || {
        cluster.root.has_ended().then_some(())
    });
    let said = cluster.root.err();
    assert!(
        said.contains("error[STORE_FAILED]") && said.contains("damaged at byte"),
        "{said}"
    );
    assert!(said.contains("volley journal repair"), "{said}");

    let mended = home.run(&["journal", "repair", "data", "--json"]).with(0);
    let mended = mended.objects().pop().expect("an object");
    let copy = mended["files"][0]["copy"]
        .as_str()
        .expect("a copy")
        .to_owned();
    assert!(home.path(&copy).exists(), "{copy}");
    let lost = mended["files"][0]["lost"].as_str().expect("a text");
    assert!(lost.contains("39 records are whole"), "{lost}");
    assert_eq!(
        of_kind(&files(&home, "data", 0), "results")["state"],
        "repaired"
    );

    cluster.start_again();
    until("the report", || {
        cluster
            .root
            .err()
            .contains("RESULTS_LOST: 1 acknowledged results")
            .then_some(())
    });
    until("an answer", || {
        crate::cluster::snapshot(&home, &cluster.data_dir).map(drop)
    });
    let problems = cluster.snapshot()["notices"].to_string();
    assert!(problems.contains("RESULTS_LOST"), "{problems}");
    cluster.still_serves();
}

#[test]
fn results_that_were_cut_off_are_reported() {
    let home = Home::new();
    let mut cluster = rested(&home, Signal::TERM);
    let path = results_of(&cluster.data_dir);
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("write");
    cluster.start_again();
    until("the report", || {
        let said = cluster.root.err();
        let reported = said.contains("RESULTS_LOST") && said.contains("not played again");
        reported.then_some(())
    });
    until("an answer", || {
        crate::cluster::snapshot(&home, &cluster.data_dir).map(drop)
    });
    cluster.still_serves();
}

#[test]
fn a_damaged_store_is_found_refused_and_repaired() {
    let home = Home::new();
    // Killed, it leaves its log as it is.
    let mut cluster = rested(&home, Signal::KILL);
    let store = cluster.data_dir.join("coordinator.db-wal");
    // The first of several commits in the log.
    flip(&store, 32 + 24 + 2000);
    let found = files(&home, "data", 1);
    let what = of_kind(&found, "store")["what"].to_string();
    assert!(
        what.contains("coordinator.db-wal") && what.contains("synced once"),
        "{what}"
    );
    let before = fs::read(&store).expect("read");

    cluster.start_again_at_once();
    until("the end of the coordinator", || {
        cluster.root.has_ended().then_some(())
    });
    let said = cluster.root.err();
    assert!(
        said.contains("error[STORE_FAILED]") && said.contains("damaged at byte 32"),
        "{said}"
    );
    assert_eq!(fs::read(&store).expect("read"), before, "left as it was");

    let told = home.run(&["journal", "repair", "data"]).with(0);
    assert!(told.out.contains("as it was:"), "{}", told.out);
    files(&home, "data", 0);
    cluster.start_again();
    until("an answer", || {
        crate::cluster::snapshot(&home, &cluster.data_dir).map(drop)
    });
    cluster.still_serves();
}

#[test]
fn every_file_of_a_run_is_looked_at() {
    let home = Home::new();
    Recipe::TINY.start(&home).end().with(0);
    let kinds = [
        "steps",
        "metrics",
        "checkpoint",
        "adapter",
        "intake",
        "store",
    ];
    let whole = files(&home, "run", 0);
    for kind in kinds {
        let path = PathBuf::from(of_kind(&whole, kind)["file"].as_str().expect("a path"));
        let path = match kind {
            "adapter" => path.join("adapter_model.safetensors"),
            _ => path,
        };
        // The store is where its last life left it: in the log, or copied into the file.
        let log = path.with_extension("db-wal");
        let in_log = kind == "store" && fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        let path = if in_log { log } else { path };
        let bytes = fs::read(&path).expect("read");
        let places = match kind {
            // A digit may be another digit, the beginning of an object may not.
            "metrics" => vec![0],
            // The first of many commits: of the last one nobody can say.
            "store" if in_log => vec![1000],
            // Pages that are free keep what they held: all of them.
            "store" => {
                let name = b"\"JobAccepted\"";
                let found = bytes.windows(name.len()).enumerate();
                found
                    .filter(|(_, at)| *at == name)
                    .map(|(at, _)| at)
                    .collect()
            }
            _ => vec![bytes.len() / 2],
        };
        assert!(
            !places.is_empty(),
            "no place to damage in {}",
            path.display()
        );
        places.iter().for_each(|at| flip(&path, *at));
        let found = files(&home, "run", 1);
        assert_eq!(of_kind(&found, kind)["state"], "damaged", "{kind}");
        let damaged = found.iter().filter(|file| file["state"] == "damaged");
        assert_eq!(damaged.count(), 1, "{kind} alone");
        fs::write(&path, bytes).expect("write");
    }
    files(&home, "run", 0);
    let segment = of_kind(&whole, "intake")["file"].as_str().expect("a path");
    assert_eq!(files(&home, segment, 0).len(), 1);
    let nothing = home.run(&["journal", "verify", "state"]).with(74);
    assert!(nothing.err.contains("no data directory"), "{}", nothing.err);
}
