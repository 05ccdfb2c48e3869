//! A run whose learner, coordinator and workers are killed: it trains on every rollout that is due,
//! on none twice, and where a run without kills is determined it ends with the same adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::Signal;
use serde_json::Value;
use volley_runtime::run_dir::RunDir;

use super::{Role, Torture, say};
use crate::cluster::address;
use crate::home::Home;
use crate::process::{self, until};
use crate::recipe::{Recipe, adapter, model};

/// Many short steps.
const RECIPE: Recipe = Recipe {
    steps: 60,
    groups: 2,
    group_size: 4,
    compute: "f32",
    kl_penalty: 0.0,
};

/// Keys that make restarts interesting: a few steps are replayed, old versions go.
const KEYS: &str = "[train]\ncheckpoint_every = 5\nretain_versions = 3\n";

/// Longest wait before a kill: longer than a learner needs until it trains.
const PAUSE_MS_MAX: u64 = 500;

/// After so many kills there has to be a further step before the next one.
const KILLS_PER_STEP: u64 = 3;

/// A worker is killed for each so many kills of the other roles: the coordinator pauses before it
/// replaces a worker that was the fourth to end within a minute.
const KILLS_PER_WORKER: u64 = 20;

/// A learner and a coordinator with its workers.
struct Run<'h> {
    home: &'h Home,
    coordinator: Role<'h>,
    learner: Role<'h>,
}

impl<'h> Run<'h> {
    fn start(home: &'h Home, schedule: &str) -> Self {
        let text = RECIPE.text().replace("[train]\n", KEYS);
        let schedule = format!("schedule = \"{schedule}\"");
        let text = text.replace("schedule = \"sync\"", &schedule);
        let path = home.write("recipe.toml", text);
        let recipe = volley_runtime::recipe::Recipe::load(&path).expect("a recipe");
        let run = RunDir::create_at(&home.path("run"), &recipe).expect("a run directory");
        let data = run.coordinator();
        let (data_dir, model) = (data.display().to_string(), model().display().to_string());
        let command = ["coordinator", "--data-dir", &data_dir, "--model", &model];
        let options = ["--max-workers", "2", "--keep-warm", "2"];
        let coordinator = Role::start(home, &[&command[..], &options].concat());
        until("a cluster", || address(&data));
        let learner = ["learner", "--run-dir", "run", "--cluster", &data_dir];
        let learner = Role::start(home, &learner);
        Self {
            home,
            coordinator,
            learner,
        }
    }

    /// The text of the step records up to its last whole line.
    fn records(&self) -> String {
        let text = fs::read_to_string(self.home.path("run/steps.jsonl")).unwrap_or_default();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].to_owned()
    }

    fn is_finished(&self) -> bool {
        let metrics = fs::read_to_string(self.home.path("run/metrics.jsonl")).unwrap_or_default();
        metrics.lines().count() as u64 == RECIPE.steps && metrics.ends_with('\n')
    }

    /// Kills somebody; false if there was nobody.
    fn kill(&mut self, torture: &mut Torture, victim: &str) -> bool {
        match victim {
            "learner" => self.learner.kill(),
            "coordinator" => self.coordinator.kill(),
            _ => {
                let pids = self.home.pids("worker");
                let Some(pid) = torture.rng.pick(&pids) else {
                    return false;
                };
                process::signal(*pid, Signal::KILL);
            }
        }
        true
    }

    /// Waits for its end, and stops it as its launcher would. Tells its step records.
    fn end(mut self) -> Vec<Value> {
        until("the last step", || {
            self.learner.assert_lives();
            self.coordinator.assert_lives();
            self.is_finished().then_some(())
        });
        let records = self.records();
        for role in [self.learner, self.coordinator] {
            let done = role.stop();
            assert!(!done.err.contains("RESULTS_LOST"), "{}", done.err);
        }
        let verified = self.home.run(&["journal", "verify", "run"]);
        assert_eq!(verified.status, Some(0), "{}", verified.out);
        let parse = |line| serde_json::from_str(line).expect("a record");
        records.lines().map(parse).collect()
    }
}

/// What the record of a step says about its groups and versions.
#[track_caller]
fn assert_each_consumed_once(records: &[Value]) {
    assert_eq!(records.len() as u64, RECIPE.steps);
    let mut consumed = BTreeSet::new();
    for (record, step) in records.iter().zip(1u64..) {
        assert_eq!(record["step"], step);
        assert_eq!(record["lineage"], 0);
        assert_eq!(record["failed"].as_array().map(Vec::len), Some(0));
        let groups = record["groups"].as_array().expect("groups");
        for group in groups {
            assert_eq!(group["degraded"], false);
            for member in group["members"].as_array().expect("members") {
                let member = member.as_u64().expect("an index");
                assert!(consumed.insert(member), "rollout {member} twice: {record}");
            }
        }
    }
    for pair in records.windows(2) {
        assert_eq!(pair[0]["digest"], pair[1]["parent"]);
    }
}

/// The records of a run that nobody disturbs, and its last adapter.
fn undisturbed() -> &'static (Vec<Value>, Vec<u8>) {
    static RUN: OnceLock<(Vec<Value>, Vec<u8>)> = OnceLock::new();
    RUN.get_or_init(|| {
        let home = Home::new();
        let records = Run::start(&home, "sync").end();
        assert_each_consumed_once(&records);
        (records, adapter(&home.path("run"), RECIPE.steps))
    })
}

/// Runs until everybody was killed often enough; `check` sees each run at its end.
fn torture(schedule: &str, check: impl Fn(&Path, &[Value])) {
    let mut torture = Torture::new(schedule);
    let kills = torture.kills;
    let mut left = BTreeMap::from([
        ("coordinator", kills),
        ("learner", kills),
        ("worker", kills.div_ceil(KILLS_PER_WORKER)),
    ]);
    let mut runs = 0;
    while left.values().any(|left| *left > 0) {
        let home = Home::new();
        let mut run = Run::start(&home, schedule);
        let mut before = String::new();
        let mut here = 0;
        while let Some(victim) = torture.victim(&left) {
            torture.pause(PAUSE_MS_MAX);
            if run.is_finished() {
                break;
            }
            if !run.kill(&mut torture, victim) {
                continue;
            }
            *left.entry(victim).or_default() -= 1;
            here += 1;
            let records = until("a further step", || {
                let records = run.records();
                let further = records.len() > before.len() || run.is_finished();
                (further || here % KILLS_PER_STEP != 0).then_some(records)
            });
            let kept = records.starts_with(&before);
            assert!(kept, "other steps:\n{records}than before:\n{before}");
            before = records;
        }
        let records = run.end();
        assert_each_consumed_once(&records);
        check(&home.path("run"), &records);
        runs += 1;
        say(&format!("run {runs}: {here} kills; left: {left:?}"));
    }
}

#[test]
fn a_synchronous_run_ends_with_the_same_adapter_whoever_is_killed() {
    let (undisturbed, last) = undisturbed();
    torture("sync", |run, records| {
        for (record, due) in records.iter().zip(undisturbed) {
            assert_eq!(record["digest"], due["digest"], "step {}", due["step"]);
            assert_eq!(record["groups"], due["groups"], "step {}", due["step"]);
        }
        assert!(adapter(run, RECIPE.steps) == *last, "another adapter");
    });
}

#[test]
fn an_asynchronous_run_trains_on_each_rollout_once_whoever_is_killed() {
    torture("async", |_, _| {});
}
