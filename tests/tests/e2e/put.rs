//! `volley put` with payloads: what was put is played once with its own payload, whoever dies, and
//! work of higher priority does not wait behind it.

use serde_json::Value;

use crate::cluster::{Cluster, assert_each_once};
use crate::home::Home;

/// Puts the lines of this file; tells the queue's id.
fn put(cluster: &Cluster<'_>, file: &str) -> String {
    let told = cluster.ask(&["put", "echo", "--json", "--payload", file]);
    let told = told.with(0).objects();
    told[0]["job"].as_str().expect("an id").to_owned()
}

fn said_by_environment(result: &Value) -> &str {
    let transcript = result["transcript"].as_array().expect("a transcript");
    let user = transcript.iter().find(|message| message["role"] == "user");
    user.and_then(|message| message["content"].as_str())
        .expect("a question")
}

#[test]
fn every_payload_reaches_its_episode_although_the_coordinator_dies() {
    let home = Home::new();
    // Nobody plays in the first life, so that the whole queue goes through the store.
    let mut cluster = Cluster::scripted(&home, &["--max-workers", "0"]);
    let lines: Vec<String> = (0..3_000).map(|n| (n % 7).to_string()).collect();
    let file = home.write("payloads", lines.join("\n"));
    let job = put(&cluster, &file.display().to_string());
    cluster.kill_coordinator();
    cluster.start_again_with(&["--max-workers", "2"]);
    let mut results = cluster.begin(&["job", "results", &job, "--follow", "--json"]);
    results.wait_for_lines(3_000);
    cluster.ask(&["job", "cancel", &job]).with(0);
    let results = results.end().with(0).objects();
    assert_each_once(&results, 3_000);
    for result in &results {
        let index = result["index"].as_u64().expect("an index") as usize;
        assert_eq!(said_by_environment(result), lines[index]);
        // The scripted policy says 0, whatever it is asked.
        let due = f64::from(u8::from(lines[index] == "0"));
        assert_eq!(result["reward"].as_f64(), Some(due), "{index}");
    }
}

#[test]
fn urgent_work_overtakes_a_long_queue() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--max-workers", "1", "--slots", "1"]);
    let file = home.write("payloads", "x\n".repeat(200_000));
    let slow = ["put", "noop", "--option=sleep_ms=5", "--json", "--payload"];
    let path = file.display().to_string();
    let told = cluster.ask(&[&slow[..], &[&path]].concat()).with(0);
    let job = told.objects()[0]["job"].as_str().expect("an id").to_owned();
    let urgent = [
        "map",
        "noop",
        "--seeds",
        "0..20",
        "--priority",
        "1",
        "--json",
    ];
    let results = cluster.ask(&urgent).with(0).objects();
    assert_each_once(&results, 20);
    let shown = cluster.ask(&["job", "show", &job, "--json"]).with(0);
    let queued = shown.objects()[0]["job"]["queued"]
        .as_u64()
        .expect("a count");
    // A fair share would have been at least as many of the queue.
    assert!(queued > 190_000, "{queued} of 200,000 still wait");
    cluster.ask(&["job", "cancel", &job]).with(0);
    let usage = cluster.ask(&["map", "noop", "--seeds", "0..1", "--priority", "101"]);
    usage.with(2);
}

#[test]
fn a_payload_that_nobody_takes_is_refused_before_it_travels() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--max-workers", "0"]);
    let path = home.write("payloads", "a\n").display().to_string();
    let guess = cluster.ask(&["put", "guess", "--payload", &path]).with(2);
    assert!(guess.err.contains("it takes none"), "{}", guess.err);
    home.write("payloads", "\n\n");
    cluster.ask(&["put", "echo", "--payload", &path]).with(2);
    let both = ["put", "echo", "--payload", &path, "--seeds", "0..1"];
    cluster.ask(&both).with(2);
    let jobs = cluster.ask(&["job", "list", "--json"]).with(0);
    assert_eq!(jobs.objects()[0]["jobs"].as_array().map(Vec::len), Some(0));
}
