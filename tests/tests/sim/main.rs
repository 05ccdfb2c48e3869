//! Whole clusters in virtual time: the real cores of coordinator, workers and learner over a
//! network that loses sessions and reorders streams, on machines that crash, stall, fill their
//! disks and lose what was not synced, with clocks that jump.
//!
//! `VOLLEY_SIM_SEED=17 cargo test -p volley-tests --test sim clusters` replays one seed;
//! `VOLLEY_SIM_RUNS=5000` looks for longer, `VOLLEY_SIM_FIRST=1000000` elsewhere (`just night` does
//! both). A failing run prints its seed and the last events,
//! more of them with `VOLLEY_SIM_LINES=100000`.
//! Each run is one simulated hour.

mod chaos;
mod client_node;
mod coordinator_node;
mod events;
mod learner_node;
mod learner_steps;
mod ledger;
mod outcome;
mod plants;
mod promises;
mod relay;
mod runs;
mod topology;
mod worker_node;
mod world;

use std::collections::BTreeSet;

use outcome::Outcome;
use plants::{PLANT_SEEDS, PLANTS};
use runs::{attempt, number, run, run_all};

/// Runs of the default test: bounded by count, so that every machine proves the same.
const RUNS: u64 = 1_000;
/// First seed of the default test.
const FIRST_SEED: u64 = 1;

/// Runs them all; what they amounted to, in words.
fn clusters(first: u64, runs: u64) -> String {
    let total = run_all(first..first + runs);
    let hours = total.simulated_ms / 3_600_000;
    assert!(hours >= runs, "{hours} hours in {runs} runs");
    let trouble = total.kinds_of_trouble();
    assert!(
        trouble.iter().all(|n| *n > 0),
        "the runs were too kind: {total:?}"
    );
    let work = [total.settled, total.read, total.steps, total.retries];
    assert!(work.iter().all(|n| *n > 0), "nothing was done: {total:?}");
    format!("{hours} simulated hours, 0 lost, 0 duplicated, 0 stuck: {total:#?}")
}

#[test]
fn clusters_keep_their_promises() {
    if let Some(seed) = number("VOLLEY_SIM_SEED") {
        println!("seed {seed}: {:#?}", run(seed));
        return;
    }
    let runs = number("VOLLEY_SIM_RUNS").unwrap_or(RUNS);
    let first = number("VOLLEY_SIM_FIRST").unwrap_or(FIRST_SEED);
    println!("{}", clusters(first, runs));
}

#[test]
fn equal_seeds_give_equal_traces() {
    let hashes = |outcome: Outcome| (outcome.hash, outcome.text_hash, outcome.events);
    let with_lines = |seed| attempt(seed, None, true).unwrap_or_else(|why| panic!("{seed}: {why}"));
    for seed in [3, 4, 5, 6, 7, 8, 9, 10] {
        let (one, two) = (hashes(with_lines(seed)), hashes(with_lines(seed)));
        assert_eq!(one, two, "seed {seed}");
        assert_ne!(one.0, run(seed + 100).hash);
    }
}

#[test]
fn planted_defects_are_found_by_what_is_meant_to_find_them() {
    let mut missed = Vec::new();
    for (plant, by) in PLANTS {
        let mut others = BTreeSet::new();
        let found = (1..=number("VOLLEY_SIM_PLANT_SEEDS").unwrap_or(PLANT_SEEDS)).find(|seed| {
            let name = attempt(*seed, Some(plant), false).err().map(|failure| {
                let words = failure.split(':').next().unwrap_or_default();
                words.to_owned()
            });
            let meant = name.as_deref() == Some(by);
            others.extend(name.filter(|_| !meant));
            meant
        });
        match found {
            Some(seed) => println!("{plant:?}: {by} with seed {seed}; before it {others:?}"),
            None => missed.push(format!("{plant:?} by {by}, only by {others:?}")),
        }
    }
    assert!(
        missed.is_empty(),
        "not found within {PLANT_SEEDS} seeds: {missed:#?}"
    );
}
