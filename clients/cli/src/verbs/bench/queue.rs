//! Payloads that wait: one client puts them, nobody plays them.

use std::time::Instant;

use serde_json::{Value, json};
use volley_protocol::Fault;
use volley_protocol::job::JobKind;
use volley_runtime::process::Handoff;

use super::FanoutArgs;
use super::cluster::{BenchCluster, job};
use super::fanout::round;
use super::meter::{Meter, resident_bytes};

/// Bytes of a payload: a seed, a number of an environment and of a policy, and room.
const PAYLOAD_BYTES: usize = 64;

/// `n` distinct payloads into an open queue, through the client, until all of them are durable.
pub(crate) async fn measure(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, 0, 0).await?;
    let spec = job(JobKind::Queue, 0, args.t, 0);
    let queue = cluster.client.submit(spec).await?.job;
    let pid = cluster.client.snapshot().await?.pid;
    let before = resident_bytes(pid);
    let (meter, begun) = (Meter::start(), Instant::now());
    let mut putter = cluster.client.putter(queue, 1);
    let mut payload = [0; PAYLOAD_BYTES];
    for seed in 0..args.n {
        payload[..8].copy_from_slice(&seed.to_le_bytes());
        putter.push(&payload).await?;
    }
    let accepted = putter.finish().await?;
    let (wall_s, spent) = (begun.elapsed().as_secs_f64(), meter.spent());
    let waiting = cluster.client.job(queue).await?.queued;
    let grown = resident_bytes(pid).saturating_sub(before);
    cluster.end().await?;
    Ok(json!({
        "submit_per_s": round(accepted as f64 / wall_s, 0),
        "submit_s": round(wall_s, 3),
        "pending": waiting,
        "coordinator_bytes_per_pending": round(grown as f64 / waiting.max(1) as f64, 1),
        "cpu_us_per_payload": round(spent.own_s / args.n.max(1) as f64 * 1e6, 2),
        "others_cpu": round(spent.others_cpus, 2),
    }))
}
