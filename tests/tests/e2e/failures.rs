//! Failures as a user meets them: what is tried again, what is given up, and trying it anew.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::home::Home;

fn page(cluster: &Cluster<'_>, job: &str) -> Value {
    let shown = cluster.ask(&["job", "show", job, "--json"]).with(0);
    shown.objects().remove(0)["job"].take()
}

fn dead(cluster: &Cluster<'_>, job: &str) -> Vec<Value> {
    let listed = cluster.ask(&["job", "dead", job, "--json"]).with(0);
    let object = listed.objects().remove(0);
    object["dead_letters"].as_array().expect("a list").clone()
}

#[test]
fn dead_letters_survive_a_killed_coordinator_and_are_tried_anew() {
    let home = Home::new();
    let mut cluster = Cluster::scripted(&home, &["--max-workers", "1"]);
    // Of 0 to 9 only 0, 3, 6 and 9 break.
    let args = [
        "map",
        "faulty",
        "--seeds",
        "0..10",
        "--option",
        "mode=error",
        "--option",
        "every=3",
        "--retry-never",
        "environment",
        "--detach",
        "--json",
    ];
    let map = cluster.ask(&args).with(0);
    let job = map.objects().remove(0)["job"]
        .as_str()
        .expect("an id")
        .to_owned();
    let waited = cluster
        .ask(&["job", "wait", &job, "--timeout", "1m"])
        .with(1);
    assert!(
        waited.out.starts_with("done: 6 results, 4 failed"),
        "{}",
        waited.out
    );
    let before = dead(&cluster, &job);
    let indices: Vec<_> = before
        .iter()
        .map(|letter| letter["index"].as_u64())
        .collect();
    assert_eq!(indices.len(), 4);
    assert!(
        [0, 3, 6, 9]
            .iter()
            .all(|index| indices.contains(&Some(*index)))
    );
    for letter in &before {
        assert_eq!(letter["error"]["code"], "ENV_FAILED", "{letter}");
        assert_eq!(letter["failures"], 1, "never tried again: {letter}");
    }
    assert_eq!(page(&cluster, &job)["retries"], 0);
    cluster.kill_coordinator();
    cluster.start_again();
    assert_eq!(dead(&cluster, &job), before);
    let retry = cluster.ask(&["job", "retry", &job, "--all"]).with(0);
    let retry = retry.out.trim_end().to_owned();
    cluster
        .ask(&["job", "wait", &retry, "--timeout", "1m"])
        .with(1);
    let anew = page(&cluster, &retry);
    assert_eq!(
        (&anew["kind"], &anew["failed"]),
        (&"retry".into(), &4.into())
    );
    let told = dead(&cluster, &job);
    assert!(
        told.iter()
            .all(|letter| letter["retried_as"] == retry.as_str())
    );
    cluster.ask(&["job", "retry", &job, "--all"]).with(1);
    cluster.still_serves();
}

#[test]
fn what_takes_too_long_is_ended_by_name() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--max-workers", "1"]);
    let slow = |flags: &[&str]| {
        let mut args = vec![
            "map",
            "faulty",
            "--seeds",
            "0..2",
            "--json",
            "--option",
            "mode=slow",
            "--option",
            "sleep_ms=4000",
            "--retries",
            "0",
        ];
        args.extend_from_slice(flags);
        let ended = cluster.ask(&args).with(1);
        let results = ended.objects();
        assert_eq!(results.len(), 2, "{}", ended.err);
        let code = |result: &Value| result["error"]["code"].as_str().map(str::to_owned);
        results.iter().filter_map(code).collect::<Vec<_>>()
    };
    let ended = slow(&["--start-to-close", "500ms"]);
    assert_eq!(ended, ["ATTEMPTS_EXHAUSTED"; 2]);
    let ended = slow(&["--schedule-to-close", "1s"]);
    assert_eq!(ended, ["SCHEDULE_TO_CLOSE_TIMEOUT"; 2]);
}

#[test]
fn nobody_waits_for_workers_that_never_come() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--max-workers", "0"]);
    let args = [
        "map",
        "guess",
        "--seeds",
        "0..3",
        "--schedule-to-start",
        "300ms",
        "--json",
    ];
    let ended = cluster.ask(&args).with(1);
    let results = ended.objects();
    assert_eq!(results.len(), 3);
    for result in results {
        assert_eq!(result["error"]["code"], "SCHEDULE_TO_START_TIMEOUT");
    }
}

#[test]
fn a_map_may_take_its_first_results() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--max-workers", "2"]);
    for order in [&[][..], &["--ordered"]] {
        let mut args = vec![
            "map",
            "arithmetic",
            "--seeds",
            "0..500",
            "--take",
            "7",
            "--json",
        ];
        args.extend_from_slice(order);
        let map = cluster.ask(&args).with(0);
        assert_eq!(map.objects().len(), 7, "{}", map.err);
    }
    let jobs = cluster
        .ask(&["job", "list", "--json"])
        .with(0)
        .objects()
        .remove(0);
    for job in jobs["jobs"].as_array().expect("a list") {
        assert_eq!(
            (&job["state"], &job["failed"]),
            (&"done".into(), &0.into()),
            "{job}"
        );
        let closed = job["accepted"].as_u64().zip(job["cancelled"].as_u64());
        assert_eq!(
            closed.map(|(accepted, cancelled)| accepted + cancelled),
            Some(500)
        );
    }
}
