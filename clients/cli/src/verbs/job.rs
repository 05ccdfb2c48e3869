//! `volley job`: what is queued, what became of it, and its end.

mod dead;
mod wait;

use clap::{Args, Subcommand};
use serde_json::json;
use volley_client::{Client, Outcomes};
use volley_protocol::job::JobKind;
use volley_protocol::snapshot::JobSummary;
use volley_protocol::{ErrorCode, Fault, JobId};

use super::Interruption;
use super::map::{Due, Show, order};
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::json as objects;
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text;

/// List, show, cancel jobs; wait for them; read their results and what was given up.
#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// All jobs that the coordinator still knows.
    List(ListArgs),
    /// One job with its last failure.
    Show(JobArgs),
    /// Close what is open of a job; finished results stay.
    Cancel(CancelArgs),
    /// Results of a job, as `volley map` prints them.
    Results(ResultsArgs),
    /// Wait until a job has ended.
    Wait(wait::WaitArgs),
    /// Rollouts of a job that were given up, with their last error.
    Dead(dead::DeadArgs),
    /// Try rollouts anew that were given up, in a job of their own.
    Retry(dead::RetryJobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ResultsArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    /// Wait for further results until the job is closed; a queue stays open until cancelled.
    #[arg(long)]
    follow: bool,
    /// Print results by index instead of as they completed.
    #[arg(long)]
    ordered: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(verb: JobVerb, output: &Output, end: &Interruption) -> Result<(), Stop> {
    match verb {
        JobVerb::List(args) => list(args, output).await,
        JobVerb::Show(args) => show(args, output).await,
        JobVerb::Cancel(args) => cancel(args, output).await,
        JobVerb::Results(args) => results(args, output, end).await,
        JobVerb::Wait(args) => wait::run(args, output, end).await,
        JobVerb::Dead(args) => dead::list(args, output).await,
        JobVerb::Retry(args) => dead::retry(args, output).await,
    }
}

async fn list(args: ListArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley job").await?;
    let jobs = client.jobs().await?;
    client.close().await;
    if args.format.json {
        let jobs: Vec<_> = jobs.iter().map(objects::job).collect();
        return output.json(&json!({ "schema": "volley.jobs/1", "jobs": jobs }));
    }
    table(&jobs)
        .lines()
        .into_iter()
        .try_for_each(|line| output.data(line))
}

fn table(jobs: &[JobSummary]) -> Table {
    let columns = [
        ("JOB", Align::Left),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("ROLLOUTS", Align::Right),
        ("QUEUED", Align::Right),
        ("LEASED", Align::Right),
        ("DONE", Align::Right),
        ("FAILED", Align::Right),
        ("RETRIES", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for job in jobs {
        table.row([
            job.job.to_string()[..12].to_owned(),
            text::line(&job.name, 24),
            objects::job_kind(job.kind).to_owned(),
            objects::job_state(job.state).to_owned(),
            text::count(job.rollouts),
            text::count(job.queued),
            text::count(job.leased),
            text::count(job.accepted),
            text::count(job.failed),
            text::count(job.retries),
        ]);
    }
    table
}

async fn show(args: JobArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley job").await?;
    let id = find_job(&client, &args.job).await?;
    let job = client.job(id).await?;
    client.close().await;
    if args.format.json {
        let object = json!({ "schema": "volley.job/1", "job": objects::job(&job) });
        return output.json(&object);
    }
    page(&job)
        .into_iter()
        .try_for_each(|line| output.data(line))
}

fn page(job: &JobSummary) -> Vec<String> {
    let line = |name: &str, value: String| format!("{name:<12} {value}");
    let mut lines = vec![
        line("job", job.job.to_string()),
        line("name", text::line(&job.name, 64)),
        line("environment", text::line(&job.environment, 64)),
        line("kind", objects::job_kind(job.kind).to_owned()),
        line("state", objects::job_state(job.state).to_owned()),
        line("priority", job.priority.to_string()),
        line("rollouts", text::count(job.rollouts)),
        line(
            "queued",
            format!(
                "{} ({} may run now)",
                text::count(job.queued),
                text::count(job.dispatchable)
            ),
        ),
        line("leased", text::count(job.leased)),
        line("done", text::count(job.accepted)),
        line("failed", failed(job)),
        line("cancelled", text::count(job.cancelled)),
        line("retries", text::count(job.retries)),
    ];
    if job.take > 0 {
        lines.push(line(
            "takes",
            format!("the first {}", text::count(job.take)),
        ));
    }
    if let Some((code, message)) = &job.last_failure {
        lines.push(line(
            "last failure",
            format!("{code}: {}", text::line(message, 100)),
        ));
    }
    lines
}

/// How many were given up, and where to read why.
fn failed(job: &JobSummary) -> String {
    let failed = text::count(job.failed);
    if job.failed == 0 {
        return failed;
    }
    format!(
        "{failed} (dead letters: volley job dead {})",
        &job.job.to_string()[..12]
    )
}

async fn cancel(args: CancelArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley job").await?;
    let job = find_job(&client, &args.job).await?;
    client.cancel(job).await?;
    client.close().await;
    output.talk(&format!("job {job} is cancelled"));
    Ok(())
}

async fn results(args: ResultsArgs, output: &Output, end: &Interruption) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley job").await?;
    let job = find_job(&client, &args.job).await?;
    let summary = client.job(job).await?;
    if summary.kind == JobKind::Train {
        let message = format!("results of job {job} went to its learner, none are kept here");
        let fault = Fault::new(ErrorCode::NotFound, message);
        return Err(fault
            .with_hint("volley run show RUN tells how it trains")
            .into());
    }
    let stream = if args.follow {
        client.results(job)
    } else {
        client.results_so_far(job)
    };
    let stream = stream.first(summary.take);
    let ends = args.follow && summary.kind != JobKind::Queue;
    let due = ends.then_some(Due::of(summary.rollouts, summary.take));
    let show = Show::new(output, args.format.json, due);
    end.leaves(job);
    let outcome = show.all(Outcomes::new(stream, order(args.ordered))).await;
    client.close().await;
    outcome
}

/// What a job id of the command line stands for: an id, its beginning, or a job's name.
async fn find_job(client: &Client, told: &str) -> Result<JobId, Fault> {
    if told.len() == 32
        && let Ok(job) = told.parse()
    {
        return Ok(job);
    }
    let jobs = client.jobs().await?;
    let fits = |job: &&JobSummary| {
        job.name == told || (told.len() >= 4 && job.job.to_string().starts_with(told))
    };
    let found: Vec<JobId> = jobs.iter().filter(fits).map(|job| job.job).collect();
    match found.as_slice() {
        [job] => Ok(*job),
        [] => Err(
            Fault::new(ErrorCode::NotFound, format!("there is no job `{told}`"))
                .with_hint("`volley job list` shows them"),
        ),
        more => {
            let message = format!("`{told}` names {} jobs", more.len());
            Err(Fault::new(ErrorCode::NotFound, message)
                .with_hint("give more digits of the id: volley job list"))
        }
    }
}

#[cfg(test)]
mod tests {
    use volley_protocol::job::JobState;

    use super::*;

    fn job() -> JobSummary {
        JobSummary {
            job: JobId(0xabcd << 112),
            name: "map\u{1b}[31m".into(),
            environment: "guess".into(),
            kind: JobKind::Map,
            state: JobState::Open,
            rollouts: 1_024,
            dispatchable: 500,
            queued: 512,
            leased: 12,
            accepted: 490,
            failed: 10,
            retries: 3,
            last_failure: Some((ErrorCode::EnvPanic, "bad\nstate".into())),
            cancelled: 0,
            take: 0,
            priority: 5,
        }
    }

    #[test]
    fn a_list_and_a_page_of_jobs() {
        let lines = table(&[job()]).lines();
        assert!(lines[0].starts_with("JOB           NAME"), "{lines:?}");
        assert!(
            lines[1].starts_with("abcd00000000  map\\u{1b}[31m"),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("3"));
        let page = page(&job()).join("\n");
        assert!(page.contains("last failure ENV_PANIC: bad state"), "{page}");
        assert!(page.contains("512 (500 may run now)"));
        assert!(
            page.contains("10 (dead letters: volley job dead abcd00000000)"),
            "{page}"
        );
    }
}
