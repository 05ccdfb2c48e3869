//! What is shown, as plain values: a pure function of a snapshot.

use std::time::Duration;

use volley_protocol::job::JobState;
use volley_protocol::run::{RunState, RunSummary};
use volley_protocol::snapshot::{ClusterSnapshot, WorkerState, WorkerSummary};

use crate::text;

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
}
