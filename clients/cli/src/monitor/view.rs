//! What is shown, as plain values: a pure function of a snapshot.

use std::time::Duration;

use volley_protocol::job::JobState;
use volley_protocol::run::{RunState, RunSummary};
use volley_protocol::snapshot::{ClusterSnapshot, WorkerState, WorkerSummary};

use crate::json::worker_state;
use crate::text;

/// A worker that is not heard for this long is worth a warning: three heartbeats.
const HEARTBEAT_LATE: Duration = Duration::from_secs(3);

/// How the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Healthy,
    Degraded,
    Unreachable,
}

impl Health {
    pub(super) fn of(snapshot: &ClusterSnapshot) -> Self {
        if worst_problem(snapshot).is_some() {
            Self::Degraded
        } else {
            Self::Healthy
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unreachable => "unreachable",
        }
    }

    pub(super) const fn letter(self) -> char {
        match self {
            Self::Healthy => 'H',
            Self::Degraded => 'D',
            Self::Unreachable => 'U',
        }
    }
}

/// The most important finding, as a sentence: the coordinator's own, else what a snapshot shows.
pub(super) fn worst_problem(snapshot: &ClusterSnapshot) -> Option<String> {
    if let Some(problem) = snapshot.problems.first() {
        return Some(problem.clone());
    }
    let failed = snapshot.runs.iter().find_map(|run| match &run.state {
        RunState::Failed(fault) => Some(format!(
            "run {} failed: {}: {}",
            run.info.name, fault.code, fault.message
        )),
        RunState::Training | RunState::Finished | RunState::Stopped => None,
    });
    let lost = || {
        let lost = snapshot
            .workers
            .iter()
            .filter(|w| w.state == WorkerState::Lost);
        let names: Vec<&str> = lost.map(|worker| worker.name.as_str()).collect();
        match names.as_slice() {
            [] => None,
            [name] => Some(format!("worker {name} is lost; its rollouts wait for it")),
            [name, more @ ..] => Some(format!("workers {name} and {} more are lost", more.len())),
        }
    };
    failed.or_else(lost)
}

/// A run's figures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RunView {
    pub(super) name: String,
    pub(super) step: u64,
    pub(super) steps_total: u64,
    pub(super) state: &'static str,
    /// Mean number of versions that connected workers are behind.
    pub(super) lag: f64,
    pub(super) reward: Option<f64>,
    pub(super) history: Vec<f64>,
    /// Change of the reward in a hundred steps.
    pub(super) trend: Option<f64>,
    /// Named figures of the last step.
    pub(super) figures: Vec<(&'static str, String)>,
    /// Further runs that are not shown.
    pub(super) more: usize,
}

impl RunView {
    /// Of the run that trains; without one of the last that is known.
    pub(super) fn of(snapshot: &ClusterSnapshot) -> Option<Self> {
        let runs = &snapshot.runs;
        let trains = |run: &&RunSummary| run.connected && run.state == RunState::Training;
        let run = runs.iter().find(trains).or_else(|| runs.last())?;
        let history: Vec<f64> = run.reward_history.iter().map(|r| f64::from(*r)).collect();
        let figures = run.last.as_ref().map(|last| {
            vec![
                ("KL", format!("{:.4}", last.drift_kl)),
                ("loss", format!("{:.3}", last.loss)),
                ("entropy", format!("{:.2}", last.entropy)),
                ("grad", format!("{:.2}", last.grad_norm)),
                ("stale", format!("{:.1}", last.staleness_mean)),
                (
                    "no signal",
                    format!("{}/{}", last.groups_zero_variance, last.groups),
                ),
            ]
        });
        Some(Self {
            name: run.info.name.clone(),
            step: run.step,
            steps_total: run.info.steps_total,
            state: crate::json::run_state(&run.state),
            lag: lag(run.step, &snapshot.workers),
            reward: run.last.as_ref().map(|last| last.reward_mean),
            trend: slope(&history)
                .map(|slope| slope * 100.0)
                .filter(|trend| trend.is_finite()),
            history,
            figures: figures.unwrap_or_default(),
            more: runs.len() - 1,
        })
    }
}

