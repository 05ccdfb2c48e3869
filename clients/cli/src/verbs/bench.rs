//! `volley bench`: measures the way of a rollout with real processes, without any model.

mod broadcast;
mod cluster;
mod fanout;
mod latency;
mod meter;
mod queue;
mod throughput;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use volley_runtime::process::Handoff;

use crate::errors::Stop;
use crate::output::Output;
use crate::text;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// Rollouts that cost nothing: what remains is the price of the fan-out.
    Fanout(FanoutArgs),
}

/// A cluster of this machine, its own for the time of the measurement.
#[derive(Clone, Debug, Args)]
pub(crate) struct FanoutArgs {
    /// What to measure.
    bench: FanoutBench,
    /// Workers, each a process.
    #[arg(long, value_name = "N", default_value_t = 2)]
    w: u32,
    /// Rollouts.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    n: u64,
    /// Tokens of a trajectory; 512 are 4.6 KB, 8192 are 73.7 KB.
    #[arg(long, value_name = "T", default_value_t = 512)]
    t: u32,
    /// Rollouts in flight for each worker.
    #[arg(long, value_name = "K", default_value_t = 512)]
    k: u32,
    /// How long a rollout takes, where it has to take time (kill).
    #[arg(long, value_name = "MS", default_value_t = 20)]
    sleep_ms: u64,
    /// Size of an adapter (broadcast).
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    mib: u32,
    /// One line of JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// The measurements.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FanoutBench {
    /// Rollouts per second, handed in one by one.
    Throughput,
    /// One rollout at a time on an idle warm worker.
    Latency,
    /// From nothing to the first result.
    Startup,
    /// Memory of every process.
    Memory,
    /// Further workers on a running cluster.
    Addworkers,
    /// A worker is killed in the middle.
    Kill,
    /// Payloads that wait: how fast they are taken in, what they cost in memory.
    Queue,
    /// An adapter, from its learner into the memory of all workers.
    Broadcast,
}

/// Measures and prints.
pub(crate) fn run(verb: BenchVerb, output: &Output, handoff: &Handoff) -> Result<(), Stop> {
    let BenchVerb::Fanout(args) = verb;
    let result = fanout::measure(&args, output, handoff)?;
    let name = args.bench.to_possible_value();
    let name = name
        .as_ref()
        .map_or("", clap::builder::PossibleValue::get_name);
    let same_host = volley_runtime::conversation::same_host();
    if args.json {
        output.json(&json!({
            "system": "volley",
            "bench": name,
            "params": {"w": args.w, "n": args.n, "t": args.t, "k": args.k, "sleep_ms": args.sleep_ms, "mib": args.mib,
                "bulk": if same_host.bulk { "unix" } else { "quic" },
                "results": if same_host.results { "file" } else { "quic" }},
            "result": result,
            "machine": meter::machine(),
        }))?;
    } else {
        print(&result, output)?;
    }
    output.flush()
}

/// Name and value, one on each line.
fn print(result: &Value, output: &Output) -> Result<(), Stop> {
    for (name, value) in result.as_object().into_iter().flatten() {
        let shown = match value.as_f64() {
            Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
                text::count(number as u64)
            }
            _ => value.to_string(),
        };
        output.data(format!("{name:28} {shown}"))?;
    }
    Ok(())
}
