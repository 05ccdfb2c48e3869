//! `volley job wait`: until a job has ended, or for as long as one likes.

use clap::Args;
use serde_json::json;
use volley_protocol::job::JobState;
use volley_runtime::config::DurationMs;

use super::super::Interruption;
use super::find_job;
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::{FAILED, Stop};
use crate::json as objects;
use crate::output::Output;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    /// Give up waiting after this long, with exit status 75; the job goes on.
    #[arg(long, value_name = "TIME")]
    timeout: Option<DurationMs>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Exit status 0 when the job is done and nothing of it failed, 1 otherwise.
pub(super) async fn run(args: WaitArgs, output: &Output, end: &Interruption) -> Result<(), Stop> {
    let client = super::super::connect(&args.cluster, "volley job").await?;
    let job = find_job(&client, &args.job).await?;
    end.leaves(job);
    let handle = client.attach(job).await?;
    let ended = handle.wait(args.timeout.map(DurationMs::duration)).await;
    client.close().await;
    let ended = ended?;
    if args.format.json {
        output.json(&json!({ "schema": "volley.job/1", "job": objects::job(&ended) }))?;
    } else {
        output.data(format!(
            "{}: {} results, {} failed",
            objects::job_state(ended.state),
            text::count(ended.accepted),
            text::count(ended.failed)
        ))?;
    }
    if ended.state == JobState::Done && ended.failed == 0 {
        Ok(())
    } else {
        Err(Stop::Status(FAILED))
    }
}
