//! Work wakes workers; without work there are none.

use rustix::process::Signal;

use crate::cluster::{Cluster, address};
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

#[test]
fn a_coordinator_that_is_told_to_end_lets_its_workers_deliver() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let put = [
        "put",
        "faulty",
        "--option",
        "mode=slow",
        "--option",
        "sleep_ms=1000",
        "--seeds",
        "0..1",
        "--json",
    ];
    let put = cluster
        .ask(&put)
        .with(0)
        .objects()
        .pop()
        .expect("one object");
    let job = put["job"].as_str().expect("an id").to_owned();
    until("the rollout is being played", || {
        (cluster.snapshot()["leased"] == 1).then_some(())
    });
    cluster.root.signal(Signal::TERM);
    let data_dir = cluster.data_dir.display().to_string();
    cluster.root.end().with(0);
    assert!(home.processes().is_empty(), "{:?}", home.processes());

    // In the next life nobody plays: what is there was delivered before the end.
    let _coordinator = home.start(&["coordinator", "--data-dir", &data_dir, "--max-workers=0"]);
    let accepted = until("the coordinator is back", || {
        let address = address(data_dir.as_ref())?;
        let shown = home.run(&["job", "show", &job, "--json", "--addr", &address]);
        Some(shown.objects().pop()?["job"]["accepted"].clone())
    });
    assert_eq!(accepted, 1);
}
