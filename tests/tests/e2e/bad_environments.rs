//! Environments that break: every rollout ends with its code, and the cluster goes on.

use crate::cluster::{Cluster, assert_each_once};
use crate::home::Home;

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
