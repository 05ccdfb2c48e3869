//! `volley train` from the recipe to the report.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::cluster::snapshot;
use crate::home::Home;
use crate::process::until;
use crate::recipe::{Recipe, adapter, event};

/// A coordinator, a learner, two workers.
const PROCESSES: usize = 4;

fn pids(snapshot: &Value) -> BTreeSet<u64> {
    let workers = snapshot["workers"].as_array().into_iter().flatten();
    let workers = workers.map(|worker| &worker["pid"]);
    let learners = snapshot["learner_pids"].as_array().into_iter().flatten();
    let all = workers.chain(learners).chain([&snapshot["pid"]]);
    // A worker that is starting has none yet.
    all.filter_map(Value::as_u64)
        .filter(|pid| *pid != 0)
        .collect()
}

#[test]
fn the_monitor_shows_four_processes_that_live() {
    let home = Home::new();
    let mut run = Recipe::LONGER.start(&home);
    let coordinator = home.path("run/coordinator");
    let seen = until("four processes in the monitor", || {
        assert!(!run.has_ended(), "the run has ended: {}", run.err());
        let seen = pids(&snapshot(&home, &coordinator)?);
        (seen.len() == PROCESSES).then_some(seen)
    });
    let living = home.processes();
    for pid in seen {
        let lives = living.iter().any(|process| u64::from(process.pid) == pid);
        assert!(lives, "{pid} is not one of {living:?}");
    }
}

#[test]
fn a_run_in_bfloat16_has_no_mismatch_either() {
    let home = Home::new();
    let recipe = Recipe {
        compute: "bf16",
        ..Recipe::TINY
    };
    let done = recipe.start(&home).end().with(0);
    let finished = event(&done.objects(), "finished");
    assert_eq!(finished["mismatch_max"], 0.0);
    assert!(finished["mismatch_tokens"].as_u64() > Some(0), "{finished}");
}

#[test]
fn a_pull_towards_the_base_is_reported_and_changes_what_is_learnt() {
    let adapter_of = |kl_penalty| {
        let home = Home::new();
        let recipe = Recipe {
            kl_penalty,
            ..Recipe::TINY
        };
        let done = recipe.start(&home).end().with(0);
        let step = event(&done.objects(), "step");
        let kl = step["report"]["metrics"]["kl_base"].as_f64();
        (kl, adapter(&home.path("run"), Recipe::TINY.steps))
    };
    let (free, pulled) = (adapter_of(0.0), adapter_of(0.5));
    assert_eq!(free.0, None);
    assert!(pulled.0.is_some_and(f64::is_finite), "{:?}", pulled.0);
    assert_ne!(free.1, pulled.1);
}

#[test]
fn a_tiny_run_trains_without_mismatch_and_leaves_everything_behind() {
    let home = Home::new();
    let done = Recipe::TINY.start(&home).end().with(0);

    let events = done.objects();
    let finished = event(&events, "finished");
    assert_eq!(finished["mismatch_max"], 0.0);
    assert!(finished["mismatch_tokens"].as_u64() > Some(0), "{finished}");
    assert_eq!(finished["rollouts"], Recipe::TINY.rollouts());
    assert_eq!(finished["steps"], Recipe::TINY.steps);
    let run_dir = home.path("run");
    for step in 1..=Recipe::TINY.steps {
        assert!(!adapter(&run_dir, step).is_empty());
        let config = format!("adapters/step-{step:06}/adapter_config.json");
        let config = fs::read(run_dir.join(config)).expect("a PEFT configuration");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        assert_eq!(config["peft_type"], "LORA");
        assert_eq!(config["r"], 16);
        assert!(
            run_dir
                .join(format!("transcripts/step-{step:06}.md"))
                .exists()
        );
    }
    let metrics = fs::read_to_string(run_dir.join("metrics.jsonl")).expect("metrics");
    assert_eq!(metrics.lines().count() as u64, Recipe::TINY.steps);
    assert!(run_dir.join("checkpoints/step-000002.state").exists());
    let report = fs::read_to_string(run_dir.join("report.html")).expect("a report");
    assert!(report.contains("</html>"));
    until("the end of every process", || {
        home.processes().is_empty().then_some(())
    });
}
