//! Watches a run through the coordinator until it is over.

use std::time::Duration;

use volley_client::Client;
use volley_protocol::AdapterVersion;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::run::{RunState, StepReport};

use super::plan::Plan;
use super::voice::Voice;

/// One long poll.
const WAIT: Duration = Duration::from_secs(10);

/// A learner that has not registered its run yet is asked for again after this long.
const REGISTER_WAIT: Duration = Duration::from_millis(50);

/// A learner that has not registered its run after this long has a problem that its log tells.
const REGISTER_WITHIN: Duration = Duration::from_secs(120);

/// What was seen of a run.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) state: RunState,
    /// Newest version.
    pub(crate) head: AdapterVersion,
    pub(crate) train_ms: u64,
    pub(crate) rollouts: u64,
    pub(crate) tokens_sampled: u64,
    pub(crate) mismatch_max: f64,
    pub(crate) mismatch_tokens: u64,
}

/// Reports every step, and returns when the run no longer trains.
pub(crate) async fn follow(
    client: &Client,
    plan: &Plan,
    voice: &mut Voice,
) -> Result<Followed, Fault> {
    wait_for_registration(client, plan).await?;
    let mut reports = plan.directory.reports()?;
    let done = reports.last().map_or(0, |report| report.step);
    voice.begin(plan.recipe.train.steps, done);
    let mut after = done;
    let state = loop {
        let progress = client.run_progress(plan.run, after, WAIT).await?;
        let nothing_new = progress.reports.is_empty();
        for report in progress.reports {
            after = report.step;
            voice.step(&report, plan.recipe.train.steps);
            reports.push(report);
        }
        if nothing_new && progress.state != RunState::Training {
            break progress.state;
        }
    };
    let adapters = client.adapters(plan.run).await?;
    let head = adapters
        .entries
        .last()
        .map(|entry| entry.version)
        .ok_or_else(|| Fault::new(ErrorCode::NotFound, "the run has published no adapter"))?;
    Ok(Followed::sum(state, head, &reports))
}

async fn wait_for_registration(client: &Client, plan: &Plan) -> Result<(), Fault> {
    let late = tokio::time::Instant::now() + REGISTER_WITHIN;
    while tokio::time::Instant::now() < late {
        if client
            .runs()
            .await?
            .iter()
            .any(|run| run.info.run == plan.run && run.connected)
        {
            return Ok(());
        }
        tokio::time::sleep(REGISTER_WAIT).await;
    }
    let fault = Fault::new(ErrorCode::PeerLost, "the learner did not register its run");
    Err(fault.with_hint(format!(
        "read {}",
        plan.directory.logs().join("learner.log").display()
    )))
}

impl Followed {
    fn sum(state: RunState, head: AdapterVersion, reports: &[StepReport]) -> Self {
        Self {
            state,
            head,
            train_ms: reports.last().map_or(0, |report| report.train_ms_total),
            rollouts: reports.iter().map(|report| report.rollouts).sum(),
            tokens_sampled: reports.iter().map(|report| report.tokens_sampled).sum(),
            mismatch_max: reports.iter().map(|r| r.mismatch_max).fold(0.0, f64::max),
            mismatch_tokens: reports.iter().map(|report| report.mismatch_tokens).sum(),
        }
    }
}
