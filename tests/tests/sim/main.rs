//! Whole clusters in virtual time: the real cores of coordinator, workers and learner over a
//! network that loses sessions, on machines that crash, with clocks that jump.
//!
//! `VOLLEY_SIM_SEED=17 cargo test -p volley-tests --test sim` replays one seed;
//! `VOLLEY_SIM_RUNS=5000` looks for longer. A failing run prints its seed and the last events.

mod chaos;
mod client_node;
mod coordinator_node;
mod learner_node;
mod ledger;
mod worker_node;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use volley_testkit::Trace;
use world::{Outcome, Plant, World};

/// Runs of the default test: bounded by count, so that every machine proves the same.
const RUNS: u64 = 400;
/// First seed of the default test.
const FIRST_SEED: u64 = 1;

fn attempt(seed: u64, plant: Option<Plant>, lines: bool) -> Result<Outcome, String> {
    let trace = Rc::new(RefCell::new(if lines {
        Trace::with_lines()
    } else {
        Trace::default()
    }));
    let run = {
        let trace = Rc::clone(&trace);
        move || World::new(seed, plant, trace).run()
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_else(|| "a panic without words".into());
        format!("{text}\n{}", trace.borrow().tail())
    })
}

/// Runs a seed; a failure is repeated with its events written down.
fn run(seed: u64) -> Outcome {
    attempt(seed, None, false).unwrap_or_else(|_| {
        let again = attempt(seed, None, true).expect_err("equal seeds fail alike");
        panic!(
            "seed {seed} failed:\n{again}\nreplay: VOLLEY_SIM_SEED={seed} cargo test -p volley-tests --test sim"
        );
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "which seeds to replay is asked of the test alone"
)]
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn clusters_keep_their_promises() {
    let only = number("VOLLEY_SIM_SEED");
    let runs = number("VOLLEY_SIM_RUNS").unwrap_or(RUNS);
    let seeds = only.map_or(FIRST_SEED..FIRST_SEED + runs, |seed| seed..seed + 1);
    let (mut hours, mut total) = (0.0, Outcome::default());
    for seed in seeds {
        let outcome = run(seed);
        hours += outcome.simulated_ms as f64 / 3_600_000.0;
        total.add(&outcome);
    }
    println!("{hours:.0} simulated hours: {total:?}");
    if only.is_none() {
        let busy = [
            total.coordinator_crashes,
            total.learner_crashes,
            total.worker_deaths,
        ];
        assert!(
            busy.iter().all(|n| *n > 0),
            "the runs were too kind: {total:?}"
        );
        assert!(
            total.settled > 0 && total.steps > 0 && total.retries > 0,
            "{total:?}"
        );
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in [3, 4] {
        let (one, two) = (run(seed), run(seed));
        assert_eq!(one.hash, two.hash, "seed {seed}");
        assert_ne!(one.hash, run(seed + 100).hash);
    }
}

/// A defect that is planted on purpose must be found within so many seeds.
fn must_be_found(plant: Plant, by: &str) {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (1..=60).find_map(|seed| attempt(seed, Some(plant), false).err());
    std::panic::set_hook(silent);
    let found = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
    assert!(
        found.contains(by),
        "{plant:?} was found by something else:\n{found}"
    );
}

#[test]
fn planted_defects_are_found() {
    must_be_found(Plant::IgnoreCredit, "leases_within_credit");
    must_be_found(Plant::ForgetPins, "groups_keep_their_version");
    must_be_found(Plant::AcknowledgeEarly, "acknowledged_is_durable");
    must_be_found(Plant::KeepDuplicates, "closed_once");
    must_be_found(Plant::ForgetHeld, "held_is_not_leased_again");
    must_be_found(Plant::LoseReceipts, "ledgers_agree");
}
