//! What the screen remembers between frames. Keys and snapshots go in; nothing is drawn here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use volley_protocol::Fault;
use volley_protocol::snapshot::ClusterSnapshot;

use super::keymap::Action;
use super::workers::Sort;

/// Points of the curves of rates: a minute at two snapshots a second.
const HISTORY_MAX: usize = 120;

/// Older data are called stale.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// Where the data on the screen come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Freshness {
    /// Nothing has come yet.
    Waiting {
        /// What the last attempt met.
        why: Option<String>,
    },
    /// They are of this moment.
    Live,
    /// They are old; the monitor reconnects.
    Stale {
        /// Seconds.
        age_s: u64,
    },
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) snapshot: Option<ClusterSnapshot>,
    heard: Option<Instant>,
    absence: Option<String>,
    pub(super) rollouts: VecDeque<f64>,
    pub(super) tokens: VecDeque<f64>,
    pub(super) sort: Sort,
    pub(super) help: bool,
    /// First worker on the screen.
    pub(super) top: usize,
    /// Workers that fitted on the last frame.
    pub(super) rows_visible: usize,
    pub(super) quit: bool,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            snapshot: None,
            heard: None,
            absence: None,
            rollouts: VecDeque::new(),
            tokens: VecDeque::new(),
            sort: Sort::default(),
            help: false,
            top: 0,
            rows_visible: 1,
            quit: false,
        }
    }

    /// A snapshot has come.
    pub(super) fn hear(&mut self, snapshot: ClusterSnapshot, now: Instant) {
        remember(&mut self.rollouts, snapshot.rollouts_per_s);
        remember(&mut self.tokens, snapshot.tokens_per_s);
        self.snapshot = Some(snapshot);
        self.heard = Some(now);
        self.absence = None;
        self.clamp();
    }

    /// The coordinator did not answer.
    pub(super) fn miss(&mut self, fault: &Fault) {
        self.absence = Some(fault.message.clone());
    }

    pub(super) fn freshness(&self, now: Instant) -> Freshness {
        match self.heard {
            None => Freshness::Waiting {
                why: self.absence.clone(),
            },
            Some(heard) => {
                let age = now.saturating_duration_since(heard);
                if age > STALE_AFTER {
                    Freshness::Stale {
                        age_s: age.as_secs(),
                    }
                } else {
                    Freshness::Live
                }
            }
        }
    }

    /// A key was pressed.
    pub(super) fn apply(&mut self, action: Action) {
        let page = self.rows_visible.max(1);
        match action {
            Action::Quit => self.quit = true,
            Action::Help => self.help = !self.help,
            Action::Sort => self.sort = self.sort.next(),
            Action::Down => self.top = self.top.saturating_add(1),
            Action::Up => self.top = self.top.saturating_sub(1),
            Action::PageDown => self.top = self.top.saturating_add(page),
            Action::PageUp => self.top = self.top.saturating_sub(page),
            Action::First => self.top = 0,
            Action::Last => self.top = usize::MAX,
        }
        self.clamp();
    }

    /// The last page is full, as far as there are workers.
    fn clamp(&mut self) {
        let workers = self
            .snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.workers.len());
        self.top = self.top.min(workers.saturating_sub(self.rows_visible));
        debug_assert!(self.top <= workers);
    }
}

fn remember(history: &mut VecDeque<f64>, value: f32) {
    if history.len() == HISTORY_MAX {
        history.pop_front();
    }
    history.push_back(f64::from(value));
}

#[cfg(test)]
mod tests {
    use volley_protocol::ErrorCode;

    use super::super::fixtures;
    use super::*;

    #[test]
    fn keys_move_within_the_workers() {
        let mut model = Model::new();
        model.apply(Action::Last);
        assert_eq!(model.top, 0, "nothing to move in");
        model.hear(fixtures::thousand(), Instant::now());
        model.rows_visible = 10;
        for (action, top) in [
            (Action::Down, 1),
            (Action::PageDown, 11),
            (Action::Up, 10),
            (Action::PageUp, 0),
            (Action::Up, 0),
            (Action::Last, 990),
            (Action::PageDown, 990),
            (Action::First, 0),
        ] {
            model.apply(action);
            assert_eq!(model.top, top, "{action:?}");
        }
        model.apply(Action::Last);
        model.hear(fixtures::normal(), Instant::now());
        assert_eq!(model.top, 0, "the workers went away");
        model.apply(Action::Help);
        assert!(model.help);
        model.apply(Action::Help);
        model.apply(Action::Quit);
        assert!(!model.help && model.quit);
    }

    #[test]
    fn data_grow_stale_and_come_back() {
        let (mut model, begun) = (Model::new(), Instant::now());
        assert_eq!(model.freshness(begun), Freshness::Waiting { why: None });
        model.miss(&Fault::new(ErrorCode::CoordinatorUnreachable, "nobody"));
        assert_eq!(
            model.freshness(begun),
            Freshness::Waiting {
                why: Some("nobody".into())
            }
        );
        model.hear(fixtures::normal(), begun);
        assert_eq!(
            model.freshness(begun + Duration::from_secs(1)),
            Freshness::Live
        );
        let later = begun + Duration::from_secs(7);
        assert_eq!(model.freshness(later), Freshness::Stale { age_s: 7 });
        model.hear(fixtures::normal(), later);
        assert_eq!(model.freshness(later), Freshness::Live);
    }

    #[test]
    fn curves_are_bounded() {
        let mut model = Model::new();
        for _ in 0..HISTORY_MAX + 7 {
            model.hear(fixtures::normal(), Instant::now());
        }
        assert_eq!(
            (model.rollouts.len(), model.tokens.len()),
            (HISTORY_MAX, HISTORY_MAX)
        );
    }
}
