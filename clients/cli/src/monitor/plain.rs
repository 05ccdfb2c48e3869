//! The cluster as plain text: every process with its number, jobs, runs, events.

use std::time::Duration;

use volley_protocol::snapshot::{ClusterSnapshot, WorkerState};

use super::view::{self, Health};
use super::workers::{self, Sort};
use crate::json;
use crate::table::{Align, Table};
use crate::text;

/// Jobs and events shown; the rest is counted.
const JOBS_MAX: usize = 10;
/// As above.
const EVENTS_MAX: usize = 5;

/// Columns of a sentence.
const SENTENCE_COLUMNS: usize = 120;

pub(super) fn lines(snapshot: &ClusterSnapshot) -> Vec<String> {
    let mut lines = vec![title(snapshot)];
    let problems = match snapshot.problems.as_slice() {
        [] => view::worst_problem(snapshot).into_iter().collect(),
        problems => problems.to_vec(),
    };
    lines.extend(
        problems
            .iter()
            .map(|words| format!("! {}", text::line(words, SENTENCE_COLUMNS))),
    );
    lines.push(String::new());
    lines.extend(processes(snapshot).lines());
    section(&mut lines, "", jobs(snapshot));
    section(&mut lines, "", runs(snapshot));
    let events = view::events(snapshot);
    let shown = events.iter().take(EVENTS_MAX);
    let words = shown
        .map(|event| text::line(event, SENTENCE_COLUMNS))
        .collect();
    section(&mut lines, "EVENTS", words);
    lines
}

fn section(lines: &mut Vec<String>, title: &str, body: Vec<String>) {
    if body.is_empty() {
        return;
    }
    lines.push(String::new());
    if !title.is_empty() {
        lines.push(title.to_owned());
    }
    lines.extend(body);
}

fn title(snapshot: &ClusterSnapshot) -> String {
    format!(
        "cluster {}  v{}  up {}  {}  queue {}  leased {}  {} rollouts/s  {} tokens/s",
        text::line(&snapshot.cluster, 40),
        text::line(&snapshot.version, 20),
        text::duration(Duration::from_millis(snapshot.uptime_ms)),
        Health::of(snapshot).word(),
        text::count(snapshot.dispatchable),
        text::count(snapshot.leased),
        text::rate(f64::from(snapshot.rollouts_per_s)),
        text::rate(f64::from(snapshot.tokens_per_s)),
    )
}

fn processes(snapshot: &ClusterSnapshot) -> Table {
    let columns = [
        ("ROLE", Align::Left),
        ("NAME", Align::Left),
        ("PID", Align::Right),
        ("STATE", Align::Left),
        ("SLOTS", Align::Right),
        ("ADAPTER", Align::Right),
        ("EPISODES", Align::Right),
        ("TOK/S", Align::Right),
        ("BEAT", Align::Right),
    ];
    let mut table = Table::new(&columns);
    let without_figures = |role: &str, name: String, pid: u32, state: &str| {
        let none = || "-".to_owned();
        let pid = pid.to_string();
        let state = state.to_owned();
        [
            role.to_owned(),
            name,
            pid,
            state,
            none(),
            none(),
            none(),
            none(),
            none(),
        ]
    };
    let cluster = text::line(&snapshot.cluster, 24);
    table.row(without_figures("coordinator", cluster, snapshot.pid, "up"));
    let connected: Vec<_> = snapshot.runs.iter().filter(|run| run.connected).collect();
    for (at, pid) in snapshot.learner_pids.iter().enumerate() {
        // Runs and process ids are listed apart; they belong together when they are as many.
        let run = connected
            .get(at)
            .filter(|_| connected.len() == snapshot.learner_pids.len());
        let name = run.map_or_else(|| "-".to_owned(), |run| text::line(&run.info.name, 24));
        let state = run.map_or("up", |run| json::run_state(&run.state));
        table.row(without_figures("learner", name, *pid, state));
    }
    for row in workers::rows(snapshot, Sort::Name) {
        let state = json::worker_state(row.state).to_owned();
        debug_assert!(row.state != WorkerState::Starting || row.heartbeat == "-");
        table.row([
            "worker".to_owned(),
            text::line(&row.name, 24),
            row.pid,
            state,
            row.slots,
            row.adapter,
            row.episodes,
            row.tokens_per_s,
            row.heartbeat,
        ]);
    }
    table
}

fn jobs(snapshot: &ClusterSnapshot) -> Vec<String> {
    if snapshot.jobs.is_empty() {
        return Vec::new();
    }
    let columns = [
        ("JOB", Align::Left),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("DONE", Align::Right),
        ("OF", Align::Right),
        ("QUEUED", Align::Right),
        ("LEASED", Align::Right),
        ("FAILED", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for job in snapshot.jobs.iter().take(JOBS_MAX) {
        table.row([
            job.job.to_string()[..12].to_owned(),
            text::line(&job.name, 24),
            json::job_kind(job.kind).to_owned(),
            json::job_state(job.state).to_owned(),
            text::count(job.accepted),
            text::count(job.rollouts),
            text::count(job.queued),
            text::count(job.leased),
            text::count(job.failed),
        ]);
    }
    let mut lines = table.lines();
    let more = snapshot.jobs.len().saturating_sub(JOBS_MAX);
    if more > 0 {
        lines.push(format!("and {more} more: volley job list"));
    }
    lines
}

fn runs(snapshot: &ClusterSnapshot) -> Vec<String> {
    if snapshot.runs.is_empty() {
        return Vec::new();
    }
    let columns = [
        ("RUN", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("STEP", Align::Right),
        ("OF", Align::Right),
        ("REWARD", Align::Right),
        ("LEARNER", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for run in &snapshot.runs {
        let reward = run
            .last
            .as_ref()
            .map(|last| format!("{:.3}", last.reward_mean));
        table.row([
            run.info.run.to_string()[..12].to_owned(),
            text::line(&run.info.name, 24),
            json::run_state(&run.state).to_owned(),
            text::count(run.step),
            text::count(run.info.steps_total),
            reward.unwrap_or_else(|| "-".to_owned()),
            if run.connected { "connected" } else { "away" }.to_owned(),
        ]);
    }
    table.lines()
}
