//! Figures and sentences for people: rates, history, notices.

use std::collections::VecDeque;

use volley_protocol::snapshot::Notice;

use crate::fit::sentence;
use crate::input::Millis;

/// Rates are means over this many seconds.
const WINDOW_S: usize = 10;
/// Points of the queue's history (`ClusterSnapshot::queue_history`).
pub(crate) const HISTORY_MAX: usize = 60;
/// Between two points: a history covers five minutes.
const HISTORY_STEP_MS: u64 = 5_000;
/// Notices kept (`ClusterSnapshot::notices`).
pub(crate) const NOTICES_MAX: usize = 20;

/// Events per second over a sliding window of whole seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rate {
    /// Second, count; rising; at most the window.
    seconds: VecDeque<(u64, u64)>,
}

impl Rate {
    pub(crate) const fn new() -> Self {
        Self {
            seconds: VecDeque::new(),
        }
    }

    pub(crate) fn add(&mut self, now: Millis, count: u64) {
        let second = now.0 / 1_000;
        match self.seconds.back_mut() {
            Some((last, sum)) if *last == second => *sum += count,
            _ => self.seconds.push_back((second, count)),
        }
        while self.seconds.len() > WINDOW_S + 1 {
            self.seconds.pop_front();
        }
        debug_assert!(self.seconds.len() <= WINDOW_S + 1);
    }

    /// Mean over the window.
    pub(crate) fn per_second(&self, now: Millis) -> f32 {
        let oldest = (now.0 / 1_000).saturating_sub(WINDOW_S as u64 - 1);
        let inside = self.seconds.iter().filter(|(second, _)| *second >= oldest);
        let sum: u64 = inside.map(|(_, count)| count).sum();
        sum as f32 / WINDOW_S as f32
    }
}

/// All figures of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) settled: Rate,
    pub(crate) tokens: Rate,
    /// Lease to settlement, milliseconds; exponential mean. `None` before the first one.
    pub(crate) service_ms: Option<f64>,
    pub(crate) history: VecDeque<u32>,
    pub(crate) notices: VecDeque<Notice>,
    history_next: Millis,
}

impl Stats {
    /// A rollout was settled this long after it was leased.
    pub(crate) fn served(&mut self, ms: u64) {
        // One of twenty: follows a change of workload within some dozens of rollouts.
        let ms = (ms as f64).max(0.05);
        let mean = self.service_ms.map_or(ms, |mean| mean + (ms - mean) / 20.0);
        debug_assert!(mean.is_finite());
        self.service_ms = Some(mean);
    }

    /// Takes a point of the queue's history when it is time.
    pub(crate) fn sample(&mut self, now: Millis, queued: u64) {
        if now < self.history_next {
            return;
        }
        self.history_next = now.after(HISTORY_STEP_MS);
        self.history
            .push_back(u32::try_from(queued).unwrap_or(u32::MAX));
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    /// Keeps a notice, dropping the oldest.
    pub(crate) fn notice(&mut self, at_ms: u64, text: String) {
        let text = sentence(text);
        self.notices.push_back(Notice { at_ms, text });
        if self.notices.len() > NOTICES_MAX {
            self.notices.pop_front();
        }
        debug_assert!(self.notices.len() <= NOTICES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_forget() {
        let mut rate = Rate::default();
        for second in 0..30 {
            rate.add(Millis(second * 1_000), 50);
        }
        assert!((rate.per_second(Millis(29_500)) - 50.0).abs() < 0.01);
        assert!(rate.per_second(Millis(60_000)) < 0.01);
    }

    #[test]
    fn the_mean_follows() {
        let mut stats = Stats::default();
        stats.served(100);
        for _ in 0..200 {
            stats.served(10);
        }
        assert!(stats.service_ms.is_some_and(|ms| (ms - 10.0).abs() < 0.1));
    }
}
