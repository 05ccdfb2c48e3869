//! Adapters cross to a host once.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::home::Home;
use crate::recipe::{Recipe, adapter, event};

/// Adapters of one way that `bench fanout broadcast` publishes.
const PUBLISHED: u64 = 5;

const BROADCAST: [&str; 8] = [
    "bench",
    "fanout",
    "broadcast",
    "--w",
    "2",
    "--mib",
    "1",
    "--json",
];

/// Adapters in the directory that the processes of a home share.
fn shared(home: &Home) -> usize {
    let files = fs::read_dir(home.path(".cache/volley/adapters"));
    let names = files.into_iter().flatten().flatten().map(|f| f.file_name());
    names
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "adapter"))
        .count()
}

#[test]
fn of_two_workers_one_fetches_and_none_what_the_learner_put_there() {
    let home = Home::new();
    let done = home.run(&BROADCAST).with(0);
    let result = &done.objects()[0]["result"];
    assert_eq!(result["one_fetch"]["fetches"], PUBLISHED);
    assert_eq!(result["shared_view"]["fetches"], 0);
    assert_eq!(shared(&home), 0, "what was measured with is removed");
}

#[test]
fn workers_that_share_nothing_fetch_each() {
    let home = Home::new();
    let off = [("VOLLEY_SAME_HOST", Path::new("off"))];
    let done = home.start_with(&BROADCAST, &off).end().with(0);
    let result = &done.objects()[0]["result"];
    assert_eq!(result["private_copy"]["fetches"], 2 * PUBLISHED);
    assert_eq!(result["shared_view"], Value::Null);
    assert!(!home.path(".cache/volley/adapters").exists());
}

#[test]
fn a_run_that_shares_adapters_has_no_mismatch_and_one_that_cannot_learns_the_same() {
    let trained = |usable: bool| {
        let home = Home::new();
        if !usable {
            // A file where the directory should be.
            fs::create_dir_all(home.path(".cache/volley")).expect("a test's own home");
            home.write(".cache/volley/adapters", "");
        }
        let done = Recipe::TINY.start(&home).end().with(0);
        let finished = event(&done.objects(), "finished");
        assert_eq!(finished["mismatch_max"], 0.0);
        assert!(finished["mismatch_tokens"].as_u64() > Some(0), "{finished}");
        assert_eq!(shared(&home) > 0, usable);
        adapter(&home.path("run"), Recipe::TINY.steps)
    };
    assert_eq!(trained(true), trained(false));
}
