//! `volley train`: a whole run on this machine, from the recipe to the report.
//!
//! It starts a coordinator (which starts workers) and a learner as processes, and is itself an
//! ordinary client of theirs: it evaluates, watches, evaluates again, and writes the report.

mod evaluate;
mod follow;
mod plan;
mod voice;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio::sync::oneshot;
use volley_client::Client;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::job::PolicyRef;
use volley_protocol::run::RunState;
use volley_runtime::process::{Handoff, Lifelines, RoleHandle};
use volley_runtime::run_dir::Evaluation;

use super::launch::{END_WITHIN, LocalCluster};
use super::serve;
use follow::Followed;
use plan::Plan;
use voice::Voice;

/// Trains a LoRA adapter by reinforcement learning, with all roles as processes of this machine.
#[derive(Args, Clone, Debug)]
pub(crate) struct TrainArgs {
    /// What to train, on what, how. With --resume it may be left out when --run-dir is given.
    #[arg(value_name = "RECIPE.toml", required_unless_present = "run_dir")]
    recipe: Option<PathBuf>,
    /// Optimiser steps, instead of the recipe's.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Rollout workers, instead of the recipe's.
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Directory of the run. Default: a new one under runs/.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Seed of sampling and initialisation, instead of the recipe's.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Go on where the run in --run-dir, or the newest run of this recipe, stopped.
    #[arg(long)]
    resume: bool,
    /// Events as NDJSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Trains to the end, or until asked to stop.
pub(crate) fn run(args: TrainArgs, handoff: &Handoff) -> Result<(), Fault> {
    serve::block_on(async {
        let plan = Plan::make(&args)?;
        let mut voice = Voice::open(args.json, &plan.directory.events())?;
        let asked = serve::when_asked_to_end(handoff.lifelines())?;
        voice.words(&format!(
            "run directory: {}",
            plan.directory.path().display()
        ));
        let outcome = run_cluster(&plan, handoff.lifelines(), asked, &mut voice).await;
        voice.end();
        plan.conclude(&outcome);
        if let Err(fault) = &outcome {
            let event = json!({
                "event": "stopped",
                "code": fault.code.name(),
                "message": fault.message,
                "run_dir": plan.directory.path(),
            });
            voice.event(&event, "");
        }
        outcome
    })
}

async fn run_cluster(
    plan: &Plan,
    launchers: &Lifelines,
    asked: oneshot::Receiver<()>,
    voice: &mut Voice,
) -> Result<(), Fault> {
    let cluster = plan.cluster();
    let (mut coordinator, client) = cluster.start(launchers).await?;
    let mut learner = None;
    let mut outcome = tokio::select! {
        outcome = train(plan, &cluster, launchers, &client, &mut learner, voice) => outcome,
        _ = asked => Err(interrupted(plan)),
        ended = coordinator.ended() => Err(unexpected("coordinator", ended.err())),
    };
    // In this order: a learner finishes its step and writes a checkpoint, and may need the
    // coordinator for its last receipts.
    if let Some(learner) = learner {
        voice.end();
        if outcome.is_err() {
            voice.words("finishing the step and writing a checkpoint …");
        }
        let stopped = learner.stop(END_WITHIN).await.map(drop);
        // What happened first is what is told.
        outcome = outcome.and(stopped);
    }
    client.close().await;
    let stopped = coordinator.stop(END_WITHIN).await.map(drop);
    outcome.and(stopped)
}

async fn train(
    plan: &Plan,
    cluster: &LocalCluster,
    launchers: &Lifelines,
    client: &Client,
    learner: &mut Option<RoleHandle>,
    voice: &mut Voice,
) -> Result<(), Fault> {
    let before = match plan.directory.info()?.before() {
        Some(before) => before.clone(),
        None => {
            voice.words("evaluating the base policy on held-out instances …");
            let before = evaluate::run(client, &plan.held_out(), PolicyRef::Base, 0).await?;
            plan.directory.keep_evaluation(&before)?;
            before
        }
    };
    voice.evaluated("before", &before);

    let learner = learner.insert(cluster.learner(plan.directory.path(), launchers)?);
    let followed = tokio::select! {
        followed = follow::follow(client, plan, voice) => followed?,
        ended = learner.ended() => return Err(unexpected("learner", ended.err())),
    };
    voice.end();
    match followed.state {
        RunState::Finished => {}
        RunState::Failed(fault) => return Err(fault),
        RunState::Stopped | RunState::Training => return Err(interrupted(plan)),
    }

    voice.words("evaluating the trained policy on the same instances …");
    let policy = PolicyRef::Version(followed.head);
    let step = followed.head.step;
    let after = evaluate::run(client, &plan.held_out(), policy, step).await?;
    plan.directory.keep_evaluation(&after)?;
    voice.evaluated("after", &after);
    finish(plan, &followed, &before, &after, voice)
}

fn finish(
    plan: &Plan,
    followed: &Followed,
    before: &Evaluation,
    after: &Evaluation,
    voice: &mut Voice,
) -> Result<(), Fault> {
    let report = plan.write_report()?;
    let train_seconds = followed.train_ms as f64 / 1e3;
    let event = json!({
        "event": "finished",
        "run": plan.recipe.name,
        "run_dir": plan.directory.path(),
        "report": report,
        "adapter": plan.directory.adapters().join(format!("step-{:06}", after.step)),
        "heldout_before": before.greedy,
        "heldout_after": after.greedy,
        "heldout_sampled_before": before.sampled,
        "heldout_sampled_after": after.sampled,
        "heldout_instances": after.instances,
        "steps": after.step,
        "train_seconds": train_seconds,
        "rollouts": followed.rollouts,
        "tokens_sampled": followed.tokens_sampled,
        "mismatch_max": followed.mismatch_max,
        "mismatch_tokens": followed.mismatch_tokens,
    });
    let words = format!(
        "\nheld-out reward  greedy {:.3} → {:.3}   sampled {:.3} → {:.3}\n\
         {} steps, {} rollouts in {train_seconds:.1} s; sampler and learner differed on 0 of {} tokens\n\
         adapter  {}\nreport   {}",
        before.greedy,
        after.greedy,
        before.sampled,
        after.sampled,
        after.step,
        followed.rollouts,
        followed.mismatch_tokens,
        plan.directory
            .adapters()
            .join(format!("step-{:06}", after.step))
            .display(),
        report.display(),
    );
    voice.event(&event, &words);
    Ok(())
}

fn interrupted(plan: &Plan) -> Fault {
    let run_dir = plan.directory.path().display();
    let fault = Fault::new(
        ErrorCode::Interrupted,
        format!("the run in {run_dir} was interrupted"),
    );
    fault.with_hint(format!(
        "go on with: volley train --resume --run-dir {run_dir}"
    ))
}

fn unexpected(role: &str, fault: Option<Fault>) -> Fault {
    let ended = || Fault::new(ErrorCode::RoleFailed, format!("the {role} ended by itself"));
    fault.unwrap_or_else(ended)
}
