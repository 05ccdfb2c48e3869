//! `volley put`: adds rollouts to a queue and returns as soon as they are durable.

use clap::Args;
use serde_json::json;
use volley_protocol::job::{Extent, JobKind};
use volley_protocol::limits::NAME_BYTES_MAX;
use volley_protocol::{Digest, JobId};

use super::work::WorkArgs;
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::output::Output;
use crate::text;

/// Add rollouts to a queue and return at once.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Name of the queue; the first put creates it. Default: a new queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: PutArgs, output: &Output) -> Result<(), Stop> {
    args.work.environment()?;
    if let Some(name) = args
        .queue
        .as_ref()
        .filter(|name| name.len() > NAME_BYTES_MAX)
    {
        let length = name.len();
        return Err(Stop::usage(format!(
            "a queue's name has at most {NAME_BYTES_MAX} bytes, this one {length}"
        )));
    }
    let client = super::connect(&args.cluster, "volley put").await?;
    let job = args
        .queue
        .as_deref()
        .map_or_else(|| JobId(rand::random()), queue_id);
    let name = args
        .queue
        .clone()
        .unwrap_or_else(|| format!("queue {}", args.work.env));
    let spec = args.work.spec(&client, job, JobKind::Queue, name).await?;
    client.submit(spec).await?;
    let extent = Extent {
        put: rand::random(),
        first_instance: args.work.seeds.0.start,
        rollouts: args.work.seeds.count(),
    };
    client.put(job, extent).await?;
    client.close().await;
    let rollouts = extent.rollouts;
    if args.format.json {
        let put = format!("{:032x}", extent.put);
        let object = json!({ "job": job.to_string(), "put": put, "rollouts": rollouts });
        return output.json(&object);
    }
    output.talk(&format!(
        "{} rollouts queued; results:",
        text::count(rollouts)
    ));
    output.talk(&format!("  volley job results {job} --follow"));
    output.data(job)
}

/// The same name is the same queue, from every client.
fn queue_id(name: &str) -> JobId {
    let digest = Digest::of(format!("volley queue {name}").as_bytes());
    let head = digest.0.iter().take(16);
    JobId(head.fold(0, |id, byte| (id << 8) | u128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_its_name() {
        assert_eq!(queue_id("nightly"), queue_id("nightly"));
        assert_ne!(queue_id("nightly"), queue_id("weekly"));
        let digits = queue_id("nightly").to_string();
        assert_eq!(digits.parse(), Ok(queue_id("nightly")));
    }
}
