//! One rollout at a time.

use std::time::Instant;

use serde_json::{Value, json};
use volley_protocol::Fault;
use volley_protocol::job::{Extent, JobKind};
use volley_runtime::process::Handoff;

use super::FanoutArgs;
use super::cluster::{BenchCluster, job};
use super::fanout::round;

/// Rollouts before it counts.
const WARM_UP: u64 = 50;

/// Puts one, waits for its result, puts the next.
pub(crate) async fn measure(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    cluster.workers(args.w).await?;
    let spec = job(JobKind::Queue, 0, args.t, 0);
    let queue = cluster.client.submit(spec).await?.job;
    let mut results = cluster.client.results(queue);
    let mut waits_us = Vec::new();
    for index in 0..WARM_UP + args.n {
        let begun = Instant::now();
        let extent = Extent {
            put: u128::from(index) + 1,
            first_instance: index,
            rollouts: 1,
        };
        let (put, result) = tokio::join!(cluster.client.put(queue, extent), results.next());
        put?;
        result?;
        if index >= WARM_UP {
            waits_us.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    cluster.end().await?;
    Ok(summary(waits_us))
}

fn summary(mut waits_us: Vec<f64>) -> Value {
    waits_us.sort_by(f64::total_cmp);
    let count = waits_us.len();
    let at = |part: f64| {
        let rank = ((count as f64 * part) as usize).min(count.saturating_sub(1));
        round(waits_us.get(rank).copied().unwrap_or_default(), 1)
    };
    json!({"p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "max_us": at(1.0), "n": count})
}
