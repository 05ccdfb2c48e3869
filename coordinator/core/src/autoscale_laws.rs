//! Laws of the autoscaler, over random loads and configurations.

use proptest::prelude::*;

use crate::autoscale::{Calm, Crew, Demand, decide};
use crate::config::ScalingConfig;
use crate::input::Millis;

/// Between two decisions.
const STEP_MS: u64 = 100;

/// A roster that obeys: starts take a while, drains end at once.
struct Roster {
    config: ScalingConfig,
    calm: Calm,
    up: u32,
    /// Moments at which those asked for arrive.
    coming: Vec<u64>,
    now: u64,
    start_ms: u64,
}

impl Roster {
    fn new(config: ScalingConfig, start_ms: u64) -> Self {
        Self {
            config,
            calm: Calm::default(),
            up: 0,
            coming: Vec::new(),
            now: 0,
            start_ms,
        }
    }

    /// One decision; (started, removed).
    fn step(&mut self, demand: &Demand, busy: u32) -> (u32, u32) {
        self.now += STEP_MS;
        let now = self.now;
        let arrived = self.coming.iter().filter(|at| **at <= now).count() as u32;
        self.coming.retain(|at| *at > now);
        self.up += arrived;
        let busy = busy.min(self.up);
        let crew = Crew {
            up: self.up,
            starting: self.coming.len() as u32,
            draining: 0,
            busy,
            removable: self.up - busy,
        };
        let decision = decide(&self.config, &mut self.calm, demand, &crew, Millis(now));
        assert!(
            decision.remove <= crew.removable,
            "a busy worker is never removed"
        );
        assert!(
            decision.start == 0 || decision.remove == 0,
            "one way at a time"
        );
        self.coming
            .extend((0..decision.start).map(|_| now + self.start_ms));
        self.up -= decision.remove;
        let present = self.up + self.coming.len() as u32;
        assert!(
            present <= self.config.max_workers,
            "never above the maximum"
        );
        (decision.start, decision.remove)
    }
}

fn configs() -> impl Strategy<Value = ScalingConfig> {
    (0u32..4, 0u32..12, 0u32..6, 1_000u64..60_000).prop_map(|(min, more, keep_warm, idle)| {
        ScalingConfig {
            min_workers: min,
            max_workers: min + more,
            keep_warm,
            idle_window_ms: idle,
            ..ScalingConfig::default()
        }
    })
}

fn demands() -> impl Strategy<Value = Demand> {
    (
        0u64..5_000,
        0u64..200,
        0.05f64..60_000.0,
        1u32..16,
        any::<bool>(),
    )
        .prop_map(
            |(dispatchable, leased, service_ms, slots_per_worker, warm)| Demand {
                dispatchable,
                leased,
                service_ms,
                slots_per_worker,
                warm,
            },
        )
}

proptest! {
    #[test]
    fn constant_load_settles_and_never_flaps(
        config in configs(), demand in demands(), busy in 0u32..10, start_ms in 0u64..5_000,
    ) {
        let mut roster = Roster::new(config.clone(), start_ms);
        let settle = (start_ms + 2 * config.idle_window_ms) / STEP_MS + 4;
        for _ in 0..settle {
            roster.step(&demand, busy);
        }
        for _ in 0..3 * config.idle_window_ms / STEP_MS {
            prop_assert_eq!(roster.step(&demand, busy), (0, 0));
        }
    }

    #[test]
    fn without_work_the_minimum_is_reached_within_the_idle_window(
        config in configs(), demand in demands(), busy in 0u32..12, start_ms in 0u64..500,
    ) {
        let mut roster = Roster::new(config.clone(), start_ms);
        for _ in 0..start_ms / STEP_MS + 3 {
            roster.step(&demand, busy);
        }
        let nothing = Demand { dispatchable: 0, leased: 0, warm: false, ..demand };
        for _ in 0..config.idle_window_ms / STEP_MS + 2 {
            roster.step(&nothing, 0);
        }
        prop_assert_eq!(roster.up, config.min_workers);
    }

    #[test]
    fn work_wakes_an_empty_roster_at_once(config in configs(), demand in demands()) {
        let mut roster = Roster::new(config.clone(), 0);
        let demand = Demand { dispatchable: demand.dispatchable.max(1), ..demand };
        let (started, _) = roster.step(&demand, 0);
        prop_assert!(started >= 1 || config.max_workers == 0);
    }

    #[test]
    fn work_that_cannot_be_leased_adds_nobody(config in configs(), demand in demands()) {
        let mut roster = Roster::new(config.clone(), 0);
        let stalled = Demand { dispatchable: 0, leased: 0, warm: false, ..demand };
        for _ in 0..100 {
            roster.step(&stalled, 0);
        }
        prop_assert_eq!(roster.up + roster.coming.len() as u32, config.min_workers);
    }

    #[test]
    fn any_history_keeps_the_bounds(
        config in configs(),
        history in prop::collection::vec((demands(), 0u32..12, 1usize..50), 1..20),
        start_ms in 0u64..3_000,
    ) {
        let mut roster = Roster::new(config, start_ms);
        for (demand, busy, times) in history {
            for _ in 0..times {
                roster.step(&demand, busy);
            }
        }
    }
}
