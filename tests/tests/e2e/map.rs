//! `volley map` gives every result once, whoever dies meanwhile.

use rustix::process::Signal;

use crate::cluster::{Cluster, assert_complete};
use crate::home::Home;
use crate::process;

/// A worker plays these one after the other, two milliseconds each: however fast the machine, two
/// workers need three seconds.
const SLOW: [&str; 9] = [
    "map",
    "faulty",
    "--option=mode=slow",
    "--option=sleep_ms=2",
    "--seeds",
    "0..3000",
    "--json",
    "--retries",
    "8",
];

#[test]
fn every_result_comes_once() {
    let home = Home::new();
    let cluster = Cluster::up(&home, &[]);
    let map = cluster.ask(&["map", "arithmetic", "--seeds", "0..1000", "--json"]);
    assert_complete(&map.with(0), 1_000);
}

#[test]
fn a_stop_string_ends_every_turn_and_the_episode_goes_on() {
    let home = Home::new();
    let cluster = Cluster::up(&home, &[]);
    let guess = ["map", "guess", "--seeds", "0..16", "--top-k", "1", "--json"];
    // The likeliest first guess is 13, which becomes a 1.
    let said = |stop: &[&str]| -> Vec<String> {
        let results = cluster.ask(&[&guess[..], stop].concat()).with(0).objects();
        let turns = results.iter().flat_map(|result| {
            let transcript = result["transcript"].as_array().expect("a transcript");
            let by_policy = transcript.iter().filter(|m| m["role"] == "assistant");
            by_policy.map(|m| m["content"].as_str().expect("a text").to_owned())
        });
        turns.collect()
    };
    assert!(said(&[]).iter().any(|text| text.contains('3')));
    let stopped = said(&["--stop", "3", "--stop", "never"]);
    assert!(stopped.len() > 16, "episodes of several turns: {stopped:?}");
    assert!(
        stopped.iter().all(|text| !text.contains('3')),
        "{stopped:?}"
    );
}

#[test]
fn a_killed_worker_costs_no_result() {
    let home = Home::new();
    let cluster = Cluster::up(&home, &[]);
    let mut map = cluster.begin(&SLOW);
    map.wait_for_lines(100);
    let victim = home.pids("worker").pop().expect("a worker at work");
    process::signal(victim, Signal::KILL);
    assert_complete(&map.end().with(0), 3_000);
    let pids = home.pids("worker");
    assert!(!pids.contains(&victim), "a killed worker lives on");
}

#[test]
fn a_killed_coordinator_is_started_again_by_its_launcher() {
    let home = Home::new();
    let cluster = Cluster::up(&home, &["--scripted"]);
    let before = cluster.coordinator_pid();
    let mut map = cluster.begin(&SLOW);
    map.wait_for_lines(100);
    cluster.kill_coordinator();
    assert_complete(&map.end().with(0), 3_000);
    assert_ne!(cluster.coordinator_pid(), before);
    cluster.still_serves();
}

#[test]
fn a_killed_coordinator_goes_on_when_it_is_started_again_by_hand() {
    let home = Home::new();
    let mut cluster = Cluster::scripted(&home, &[]);
    let mut map = cluster.begin(&SLOW);
    map.wait_for_lines(100);
    cluster.kill_coordinator();
    cluster.start_again();
    assert_complete(&map.end().with(0), 3_000);
    cluster.still_serves();
}
