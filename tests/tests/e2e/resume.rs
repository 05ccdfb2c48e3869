//! Runs that are interrupted, killed and stopped end with the same adapter, to the bit.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::snapshot;
use crate::home::{Done, Home};
use crate::process::{self, until};
use crate::recipe::{Recipe, adapter, event, wait_for_step};

const RECIPE: Recipe = Recipe::LONGER;

/// Longer than the five seconds after which a silent peer counts as lost.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Workers of the recipe.
const WORKERS: usize = 2;

/// The last adapter of a run that nobody disturbs.
fn undisturbed() -> &'static [u8] {
    static ADAPTER: OnceLock<Vec<u8>> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let home = Home::new();
        RECIPE.start(&home).end().with(0);
        adapter(&home.path("run"), RECIPE.steps)
    })
}

/// The run of this home is finished, without mismatch, with the adapter that is due.
#[track_caller]
fn assert_as_undisturbed(home: &Home, done: Done) {
    let finished = event(&done.with(0).objects(), "finished");
    assert_eq!(finished["steps"], RECIPE.steps);
    assert_eq!(finished["mismatch_max"], 0.0);
    let same = adapter(&home.path("run"), RECIPE.steps) == undisturbed();
    assert!(same, "another adapter than without the disturbance");
}

#[test]
fn an_interrupted_run_resumes_to_the_bit() {
    let home = Home::new();
    let mut run = RECIPE.start(&home);
    wait_for_step(&mut run, 2);
    run.signal(Signal::INT);
    let stopped = run.end().with(130);
    assert!(
        stopped.err.contains("error[INTERRUPTED]"),
        "{}",
        stopped.err
    );
    until("the end of every process", || {
        home.processes().is_empty().then_some(())
    });

    let resumed = home.run(&["train", "--resume", "--run-dir", "run", "--json"]);
    assert_as_undisturbed(&home, resumed);
}

#[test]
fn a_run_whose_newest_checkpoint_and_adapter_are_damaged_resumes_to_the_bit() {
    let recipe = RECIPE
        .text()
        .replace("[train]\n", "[train]\ncheckpoint_every = 1\n");
    let home = Home::new();
    home.write("recipe.toml", recipe);
    let train = [
        "train",
        "recipe.toml",
        "--run-dir",
        "run",
        "--seed",
        "7",
        "--json",
    ];
    let mut run = home.start(&train);
    wait_for_step(&mut run, 3);
    run.signal(Signal::INT);
    run.end().with(130);
    until("the end of every process", || {
        home.processes().is_empty().then_some(())
    });

    let newest = |folder: &str, name: &dyn Fn(u64) -> String| {
        let place = home.path("run").join(folder);
        let paths = (1..=RECIPE.steps).rev().map(|step| place.join(name(step)));
        let mut there = paths.filter(|path| path.exists());
        there.next().expect("one was written")
    };
    let state = newest("checkpoints", &|step| format!("step-{step:06}.state"));
    let weights = newest("adapters", &|step| {
        format!("step-{step:06}/adapter_model.safetensors")
    });
    for path in [&state, &weights] {
        let mut bytes = std::fs::read(path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 16;
        std::fs::write(path, bytes).expect("write");
    }
    let told = home.run(&["journal", "verify", "run", "--json"]).with(1);
    assert_eq!(told.objects()[0]["damaged"], 2, "{}", told.out);

    let resumed = home.run(&["train", "--resume", "--run-dir", "run", "--json"]);
    assert_as_undisturbed(&home, resumed);
    home.run(&["journal", "verify", "run"]).with(0);
}

#[test]
fn a_version_that_is_the_reference_outlives_its_collection_and_a_killed_learner() {
    let recipe = Recipe {
        kl_penalty: 0.2,
        ..RECIPE
    };
    // Version 1 is no longer among the adapters when it is still pulled towards.
    let keys = "[train]\nkl_reference = \"step:1\"\nretain_versions = 1\ncheckpoint_every = 2\n";
    let text = recipe.text().replace("[train]\n", keys);
    let last = |kill: bool| {
        let home = Home::new();
        home.write("recipe.toml", text.clone());
        let mut run = home.start(&["train", "recipe.toml", "--run-dir", "run", "--json"]);
        if kill {
            wait_for_step(&mut run, 3);
            let learner = home.pids("learner").pop().expect("a learner at work");
            process::signal(learner, Signal::KILL);
        }
        let events = run.end().with(0).objects();
        let metric = event(&events, "step")["report"]["metrics"]["kl_reference"].as_f64();
        assert!(metric.is_some_and(|kl| kl.is_finite() && kl != 0.0));
        assert!(!home.path("run/adapters/step-000001").exists());
        assert!(home.path("run/reference/adapter_config.json").exists());
        adapter(&home.path("run"), recipe.steps)
    };
    let same = last(false) == last(true);
    assert!(same, "another adapter than without the disturbance");
}

#[test]
fn a_killed_learner_goes_on_to_the_bit() {
    let home = Home::new();
    let mut run = RECIPE.start(&home);
    wait_for_step(&mut run, 2);
    let learner = home.pids("learner").pop().expect("a learner at work");
    process::signal(learner, Signal::KILL);
    assert_as_undisturbed(&home, run.end());
}

#[test]
fn a_learner_that_stands_still_loses_nothing_and_wakes_no_workers() {
    let home = Home::new();
    let mut run = RECIPE.start(&home);
    wait_for_step(&mut run, 1);
    until("both workers", || {
        (home.pids("worker").len() == WORKERS).then_some(())
    });
    let learner = home.pids("learner").pop().expect("a learner at work");
    process::signal(learner, Signal::STOP);
    let begun = Instant::now();
    let coordinator = home.path("run/coordinator");
    while begun.elapsed() < STANDSTILL {
        let seen = snapshot(&home, &coordinator).expect("the coordinator answers");
        let present = seen["workers"].as_array().map_or(0, Vec::len);
        assert!(present <= WORKERS, "{present} workers");
        assert!(home.pids("worker").len() <= WORKERS);
        thread::sleep(Duration::from_millis(200));
    }
    process::signal(learner, Signal::CONT);
    assert_as_undisturbed(&home, run.end());
}