fn lag(step: u64, workers: &[WorkerSummary]) -> f64 {
    let up = workers
        .iter()
        .filter(|worker| worker.state == WorkerState::Up);
    let behind: Vec<f64> = up
        .map(|worker| step.saturating_sub(worker.adapter_step) as f64)
        .collect();
    behind.iter().sum::<f64>() / behind.len().max(1) as f64
}

/// Least squares, per step; none for fewer than three points.
fn slope(values: &[f64]) -> Option<f64> {
    if values.len() < 3 {
        return None;
    }
    let n = values.len() as f64;
    let mean_x = (n - 1.0) / 2.0;
    let mean_y = values.iter().sum::<f64>() / n;
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in values.iter().enumerate() {
        let dx = x as f64 - mean_x;
        above += dx * (y - mean_y);
        below += dx * dx;
    }
    Some(above / below)
}

/// A worker's cells.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkerRow {
    pub(super) name: String,
    pub(super) state: WorkerState,
    pub(super) slots: String,
    pub(super) adapter: String,
    pub(super) lags: bool,
    pub(super) episodes: String,
    pub(super) tokens_per_s: String,
    pub(super) heartbeat: String,
    pub(super) late: bool,
    pub(super) pid: String,
}

impl WorkerRow {
    fn new(worker: &WorkerSummary, step: Option<u64>) -> Self {
        let lags =
            worker.state == WorkerState::Up && step.is_some_and(|step| worker.adapter_step < step);
        let mark = if lags { "!" } else { "" };
        let age = Duration::from_millis(worker.heartbeat_age_ms);
        let known = worker.state != WorkerState::Starting;
        let when_known = |text: String| if known { text } else { "-".to_owned() };
        Self {
            name: worker.name.clone(),
            state: worker.state,
            slots: slots(worker),
            adapter: when_known(format!("{}{mark}", worker.adapter_step)),
            lags,
            episodes: text::count(worker.episodes_total),
            tokens_per_s: text::rate(f64::from(worker.tokens_per_s)),
            heartbeat: when_known(text::duration(age)),
            late: known && age > HEARTBEAT_LATE,
            pid: if worker.pid == 0 {
                "-".to_owned()
            } else {
                worker.pid.to_string()
            },
        }
    }

    /// Letter and word.
    pub(super) fn state_words(&self) -> String {
        let word = worker_state(self.state);
        let letter = word.chars().next().unwrap_or('?').to_ascii_uppercase();
        format!("{letter} {word}")
    }
}

/// Busy of all; leases beyond the slots wait at the worker for the next free one.
fn slots(worker: &WorkerSummary) -> String {
    let waiting = worker.leased.saturating_sub(worker.slots);
    let busy = worker.leased - waiting;
    match waiting {
        0 => format!("{busy}/{}", worker.slots),
        waiting => format!("{busy}/{}+{waiting}", worker.slots),
    }
}

/// In which order workers stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Those that need attention first.
    #[default]
    State,
    Name,
    Tokens,
    Heartbeat,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::State => Self::Name,
            Self::Name => Self::Tokens,
            Self::Tokens => Self::Heartbeat,
            Self::Heartbeat => Self::State,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Name => "name",
            Self::Tokens => "tok/s",
            Self::Heartbeat => "beat",
        }
    }
}

