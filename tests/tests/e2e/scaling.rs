//! Work wakes workers; without work there are none.

use crate::cluster::Cluster;
use crate::home::Home;
use crate::process::until;

#[test]
fn a_put_wakes_workers_and_idleness_ends_them() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &["--idle-window", "1s"]);
    assert_eq!(cluster.snapshot()["workers"], serde_json::json!([]));
    assert!(home.pids("worker").is_empty());

    let put = cluster.ask(&["put", "arithmetic", "--seeds", "0..200", "--json"]);
    let put = put.with(0).objects().pop().expect("one object");
    let job = put["job"].as_str().expect("an id").to_owned();
    until("all rollouts are played", || {
        let shown = cluster.ask(&["job", "show", &job, "--json"]).with(0);
        let shown = shown.objects().pop().expect("one object");
        (shown["job"]["accepted"] == 200).then_some(())
    });
    until("the monitor shows no workers", || {
        let snapshot = cluster.snapshot();
        (snapshot["workers"] == serde_json::json!([])).then_some(())
    });
    until("no worker is left", || {
        home.pids("worker").is_empty().then_some(())
    });

    cluster.still_serves();
}
