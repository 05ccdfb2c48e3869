//! What waits costs no memory.

use crate::cluster::Cluster;
use crate::home::Home;
use crate::process::resident_bytes;

/// Growth that a thousand million waiting rollouts may cause: what is under way is bounded.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

const JOB: &str = "00000000000000000000000000000bad";

#[test]
fn a_thousand_million_rollouts_fit() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let coordinator = cluster.coordinator_pid();
    let idle = resident_bytes(coordinator);
    let seeds = "0..1000000000";
    let mut map = cluster.begin(&[
        "map",
        "arithmetic",
        "--seeds",
        seeds,
        "--json",
        "--job",
        JOB,
    ]);
    map.wait_for_lines(5_000);
    let grown = resident_bytes(coordinator).saturating_sub(idle);
    assert!(
        grown < GROWTH_BYTES_MAX,
        "the coordinator grew by {grown} bytes"
    );

    cluster.ask(&["job", "cancel", JOB]).with(0);
    let map = map.end().with(1);
    assert!(map.err.contains("it was cancelled"), "{}", map.err);
    cluster.still_serves();
}
