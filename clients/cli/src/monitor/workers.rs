//! The table of workers, as cells.

use std::time::Duration;

use volley_protocol::snapshot::{ClusterSnapshot, WorkerState, WorkerSummary};

use super::view::RunView;
use crate::json::worker_state;
use crate::text;

/// A worker that is not heard for this long is worth a warning: three heartbeats.
const HEARTBEAT_LATE: Duration = Duration::from_secs(3);

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
pub(super) fn rows(snapshot: &ClusterSnapshot, sort: Sort) -> Vec<WorkerRow> {
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

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn workers_stand_in_order() {
        let names = |sort| -> Vec<String> {
            let rows = rows(&fixtures::degraded(), sort);
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
        let rows = rows(&fixtures::degraded(), Sort::Name);
        assert_eq!(rows[1].slots, "22/32");
        assert_eq!(
            rows[4].slots, "32/32+7",
            "what waits for a slot is told apart"
        );
        assert_eq!((rows[1].adapter.as_str(), rows[1].lags), ("409!", true));
        assert_eq!((rows[0].adapter.as_str(), rows[0].lags), ("412", false));
    }
}
