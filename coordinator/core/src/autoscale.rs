//! How many workers there should be: a pure function (DESIGN D13).
//!
//! `wanted = dispatchable depth × measured service time ÷ (slots × horizon)`, at least the workers
//! that have leases, within the bounds. Up at once; down only by what was not wanted for a whole
//! idle window, and only workers without leases. Work that cannot be leased (its sink is away or
//! full) is no reason for anybody.

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

/// What the function remembers between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calm {
    /// Since when fewer were wanted than are present, and the most that were wanted since.
    low: Option<(Millis, u32)>,
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
    if wanted >= present {
        calm.low = None;
        let room = config.max_workers.saturating_sub(present + crew.draining);
        decision.start = (wanted - present).min(room);
        return decision;
    }
    let (since, peak) = calm
        .low
        .map_or((now, wanted), |(since, peak)| (since, peak.max(wanted)));
    calm.low = Some((since, peak));
    if now.since(since) >= config.idle_window_ms {
        // Starting workers cannot be drained; they are looked at again in the next window.
        decision.remove = present.saturating_sub(peak).min(crew.removable);
        calm.low = Some((now, wanted));
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
