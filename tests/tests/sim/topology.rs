//! What a run looks like: how many workers, how fast, how much to do.

use volley_testkit::{NetConfig, Rng};

/// Most workers of a run.
pub(crate) const WORKERS_MAX: u64 = 64;

/// A cluster, drawn from a run's seed.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// The autoscaler's bound.
    pub(crate) workers_max: u32,
    /// Of 1,000 workers so many are slow.
    pub(crate) slow_of_thousand: u64,
    /// Longest way of a message.
    pub(crate) delay_max_ms: u64,
    /// Between two looks at the time of a busy process.
    pub(crate) tick_ms: u64,
}

impl Topology {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // Small clusters meet more of the corners per event, large ones more of the crowd.
        let workers_max = match rng.below(20) {
            0..=11 => rng.between(1, 4),
            12..=16 => rng.between(5, 16),
            _ => rng.between(17, WORKERS_MAX),
        };
        let delay_max_ms = [2, 20, 20, 150][rng.below(4) as usize];
        Self {
            workers_max: workers_max as u32,
            slow_of_thousand: [0, 0, 100, 400][rng.below(4) as usize],
            delay_max_ms,
            tick_ms: if workers_max > 16 { 500 } else { 200 },
        }
    }

    pub(crate) fn net(&self) -> NetConfig {
        NetConfig {
            delay_max_ms: self.delay_max_ms,
            ..NetConfig::default()
        }
    }

    /// Scales an amount of work so that large clusters are needed.
    pub(crate) fn work(&self, of_small: u64) -> u64 {
        of_small * (3 + u64::from(self.workers_max)) / 4
    }
}
