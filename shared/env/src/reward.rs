//! What an episode was worth, as reported and as accepted.

use std::collections::BTreeMap;

use crate::error::EnvError;

/// Largest reward or metric accepted, as an absolute value. Rewards are normalised by group
/// before they are used; beyond this, squares of differences lose their meaning in f32.
pub const REWARD_MAGNITUDE_MAX: f64 = 1e6;

/// Most metrics of one episode.
pub const METRICS_MAX: usize = 64;

/// Longest name of a metric, in bytes.
pub const METRIC_NAME_BYTES_MAX: usize = 64;

/// The end of an episode as the environment reports it, not yet checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reward {
    /// What is trained on; `None` where the environment left it out.
    pub value: Option<f64>,
    /// Named numbers that are shown and averaged, never trained on.
    pub metrics: BTreeMap<String, f64>,
}

impl Reward {
    /// A reward with metrics.
    #[must_use]
    pub fn new<const N: usize>(value: f64, metrics: [(&str, f64); N]) -> Self {
        Self {
            value: Some(value),
            metrics: metrics.map(|(name, x)| (name.to_owned(), x)).into(),
        }
    }

    /// The reward if it can be trained on; `REWARD_INVALID` where the value is missing, or it or
    /// a metric is NaN, infinite or beyond [`REWARD_MAGNITUDE_MAX`], or the metrics are too many
    /// or their names too long.
    pub fn validate(self) -> Result<ValidReward, EnvError> {
        let value = self
            .value
            .ok_or_else(|| invalid("the environment ended without one".to_owned()))?;
        check("reward", value)?;
        if self.metrics.len() > METRICS_MAX {
            let count = self.metrics.len();
            return Err(invalid(format!("{count} metrics, at most {METRICS_MAX}")));
        }
        for (name, x) in &self.metrics {
            if name.len() > METRIC_NAME_BYTES_MAX {
                let (bytes, max) = (name.len(), METRIC_NAME_BYTES_MAX);
                return Err(invalid(format!(
                    "a metric's name has {bytes} bytes, at most {max}"
                )));
            }
            check(&format!("metric '{name}'"), *x)?;
        }
        Ok(ValidReward {
            value,
            metrics: self.metrics,
        })
    }
}

fn check(what: &str, x: f64) -> Result<(), EnvError> {
    if !x.is_finite() {
        Err(invalid(format!("{what} = {x}, not a finite number")))
    } else if x.abs() > REWARD_MAGNITUDE_MAX {
        Err(invalid(format!(
            "{what} = {x:e}, beyond ±{REWARD_MAGNITUDE_MAX:e}"
        )))
    } else {
        Ok(())
    }
}

const fn invalid(reason: String) -> EnvError {
    EnvError::RewardInvalid { reason }
}

/// A reward that passed [`Reward::validate`]: every number in it is finite and bounded.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidReward {
    value: f64,
    metrics: BTreeMap<String, f64>,
}

impl ValidReward {
    /// What is trained on.
    #[must_use]
    pub const fn value(&self) -> f64 {
        self.value
    }

    /// Named numbers beside it.
    #[must_use]
    pub const fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }

    /// The value and the metrics.
    #[must_use]
    pub fn into_parts(self) -> (f64, BTreeMap<String, f64>) {
        (self.value, self.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(reward: Reward) -> String {
        let error = reward.validate().expect_err("must be refused");
        assert_eq!(error.code(), "REWARD_INVALID");
        error.to_string()
    }

    #[test]
    fn sound_rewards_pass_unchanged() {
        for x in [0.0, -0.5, 1.0, 1e6, -1e6] {
            let valid = Reward::new(x, [("m", -x)]).validate().expect("sound");
            assert_eq!((valid.value(), valid.metrics()["m"]), (x, -x));
        }
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused() {
        assert!(reason(Reward::default()).contains("without one"));
        assert!(reason(Reward::new(f64::NAN, [])).contains("reward = NaN"));
        assert!(reason(Reward::new(f64::NEG_INFINITY, [])).contains("reward = -inf"));
        assert!(reason(Reward::new(1.0000001e6, [])).contains("beyond"));
        assert!(reason(Reward::new(1.0, [("m", f64::INFINITY)])).contains("metric 'm'"));
        assert!(reason(Reward::new(1.0, [(&*"m".repeat(65), 0.0)])).contains("65 bytes"));
        let metrics = (0..65).map(|i| (i.to_string(), 0.0)).collect();
        let value = Some(0.0);
        assert!(reason(Reward { value, metrics }).contains("65 metrics"));
    }
}