/// Workers in order. Names decide among equals, so that rows do not jump.
pub(super) fn worker_rows(snapshot: &ClusterSnapshot, sort: Sort) -> Vec<WorkerRow> {
    let mut workers: Vec<&WorkerSummary> = snapshot.workers.iter().collect();
    workers.sort_by(|a, b| {
        let first = match sort {
            Sort::State => urgency(b.state).cmp(&urgency(a.state)),
            Sort::Name => std::cmp::Ordering::Equal,
            Sort::Tokens => b.tokens_per_s.total_cmp(&a.tokens_per_s),
            Sort::Heartbeat => b.heartbeat_age_ms.cmp(&a.heartbeat_age_ms),
        };
        first.then_with(|| by_number(&a.name).cmp(&by_number(&b.name)))
    });
    let step = RunView::of(snapshot).map(|run| run.step);
    workers
        .into_iter()
        .map(|worker| WorkerRow::new(worker, step))
        .collect()
}

const fn urgency(state: WorkerState) -> u8 {
    match state {
        WorkerState::Lost => 3,
        WorkerState::Draining => 2,
        WorkerState::Starting => 1,
        WorkerState::Up => 0,
    }
}

/// `w-10` comes after `w-9`.
fn by_number(name: &str) -> (&str, u64, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem, name[stem.len()..].parse().unwrap_or_default(), name)
}

/// Jobs by state and what failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JobCounts {
    pub(super) open: usize,
    pub(super) done: usize,
    pub(super) cancelled: usize,
    pub(super) failed_rollouts: u64,
}

pub(super) fn job_counts(snapshot: &ClusterSnapshot) -> JobCounts {
    let mut counts = JobCounts::default();
    for job in &snapshot.jobs {
        match job.state {
            JobState::Open => counts.open += 1,
            JobState::Done => counts.done += 1,
            JobState::Cancelled => counts.cancelled += 1,
        }
        counts.failed_rollouts += job.failed;
    }
    counts
}

/// What happened, newest first, with how long ago.
pub(super) fn events(snapshot: &ClusterSnapshot) -> Vec<String> {
    let newest_first = snapshot.notices.iter().rev();
    newest_first
        .map(|notice| {
            let ago = snapshot.uptime_ms.saturating_sub(notice.at_ms);
            format!(
                "{:>6} ago  {}",
                text::duration(Duration::from_millis(ago)),
                notice.text
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn the_trend_is_the_slope() {
        assert_eq!(slope(&[0.0, 0.1]), None);
        let slope = slope(&[0.0, 0.1, 0.2, 0.3]).expect("four points");
        assert!((slope - 0.1).abs() < 1e-12);
    }

    #[test]
    fn health_follows_from_what_is_wrong() {
        assert_eq!(Health::of(&fixtures::normal()), Health::Healthy);
        assert_eq!(Health::of(&fixtures::degraded()), Health::Degraded);
        let mut snapshot = fixtures::normal();
        snapshot.workers[1].state = WorkerState::Lost;
        assert_eq!(Health::of(&snapshot), Health::Degraded);
        let problem = worst_problem(&snapshot).expect("a lost worker");
        assert!(problem.contains("w-2 is lost"), "{problem}");
    }

    #[test]
    fn workers_stand_in_order() {
        let names = |sort| -> Vec<String> {
            let rows = worker_rows(&fixtures::degraded(), sort);
            rows.into_iter().map(|row| row.name).collect()
        };
        assert_eq!(names(Sort::Name), ["w-1", "w-2", "w-3", "w-4", "w-10"]);
        assert_eq!(names(Sort::State)[0], "w-3", "the lost one first");
        assert_eq!(names(Sort::Heartbeat)[0], "w-3");
        let mut sort = Sort::State;
        for _ in 0..4 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::State, "every order is reached");
    }

    #[test]
    fn lagging_adapters_are_marked() {
        let rows = worker_rows(&fixtures::degraded(), Sort::Name);
        assert_eq!(rows[1].slots, "22/32");
        assert_eq!(
            rows[4].slots, "32/32+7",
            "what waits for a slot is told apart"
        );
        assert_eq!((rows[1].adapter.as_str(), rows[1].lags), ("409!", true));
        assert_eq!((rows[0].adapter.as_str(), rows[0].lags), ("412", false));
    }
}
