//! What a launcher has started does not outlive it.

use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::home::Home;
use crate::process::until;
use crate::recipe::{Recipe, wait_for_step};

/// Waits until nothing but ordinary clients is left.
fn all_roles_end(home: &Home) {
    until("the end of every role", || {
        let mut left = home.processes();
        left.retain(|process| process.role() != "map");
        left.is_empty().then_some(())
    });
}

#[test]
fn a_killed_up_leaves_nothing_behind() {
    let home = Home::new();
    let cluster = Cluster::up(&home, &[]);
    let seeds = "0..1000000000";
    let mut map = cluster.begin(&["map", "arithmetic", "--seeds", seeds, "--json"]);
    map.wait_for_lines(100);
    assert!(!home.pids("worker").is_empty());
    cluster.root.signal(Signal::KILL);
    all_roles_end(&home);
}

#[test]
fn a_killed_train_leaves_nothing_behind() {
    let home = Home::new();
    let mut run = Recipe::LONGER.start(&home);
    wait_for_step(&mut run, 1);
    assert!(!home.pids("learner").is_empty());
    run.signal(Signal::KILL);
    all_roles_end(&home);
}
