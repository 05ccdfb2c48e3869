//! Laws of the autoscaler, over random loads and configurations.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::autoscale::{Calm, Crew, Demand, decide};
use crate::config::ScalingConfig;
use crate::input::Millis;

/// A roster that obeys: starts take a while, drains end at once.
struct Roster {
    config: ScalingConfig,
    calm: Calm,
    up: u32,
    /// Moments at which those asked for arrive.
    coming: Vec<u64>,
    now: u64,
    start_ms: u64,
    /// Between two decisions: some twenty of them in an idle window.
    step_ms: u64,
    /// What was wanted, and when, within the idle window.
    wanted: VecDeque<(u64, u32)>,
}

impl Roster {
    fn new(config: ScalingConfig, start_ms: u64) -> Self {
        Self {
            step_ms: config.idle_window_ms / 20,
            config,
            calm: Calm::default(),
            up: 0,
            coming: Vec::new(),
            now: 0,
            start_ms,
            wanted: VecDeque::new(),
        }
    }

    fn present(&self) -> u32 {
        self.up + self.coming.len() as u32
    }

    /// One decision; (started, removed).
    fn step(&mut self, demand: &Demand, busy: u32) -> (u32, u32) {
        self.now += self.step_ms;
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
        assert!(
            self.present() <= self.config.max_workers,
            "never above the maximum"
        );
        self.remember(decision.wanted);
        let most = self.wanted.iter().map(|(_, wanted)| *wanted).max();
        assert!(
            decision.remove == 0 || Some(self.present()) >= most,
            "what was wanted within the idle window is not removed"
        );
        (decision.start, decision.remove)
    }

    fn remember(&mut self, wanted: u32) {
        let (now, window_ms) = (self.now, self.config.idle_window_ms);
        self.wanted.push_back((now, wanted));
        let old = |(at, _): &(u64, u32)| now - at >= window_ms;
        while self.wanted.front().is_some_and(old) {
            self.wanted.pop_front();
        }
    }

    /// Decisions until everybody who was asked for is here and everybody who goes has gone.
    fn settle(&mut self, demand: &Demand, busy: u32) {
        for _ in 0..(self.start_ms + 2 * self.config.idle_window_ms) / self.step_ms + 4 {
            self.step(demand, busy);
        }
    }
}

fn configs() -> impl Strategy<Value = ScalingConfig> {
    (0u32..4, 0u32..61, 0u32..6, 1_000u64..60_000).prop_map(|(min, more, keep_warm, idle)| {
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
    // A case is some hundred decisions of a pure function: thousands of cases take a second.
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn constant_load_settles_and_never_flaps(
        config in configs(), demand in demands(), busy in 0u32..70, start_ms in 0u64..5_000,
    ) {
        let mut roster = Roster::new(config, start_ms);
        roster.settle(&demand, busy);
        for _ in 0..60 {
            prop_assert_eq!(roster.step(&demand, busy), (0, 0));
        }
    }

    #[test]
    fn load_that_swings_within_the_idle_window_never_flaps(
        config in configs(), high in demands(), low in demands(), period in 1usize..9,
        start_ms in 0u64..1_000,
    ) {
        let mut roster = Roster::new(config, start_ms);
        let at = |step: usize| if (step / period).is_multiple_of(2) { &high } else { &low };
        let settled = (start_ms / roster.step_ms) as usize + 60;
        for step in 0..settled {
            roster.step(at(step), 0);
        }
        for step in settled..settled + 80 {
            prop_assert_eq!(roster.step(at(step), 0), (0, 0));
        }
    }

    #[test]
    fn without_work_the_minimum_is_reached_within_the_idle_window(
        config in configs(), demand in demands(), busy in 0u32..70, start_ms in 0u64..500,
    ) {
        let mut roster = Roster::new(config, start_ms);
        for _ in 0..start_ms / roster.step_ms + 3 {
            roster.step(&demand, busy);
        }
        let nothing = Demand { dispatchable: 0, leased: 0, warm: false, ..demand };
        let (begins, window_ms) = (roster.now, roster.config.idle_window_ms);
        while roster.now < begins + window_ms + 2 * roster.step_ms {
            roster.step(&nothing, 0);
        }
        prop_assert_eq!(roster.up, roster.config.min_workers);
    }

    #[test]
    fn work_wakes_an_empty_roster_at_once(config in configs(), demand in demands()) {
        let mut roster = Roster::new(config, 0);
        let demand = Demand { dispatchable: demand.dispatchable.max(1), ..demand };
        let (started, _) = roster.step(&demand, 0);
        prop_assert!(started >= 1 || roster.config.max_workers == 0);
    }

    #[test]
    fn a_stalled_sink_adds_nobody(
        config in configs(), before in demands(), busy in 0u32..70, start_ms in 0u64..5_000,
    ) {
        let mut roster = Roster::new(config, start_ms);
        for _ in 0..5 {
            roster.step(&before, busy);
        }
        // The sink takes nothing any more: what is leased stays, however long it takes, and what
        // waits may not be leased. Only what is kept warm or at least anyway may still come.
        let floor = if before.warm { roster.config.keep_warm } else { 0 };
        let floor = floor.clamp(roster.config.min_workers, roster.config.max_workers);
        let present = roster.present().max(floor);
        let stalled = Demand { dispatchable: 0, service_ms: 60_000.0, ..before };
        for _ in 0..60 {
            roster.step(&stalled, busy);
            prop_assert!(roster.present() <= present);
        }
    }

    #[test]
    fn workers_with_leases_stay_however_long_it_takes(
        config in configs(), before in demands(), busy in 1u32..70, windows in 1u64..5,
    ) {
        let mut roster = Roster::new(config, 0);
        roster.settle(&before, busy);
        let busy = busy.min(roster.up);
        let nothing = Demand { dispatchable: 0, warm: false, ..before };
        for _ in 0..windows * 21 {
            roster.step(&nothing, busy);
            prop_assert!(roster.up >= busy);
        }
    }

    #[test]
    fn a_clock_that_jumps_removes_nobody_who_is_wanted(
        config in configs(), demand in demands(), busy in 0u32..70, jump_ms in 0u64..3_600_000,
    ) {
        let mut roster = Roster::new(config, 0);
        roster.settle(&demand, busy);
        roster.now += jump_ms;
        for _ in 0..30 {
            prop_assert_eq!(roster.step(&demand, busy), (0, 0));
        }
    }

    #[test]
    fn more_work_never_wants_fewer(config in configs(), demand in demands(), more in 0u64..5_000) {
        let wanted = |dispatchable| {
            let demand = Demand { dispatchable, ..demand };
            let crew = Crew::default();
            decide(&config, &mut Calm::default(), &demand, &crew, Millis(1)).wanted
        };
        prop_assert!(wanted(demand.dispatchable + more) >= wanted(demand.dispatchable));
    }

    #[test]
    fn any_history_keeps_the_bounds(
        config in configs(),
        history in prop::collection::vec((demands(), 0u32..70, 1usize..20), 1..12),
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
