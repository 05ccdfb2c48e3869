//! Environments that break: every rollout ends with its code, and the cluster goes on.

use crate::cluster::{Cluster, address, assert_each_once};
use crate::home::Home;
use crate::process::until;
use crate::recipe::Recipe;

#[test]
fn broken_environments_end_with_their_codes() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    for (mode, code) in [
        ("panic", "ENV_PANIC"),
        ("nan", "REWARD_INVALID"),
        ("no_reward", "REWARD_INVALID"),
        ("error", "ENV_FAILED"),
    ] {
        let option = format!("mode={mode}");
        let map = [
            "map", "faulty", "--option", &option, "--seeds", "0..4", "--json",
        ];
        let map = cluster.ask(&map).with(1);
        let results = map.objects();
        assert_each_once(&results, 4);
        for result in results {
            let error = &result["error"];
            let message = error["message"].as_str().unwrap_or_default();
            assert_eq!(error["code"], "ATTEMPTS_EXHAUSTED", "{mode}: {message}");
            assert!(message.contains(code), "{mode}: {message}");
        }
        cluster.still_serves();
    }
}

#[test]
fn an_unknown_environment_is_told_at_once() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let map = cluster.ask(&["map", "rooting", "--seeds", "0..2"]).with(2);
    assert!(map.err.contains("error[ENV_UNKNOWN]"), "{}", map.err);
    assert!(map.err.contains("did you mean 'routing'?"), "{}", map.err);
    let option = ["map", "faulty", "--option", "mode=sloow", "--seeds", "0..2"];
    let map = cluster.ask(&option);
    assert_ne!(map.status, Some(0), "{}", map.err);
    cluster.still_serves();
}

#[test]
fn an_evaluation_that_failed_is_played_again_when_the_run_is_resumed() {
    let home = Home::new();
    let text = Recipe::TINY.text().replace("routing", "faulty");
    let options = "[environment_options]\nmode = \"error\"\n\n[train]";
    home.write("recipe.toml", text.replace("[train]", options));
    let begun = home.run(&["train", "recipe.toml", "--run-dir", "run"]);
    assert!(begun.with(1).err.contains("ENV_FAILED"));
    let resumed = home.run(&["train", "--resume", "--run-dir", "run"]);
    assert!(resumed.with(1).err.contains("ENV_FAILED"));

    let data_dir = home.path("run/coordinator").display().to_string();
    let _coordinator = home.start(&["coordinator", "--data-dir", &data_dir, "--max-workers=0"]);
    let jobs = until("the run's coordinator answers", || {
        let address = address(data_dir.as_ref())?;
        let list = home.run(&["job", "list", "--json", "--addr", &address]);
        (list.status == Some(0)).then(|| list.objects())
    });
    let jobs = jobs[0]["jobs"].as_array().expect("a list of jobs").clone();
    for name in ["evaluate greedy at step 0", "evaluate sampled at step 0"] {
        let tries = jobs.iter().filter(|job| job["name"] == name).count();
        assert_eq!(tries, 2, "{name}: {jobs:?}");
    }
}
