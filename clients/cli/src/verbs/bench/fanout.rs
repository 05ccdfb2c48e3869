//! Which measurement is which.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use volley_protocol::Fault;
use volley_protocol::client::ResultRecord;
use volley_protocol::job::JobKind;
use volley_runtime::process::Handoff;

use super::cluster::{BenchCluster, job};
use super::{FanoutArgs, FanoutBench, broadcast, latency, meter, queue, throughput};
use crate::errors::Stop;
use crate::output::Output;
use crate::roles::serve;

/// Measures what was asked for; tells the figures.
pub(crate) fn measure(
    args: &FanoutArgs,
    output: &Output,
    handoff: &Handoff,
) -> Result<Value, Stop> {
    let begun = Instant::now();
    output.talk("starting a cluster for the measurement");
    let figures = serve::block_on(async {
        match args.bench {
            FanoutBench::Throughput => throughput::measure(args, handoff).await,
            FanoutBench::Latency => latency::measure(args, handoff).await,
            FanoutBench::Startup => startup(args, handoff, begun).await,
            FanoutBench::Memory => memory(args, handoff).await,
            FanoutBench::Addworkers => add_workers(args, handoff).await,
            FanoutBench::Kill => kill(args, handoff).await,
            FanoutBench::Broadcast => broadcast::measure(args, handoff).await,
            FanoutBench::Queue => queue::measure(args, handoff).await,
        }
    })?;
    Ok(figures)
}

async fn startup(args: &FanoutArgs, handoff: &Handoff, begun: Instant) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    let coordinator_s = begun.elapsed().as_secs_f64();
    let spec = job(JobKind::Map, 1, args.t, 0);
    let mut results = cluster
        .client
        .results(cluster.client.submit(spec).await?.job);
    while results.next().await?.is_some() {}
    let first_result_s = begun.elapsed().as_secs_f64();
    cluster.workers(args.w).await?;
    let all_workers_s = begun.elapsed().as_secs_f64();
    cluster.end().await?;
    Ok(json!({
        "init_s": round(coordinator_s, 3),
        "first_result_s": round(first_result_s, 3),
        "all_workers_s": round(all_workers_s, 3),
    }))
}

async fn memory(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    cluster.workers(args.w).await?;
    let spec = job(JobKind::Map, u64::from(args.w), args.t, 0);
    let mut results = cluster
        .client
        .results(cluster.client.submit(spec).await?.job);
    while results.next().await?.is_some() {}
    tokio::time::sleep(Duration::from_secs(1)).await;
    let processes = meter::memory();
    cluster.end().await?;
    Ok(json!({"procs": processes}))
}

/// From a cluster with one worker to one with `w` further ones: the autoscaler's own way, by work
/// that waits.
async fn add_workers(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, 1, args.w + 1).await?;
    cluster.workers(1).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let slots = u64::from(args.k.clamp(1, 4096));
    let spec = job(JobKind::Map, 2 * slots * u64::from(args.w + 1), 1, 60_000);
    let begun = Instant::now();
    cluster.client.submit(spec).await?;
    cluster.workers(2).await?;
    let first_s = begun.elapsed().as_secs_f64();
    cluster.workers(args.w + 1).await?;
    let all_s = begun.elapsed().as_secs_f64();
    cluster.end().await?;
    Ok(json!({"first_s": round(first_s, 3), "all_s": round(all_s, 3)}))
}

/// One of the workers is killed after a quarter of the rollouts.
async fn kill(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    let pids = cluster.workers(args.w).await?;
    let spec = job(JobKind::Map, args.n, args.t, args.sleep_ms);
    let begun = Instant::now();
    let mut results = cluster
        .client
        .results(cluster.client.submit(spec).await?.job);
    let (mut seen, mut failed, mut delivered) = (BTreeSet::new(), 0_u64, 0_u64);
    let mut killed: Option<Instant> = None;
    let (mut retried, mut first_retry_s) = (0_u64, None);
    while let Some(record) = results.next().await? {
        delivered += 1;
        seen.insert(record.index());
        match &record {
            ResultRecord::Failed { .. } => failed += 1,
            ResultRecord::Finished(trajectory) if trajectory.header.attempt.number > 1 => {
                retried += 1;
                let since = killed.map(|at| at.elapsed().as_secs_f64());
                first_retry_s = first_retry_s.or(since);
            }
            ResultRecord::Finished(_) => {}
        }
        if killed.is_none() && delivered > args.n / 4 {
            end_process(pids[0]);
            killed = Some(Instant::now());
        }
    }
    let wall_s = begun.elapsed().as_secs_f64();
    cluster.end().await?;
    let ideal_s = args.n as f64 * args.sleep_ms as f64 / 1e3 / f64::from(args.w);
    let completed = seen.len() as u64 - failed;
    Ok(json!({
        "completed": completed,
        "errors": failed,
        "executed_more_than_once": retried,
        "delivered_duplicates": delivered - seen.len() as u64,
        "first_retry_after_kill_s": first_retry_s.map(|s| round(s, 4)),
        "wall_s": round(wall_s, 2),
        "ideal_s": round(ideal_s, 2),
    }))
}

fn end_process(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it has ended by itself; the figures will show it.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// To so many digits behind the point.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (value * unit).round() / unit
}
