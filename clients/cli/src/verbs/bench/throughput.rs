//! Rollouts per second.

use std::time::Instant;

use serde_json::{Value, json};
use volley_protocol::Fault;
use volley_protocol::client::ResultRecord;
use volley_protocol::fault::ErrorCode;
use volley_protocol::job::JobKind;
use volley_runtime::process::Handoff;

use super::FanoutArgs;
use super::cluster::{BenchCluster, job};
use super::fanout::round;
use super::meter::Meter;

/// All rollouts through all workers, results consumed as they complete.
pub(crate) async fn measure(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    cluster.workers(args.w).await?;
    play(&cluster, 64 * u64::from(args.w), args.t).await?;
    let (meter, begun) = (Meter::start(), Instant::now());
    let (got, bytes) = play(&cluster, args.n, args.t).await?;
    let (wall_s, spent) = (begun.elapsed().as_secs_f64(), meter.spent());
    cluster.end().await?;
    Ok(json!({
        "rollouts_per_s": round(got as f64 / wall_s, 1),
        "wall_s": round(wall_s, 3),
        "got": got,
        "MB_per_s": round(bytes as f64 / wall_s / 1e6, 2),
        "cpu_us_per_rollout": round(spent.own_s / got as f64 * 1e6, 1),
        "others_cpu": round(spent.others_cpus, 2),
    }))
}

/// Tells how many results came and how many bytes their tokens have.
async fn play(cluster: &BenchCluster, rollouts: u64, tokens: u32) -> Result<(u64, u64), Fault> {
    let spec = job(JobKind::Map, rollouts, tokens, 0);
    let submitted = cluster.client.submit(spec).await?;
    let mut results = cluster.client.results(submitted.job);
    let (mut got, mut bytes) = (0, 0);
    while let Some(record) = results.next().await? {
        match record {
            ResultRecord::Finished(trajectory) => bytes += trajectory.tokens.len() as u64 * 9 + 4,
            ResultRecord::Failed { fault, .. } => return Err(fault),
        }
        got += 1;
    }
    if got == rollouts {
        return Ok((got, bytes));
    }
    let message = format!("{got} of {rollouts} results came");
    Err(Fault::new(ErrorCode::Internal, message))
}
