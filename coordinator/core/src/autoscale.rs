//! How many workers there should be: a pure function (DESIGN D13).
//!
//! `wanted = dispatchable depth × measured service time ÷ (slots × horizon)`, at least the workers
//! that have leases, within the bounds. Up at once; down only by what was not wanted for a whole
//! idle window, and only workers without leases. Work that cannot be leased (its sink is away or
//! full) is no reason for anybody.

use std::collections::VecDeque;

use crate::config::ScalingConfig;
use crate::input::Millis;

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Demand {
    /// Rollouts that may be leased now.
    pub(crate) dispatchable: u64,
    /// Rollouts at workers.
    pub(crate) leased: u64,
    /// Time from lease to settlement, milliseconds.
    pub(crate) service_ms: f64,
    /// Mean slots of a worker.
    pub(crate) slots_per_worker: u32,
    /// A training job runs and its learner is connected.
    pub(crate) warm: bool,
}

/// Who is there to do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crew {
    /// Here, not draining; a worker whose session is lost for the moment included.
    pub(crate) up: u32,
    /// Asked for.
    pub(crate) starting: u32,
    /// Leaving.
    pub(crate) draining: u32,
    /// Of those up: have leases.
    pub(crate) busy: u32,
    /// Of those up: without leases, connected, and started by the autoscaler.
    pub(crate) removable: u32,
}

impl Crew {
    /// Here or coming.
    #[must_use]
    pub(crate) const fn present(&self) -> u32 {
        self.up + self.starting
    }
}

/// What the function remembers between calls: how many were wanted within the last idle window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calm {
    /// When it was first asked: nobody is removed before a whole window was seen.
    began: Option<Millis>,
    /// (last moment, wanted), falling: the first one is the most of the window. At most one entry
    /// for each number of workers.
    peaks: VecDeque<(Millis, u32)>,
}

impl Calm {
    /// Takes note of what is wanted; tells the most of the idle window, once it is over.
    fn note(&mut self, window_ms: u64, wanted: u32, now: Millis) -> Option<u32> {
        let began = *self.began.get_or_insert(now);
        while self
            .peaks
            .back()
            .is_some_and(|(_, before)| *before <= wanted)
        {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, wanted));
        while self
            .peaks
            .front()
            .is_some_and(|(last, _)| now.since(*last) >= window_ms && *last < now)
        {
            self.peaks.pop_front();
        }
        debug_assert!(
            self.peaks
                .iter()
                .zip(self.peaks.iter().skip(1))
                .all(|(a, b)| a.1 > b.1)
        );
        let most = self.peaks.front().map(|(_, most)| *most);
        most.filter(|_| now.since(began) >= window_ms)
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Workers wanted, within the bounds.
    pub(crate) wanted: u32,
    /// The bound keeps it from being more.
    pub(crate) capped: bool,
    /// Workers to start now.
    pub(crate) start: u32,
    /// Workers without leases to drain now.
    pub(crate) remove: u32,
    /// One sentence.
    pub(crate) reason: String,
}

/// Decides.
#[must_use]
pub(crate) fn decide(
    config: &ScalingConfig,
    calm: &mut Calm,
    demand: &Demand,
    crew: &Crew,
    now: Millis,
) -> Decision {
    debug_assert!(config.min_workers <= config.max_workers);
    let (raw, reason) = wish(config, demand, crew);
    let wanted = raw.clamp(config.min_workers, config.max_workers);
    let mut decision = Decision {
        wanted,
        capped: raw > config.max_workers,
        start: 0,
        remove: 0,
        reason,
    };
    let present = crew.present();
    let most = calm.note(config.idle_window_ms, wanted, now);
    if wanted >= present {
        let room = config.max_workers.saturating_sub(present + crew.draining);
        decision.start = (wanted - present).min(room);
    } else if let Some(most) = most {
        // Starting workers cannot be drained; they are looked at again once they are here.
        decision.remove = present.saturating_sub(most).min(crew.removable);
    }
    decision
}

/// What would be wanted without bounds, and why.
fn wish(config: &ScalingConfig, demand: &Demand, crew: &Crew) -> (u32, String) {
    let floor = if demand.warm { config.keep_warm } else { 0 };
    let floor = floor.min(config.max_workers).max(config.min_workers);
    if demand.dispatchable == 0 {
        let reason = match (crew.busy, demand.warm) {
            (0, true) => "a training job keeps workers warm".to_owned(),
            (0, false) => "nothing to lease".to_owned(),
            (busy, _) => format!("{busy} workers have leases, nothing waits"),
        };
        return (floor.max(crew.busy), reason);
    }
    let slots = f64::from(demand.slots_per_worker.max(1));
    let work_ms = (demand.dispatchable + demand.leased) as f64 * demand.service_ms.max(0.0);
    let by_time = (work_ms / (slots * config.horizon_ms.max(1) as f64)).ceil();
    // `as` saturates: an endless backlog wants u32::MAX workers and gets the bound.
    let wanted = (by_time as u32).max(1).max(crew.busy).max(floor);
    let reason = format!(
        "{} wait, {} leased, {:.0} ms each",
        demand.dispatchable, demand.leased, demand.service_ms
    );
    (wanted, reason)
}
