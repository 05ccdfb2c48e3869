//! Wrong inputs are told with their code and exit status, before anything is started.

use std::fs;

use crate::cluster::Cluster;
use crate::home::{Done, Home};
use crate::recipe::{Recipe, model};

/// The exit status and every part of what is told.
#[track_caller]
fn assert_told(done: Done, status: i32, parts: &[&str]) {
    let done = done.with(status);
    for part in parts {
        assert!(done.err.contains(part), "no {part:?} in: {}", done.err);
    }
    assert!(!done.err.contains("panicked"), "{}", done.err);
}

/// Trains the tiny recipe with a part exchanged.
fn train(home: &Home, from: &str, to: &str) -> Done {
    let text = Recipe::TINY.text();
    assert!(text.contains(from), "{from:?} is not in the recipe");
    home.write("recipe.toml", text.replacen(from, to, 1));
    home.run(&["train", "recipe.toml", "--run-dir", "run"])
}

#[test]
fn a_model_that_is_missing_or_cut_off() {
    let home = Home::new();
    let there = format!("{:?}", model());
    let done = train(&home, &there, "\"nowhere\"");
    assert_told(done, 78, &["error[MODEL_NOT_FOUND]", "nowhere"]);

    let copy = home.path("cut");
    fs::create_dir(&copy).expect("a directory");
    for entry in fs::read_dir(model()).expect("the bundled model").flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copy");
    }
    let weights = copy.join("model.safetensors");
    let length = fs::metadata(&weights).expect("weights").len();
    for kept in [0, 7, 1_000, length - 1] {
        let file = fs::File::options()
            .write(true)
            .open(&weights)
            .expect("weights");
        fs::copy(model().join("model.safetensors"), &weights).expect("a copy");
        file.set_len(kept).expect("shorter");
        let done = train(&home, &there, "\"cut\"");
        assert_told(done, 78, &["error[MODEL_TRUNCATED]", "model.safetensors"]);
    }
    assert!(home.processes().is_empty());
}

#[test]
fn a_recipe_with_mistakes() {
    let home = Home::new();
    let done = train(&home, "\nsteps", "\nstps");
    let parts = [
        "error[CONFIG_INVALID]",
        "recipe.toml:7:1",
        "`stps`",
        "did you mean `steps`?",
    ];
    assert_told(done, 78, &parts);
    let done = train(&home, "\"routing\"", "\"rooting\"");
    assert_told(done, 2, &["error[ENV_UNKNOWN]", "routing"]);
    let done = train(&home, "rank = 16", "rank = \"many\"");
    assert_told(done, 78, &["error[CONFIG_INVALID]", "recipe.toml:18:"]);
    let done = train(&home, "[lora]", "[lora");
    assert_told(done, 78, &["error[CONFIG_INVALID]", "recipe.toml:17:"]);
}

#[test]
fn a_duration_without_or_with_a_wrong_unit() {
    let home = Home::new();
    for (time, part) in [("5", "did you mean `5s`?"), ("5d", "use ms, s, m or h")] {
        let coordinator = ["coordinator", "--data-dir", "data", "--idle-window", time];
        assert_told(home.run(&coordinator), 2, &["--idle-window", part]);
    }
}

#[test]
fn a_port_and_a_data_directory_in_use() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let address = cluster.address();
    let second = ["coordinator", "--data-dir", "other", "--listen", &address];
    assert_told(home.run(&second), 75, &["error[ADDRESS_IN_USE]", &address]);
    let second = home.run(&["coordinator", "--data-dir", "data"]);
    let pid = format!("pid={}", cluster.coordinator_pid());
    assert_told(second, 75, &["error[DATA_DIR_LOCKED]", &pid]);
    cluster.still_serves();
}

#[test]
fn a_cluster_that_is_not_there() {
    let home = Home::new();
    let map = ["map", "arithmetic", "--seeds", "0..2"];
    assert_told(home.run(&map), 69, &["error[COORDINATOR_UNREACHABLE]"]);
    let cluster = Cluster::scripted(&home, &[]);
    cluster.kill_coordinator();
    let done = cluster.ask(&map);
    assert_told(
        done,
        69,
        &["error[COORDINATOR_UNREACHABLE]", &cluster.address()],
    );
}
