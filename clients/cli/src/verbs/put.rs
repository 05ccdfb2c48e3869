//! `volley put`: adds rollouts to a queue and returns as soon as they are durable.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use volley_client::Client;
use volley_protocol::job::{Extent, JobKind};
use volley_protocol::limits::NAME_BYTES_MAX;
use volley_protocol::{Digest, Fault, JobId};

use super::Interruption;
use super::lines::Lines;
use super::work::{Sample, Seeds, WorkArgs};
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::output::Output;
use crate::text;

/// Add rollouts to a queue and return at once.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Seeds of the scenarios, for example 0..1024; the end is not played.
    #[arg(long, value_name = "A..B", required_unless_present = "payload")]
    seeds: Option<Seeds>,
    /// File with a payload in each line, one rollout for each of them; - is the standard input.
    /// Empty lines are passed over.
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    payload: Option<PathBuf>,
    /// Name of the queue; the first put creates it. Default: a new queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: PutArgs, output: &Output, end: &Interruption) -> Result<(), Stop> {
    check_name(args.queue.as_deref())?;
    let mut work = Work::of(&args).await?;
    args.work.check(work.sample())?;
    let client = super::connect(&args.cluster, "volley put").await?;
    let job = args
        .queue
        .as_deref()
        .map_or_else(|| JobId(rand::random()), queue_id);
    let name = args
        .queue
        .clone()
        .unwrap_or_else(|| format!("queue {}", args.work.env));
    let spec = args
        .work
        .spec(&client, job, JobKind::Queue, name, work.sample())
        .await?;
    client.submit(spec).await?;
    end.leaves(job);
    let put = work.put(&client, job).await;
    client.close().await;
    let (rollouts, put) = put?;
    if args.format.json {
        let put = put.map(|put| format!("{put:032x}"));
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

/// What is put.
#[derive(Debug)]
enum Work {
    Seeds(Seeds),
    /// The first payload was read ahead: the environment is tried with it.
    Payloads {
        first: Vec<u8>,
        rest: Lines,
    },
}

impl Work {
    async fn of(args: &PutArgs) -> Result<Self, Stop> {
        let Some(path) = &args.payload else {
            let seeds = args.seeds.clone();
            let missing = || Stop::usage("--seeds or --payload is due");
            return Ok(Self::Seeds(seeds.ok_or_else(missing)?));
        };
        let mut rest = Lines::open(path)?;
        match rest.next().await? {
            Some(first) => Ok(Self::Payloads { first, rest }),
            None => Err(Stop::usage(format!(
                "there is no payload in {}",
                path.display()
            ))),
        }
    }

    fn sample(&self) -> Sample<'_> {
        match self {
            Self::Seeds(seeds) => seeds.sample(),
            Self::Payloads { first, .. } => Sample {
                instance: 0,
                payload: first,
            },
        }
    }

    /// Puts it all. Tells how many rollouts there are, and the id of the put if it was a single one.
    async fn put(&mut self, client: &Client, job: JobId) -> Result<(u64, Option<u128>), Fault> {
        match self {
            Self::Seeds(seeds) => {
                let extent = Extent {
                    put: rand::random(),
                    first_instance: seeds.0.start,
                    rollouts: seeds.count(),
                };
                client.put(job, extent).await?;
                Ok((extent.rollouts, Some(extent.put)))
            }
            Self::Payloads { first, rest } => {
                let mut putter = client.putter(job, 1);
                putter.push(first).await?;
                loop {
                    if !rest.is_ready() {
                        // Whoever writes the lines may take a while for the next one.
                        putter.flush().await?;
                    }
                    let Some(payload) = rest.next().await? else {
                        break;
                    };
                    putter.push(&payload).await?;
                }
                Ok((putter.finish().await?, None))
            }
        }
    }
}

fn check_name(queue: Option<&str>) -> Result<(), Stop> {
    match queue
        .map(str::len)
        .filter(|length| *length > NAME_BYTES_MAX)
    {
        None => Ok(()),
        Some(length) => Err(Stop::usage(format!(
            "a queue's name has at most {NAME_BYTES_MAX} bytes, this one {length}"
        ))),
    }
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
