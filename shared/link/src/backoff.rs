//! Exponential back-off with jitter. Pure: the caller brings the random number and the clock.

use std::time::Duration;

/// Waits between attempts: `base × 2^n`, at most `max`, each shortened by up to half at random so
/// that a thousand workers do not return in the same millisecond.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// First wait `base`, later ones at most `max`.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max: max.max(base),
            attempts: 0,
        }
    }

    /// The next wait, for `unit` drawn uniformly from `[0, 1)`: between half and all of the step.
    pub fn next_delay(&mut self, unit: f64) -> Duration {
        let step = 2u32
            .checked_pow(self.attempts)
            .and_then(|factor| self.base.checked_mul(factor))
            .map_or(self.max, |step| step.min(self.max));
        self.attempts = self.attempts.saturating_add(1);
        let unit = if unit.is_finite() {
            unit.clamp(0.0, 1.0)
        } else {
            0.0
        };
        step.mul_f64(1.0 - unit / 2.0)
    }

    /// Attempts since the start or the last [`reset`](Self::reset).
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt succeeded: begin again with `base`.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(65));
        let steps: Vec<_> = (0..5)
            .map(|_| backoff.next_delay(0.0).as_millis())
            .collect();
        assert_eq!(steps, [10, 20, 40, 65, 65]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0), Duration::from_millis(10));
    }

    #[test]
    fn jitter_stays_within_half_and_whatever_is_passed_is_survived() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for _ in 0..100 {
            for unit in [0.0, 0.5, 0.999, 1.0, -3.0, 7.0, f64::NAN, f64::INFINITY] {
                let delay = backoff.next_delay(unit);
                assert!(delay >= Duration::from_millis(500), "{delay:?}");
                assert!(delay <= Duration::from_secs(60), "{delay:?}");
            }
        }
    }
}
