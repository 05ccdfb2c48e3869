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

/// Bytes of what is handed in with each: a seed, numbers of an environment and a policy, and room.
const PAYLOAD_BYTES: usize = 64;

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

/// Hands every rollout in by itself, with a payload of its own, while the results of earlier ones
/// are taken out. Tells how many results came and how many bytes their tokens have.
async fn play(cluster: &BenchCluster, rollouts: u64, tokens: u32) -> Result<(u64, u64), Fault> {
    let spec = job(JobKind::Queue, 0, tokens, 0);
    let queue = cluster.client.submit(spec).await?.job;
    let hand_in = async {
        let mut putter = cluster.client.putter(queue, 1);
        let mut payload = [0; PAYLOAD_BYTES];
        for seed in 0..rollouts {
            payload[..8].copy_from_slice(&seed.to_le_bytes());
            putter.push(&payload).await?;
        }
        putter.finish().await
    };
    let take_out = async {
        let mut results = cluster.client.results(queue);
        let (mut got, mut bytes) = (0, 0);
        while got < rollouts {
            match results.next().await? {
                Some(ResultRecord::Finished(trajectory)) => {
                    bytes += trajectory.tokens.len() as u64 * 9 + 4;
                }
                Some(ResultRecord::Failed { fault, .. }) => return Err(fault),
                None => {
                    let message = format!("{got} of {rollouts} results came");
                    return Err(Fault::new(ErrorCode::Internal, message));
                }
            }
            got += 1;
        }
        Ok((got, bytes))
    };
    let (handed_in, taken) = tokio::join!(hand_in, take_out);
    handed_in?;
    cluster.client.cancel(queue).await?;
    taken
}
