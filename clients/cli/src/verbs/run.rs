//! `volley run`: training runs and how they go.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use volley_protocol::run::{RunState, RunSummary, StepReport};

use super::work::find_run;
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::json as objects;
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text;

/// Steps that `run show` prints without `--json`.
const STEPS_SHOWN: usize = 10;

/// List and show training runs.
#[derive(Debug, Subcommand)]
pub(crate) enum RunVerb {
    /// All runs that the coordinator has seen.
    List(ListArgs),
    /// One run with its last steps.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Name, id, or the beginning of an id.
    run: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(verb: RunVerb, output: &Output) -> Result<(), Stop> {
    match verb {
        RunVerb::List(args) => list(args, output).await,
        RunVerb::Show(args) => show(args, output).await,
    }
}

async fn list(args: ListArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley run").await?;
    let runs = client.runs().await?;
    client.close().await;
    if args.format.json {
        let runs: Vec<_> = runs.iter().map(objects::run).collect();
        return output.json(&json!({ "schema": "volley.runs/1", "runs": runs }));
    }
    table(&runs)
        .lines()
        .into_iter()
        .try_for_each(|line| output.data(line))
}

fn table(runs: &[RunSummary]) -> Table {
    let columns = [
        ("RUN", Align::Left),
        ("NAME", Align::Left),
        ("ENVIRONMENT", Align::Left),
        ("STATE", Align::Left),
        ("STEP", Align::Right),
        ("OF", Align::Right),
        ("REWARD", Align::Right),
        ("LEARNER", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for run in runs {
        let reward = run
            .last
            .as_ref()
            .map(|last| format!("{:.3}", last.reward_mean));
        table.row([
            run.info.run.to_string()[..12].to_owned(),
            text::line(&run.info.name, 24),
            text::line(&run.info.environment, 16),
            objects::run_state(&run.state).to_owned(),
            text::count(run.step),
            text::count(run.info.steps_total),
            reward.unwrap_or_else(|| "-".to_owned()),
            if run.connected { "connected" } else { "away" }.to_owned(),
        ]);
    }
    table
}

async fn show(args: ShowArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley run").await?;
    let run = find_run(&client, &args.run).await?;
    let (mut steps, mut after) = (Vec::new(), 0);
    if !args.format.json {
        after = run.step.saturating_sub(STEPS_SHOWN as u64);
    }
    // Pages of two hundred; the last one is short or empty.
    loop {
        let progress = client
            .run_progress(run.info.run, after, Duration::ZERO)
            .await?;
        let Some(last) = progress.reports.last() else {
            break;
        };
        after = last.step.max(after + 1);
        steps.extend(progress.reports);
    }
    client.close().await;
    if args.format.json {
        let steps: Vec<_> = steps.iter().map(objects::step).collect();
        let run = objects::run(&run);
        return output.json(&json!({ "schema": "volley.run/1", "run": run, "steps": steps }));
    }
    page(&run, &steps)
        .into_iter()
        .try_for_each(|line| output.data(line))
}

fn page(run: &RunSummary, steps: &[StepReport]) -> Vec<String> {
    let line = |name: &str, value: String| format!("{name:<12} {value}");
    let rewards: Vec<f64> = run
        .reward_history
        .iter()
        .map(|reward| f64::from(*reward))
        .collect();
    let mut lines = vec![
        line("run", run.info.run.to_string()),
        line("name", text::line(&run.info.name, 64)),
        line("environment", text::line(&run.info.environment, 64)),
        line("state", objects::run_state(&run.state).to_owned()),
        line(
            "learner",
            if run.connected { "connected" } else { "away" }.to_owned(),
        ),
        line("base", run.info.base.short()),
        line("rank", run.info.rank.to_string()),
        line("step", format!("{} of {}", run.step, run.info.steps_total)),
    ];
    if let RunState::Failed(fault) = &run.state {
        lines.push(line(
            "error",
            format!("{}: {}", fault.code, text::line(&fault.message, 100)),
        ));
    }
    if !rewards.is_empty() {
        lines.push(line("reward", text::curve(&rewards, 60, false)));
    }
    if !steps.is_empty() {
        lines.push(String::new());
        lines.extend(steps_table(steps).lines());
    }
    lines
}

fn steps_table(steps: &[StepReport]) -> Table {
    let columns = [
        ("STEP", Align::Right),
        ("REWARD", Align::Right),
        ("STD", Align::Right),
        ("LOSS", Align::Right),
        ("GRAD", Align::Right),
        ("ENTROPY", Align::Right),
        ("KL", Align::Right),
        ("NO SIGNAL", Align::Right),
        ("STALE", Align::Right),
        ("TIME", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for step in &steps[steps.len().saturating_sub(STEPS_SHOWN)..] {
        let time_ms = step.wait_ms + step.forward_backward_ms + step.publish_ms;
        table.row([
            step.step.to_string(),
            format!("{:.3}", step.reward_mean),
            format!("{:.3}", step.reward_std),
            format!("{:.4}", step.loss),
            format!("{:.3}", step.grad_norm),
            format!("{:.3}", step.entropy),
            format!("{:.5}", step.drift_kl),
            format!("{}/{}", step.groups_zero_variance, step.groups),
            format!("{:.1}", step.staleness_mean),
            text::duration(Duration::from_millis(time_ms)),
        ]);
    }
    table
}
