//! Advantages from the rewards of a group: rollouts of the same scenario, compared with each other.
//!
//! | estimator | advantage of rollout i | source |
//! |---|---|---|
//! | [`Estimator::Grpo`] | `(r_i - mean) / (std + eps)` | DeepSeekMath (arXiv 2402.03300), §4.1.2 |
//! | [`Estimator::DrGrpo`] | `r_i - mean` | Liu et al. 2025 (arXiv 2503.20783) |
//! | [`Estimator::LeaveOneOut`] | `r_i - mean of the others` | RLOO (arXiv 2402.14740) |
//!
//! The standard deviation is the sample's (divisor `n - 1`), as the common trainers compute it.

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// Difference to the mean in units of the standard deviation.
    Grpo {
        /// Added to the standard deviation; 1e-6 is usual.
        eps: f32,
    },
    /// Difference to the mean: no bias towards groups of nearly equal rewards.
    DrGrpo,
    /// Difference to the mean of the other rollouts: an unbiased baseline.
    LeaveOneOut,
}

/// Advantages of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupAdvantages {
    /// One advantage per reward, in the same order.
    pub advantages: Vec<f32>,
    /// Mean reward.
    pub mean: f32,
    /// Sample standard deviation of the rewards; 0 for a group of one.
    pub std: f32,
    /// All rewards are equal (or there is one only): every advantage is 0 and the group
    /// teaches nothing.
    pub zero_variance: bool,
}

/// Computes the advantages of one group.
///
/// Sums run in f64 over the rewards in their order, so the result depends on nothing else.
#[must_use]
pub fn group_advantages(rewards: &[f32], estimator: Estimator) -> GroupAdvantages {
    let count = rewards.len() as f64;
    let first = rewards.first().copied().unwrap_or(0.0);
    // Equality is decided on the rewards: the mean of equal numbers may be off by a rounding.
    if rewards.iter().all(|reward| *reward == first) {
        return GroupAdvantages {
            advantages: vec![0.0; rewards.len()],
            mean: first,
            std: 0.0,
            zero_variance: true,
        };
    }
    let mean = rewards.iter().copied().map(f64::from).sum::<f64>() / count;
    let squares: f64 = rewards
        .iter()
        .map(|reward| (f64::from(*reward) - mean).powi(2))
        .sum();
    let std = (squares / (count - 1.0)).sqrt();
    let scale = match estimator {
        Estimator::Grpo { eps } => 1.0 / (std + f64::from(eps)),
        Estimator::DrGrpo => 1.0,
        // r_i - (n mean - r_i) / (n - 1) = (r_i - mean) n / (n - 1)
        Estimator::LeaveOneOut => count / (count - 1.0),
    };
    GroupAdvantages {
        advantages: rewards
            .iter()
            .map(|reward| ((f64::from(*reward) - mean) * scale) as f32)
            .collect(),
        mean: mean as f32,
        std: std as f32,
        zero_variance: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() < 1e-5, "{got:?} against {expected:?}");
        }
    }

    #[test]
    fn grpo_divides_by_the_sample_deviation() {
        let group = group_advantages(&[0.0, 0.0, 1.0, 1.0], Estimator::Grpo { eps: 0.0 });
        let unit = 0.5 / (1.0_f32 / 3.0).sqrt();
        close(&group.advantages, &[-unit, -unit, unit, unit]);
        assert_eq!(group.mean, 0.5);
        assert!(!group.zero_variance);
    }

    #[test]
    fn dr_grpo_only_centres() {
        let group = group_advantages(&[0.0, 0.0, 0.0, 1.0], Estimator::DrGrpo);
        close(&group.advantages, &[-0.25, -0.25, -0.25, 0.75]);
    }

    #[test]
    fn leave_one_out_compares_with_the_others() {
        let group = group_advantages(&[1.0, 2.0, 6.0], Estimator::LeaveOneOut);
        close(&group.advantages, &[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]);
    }

    #[test]
    fn equal_rewards_are_reported_and_teach_nothing() {
        for estimator in [
            Estimator::Grpo { eps: 1e-6 },
            Estimator::DrGrpo,
            Estimator::LeaveOneOut,
        ] {
            for rewards in [&[0.1_f32; 7][..], &[3.0], &[]] {
                let group = group_advantages(rewards, estimator);
                assert!(group.zero_variance);
                assert!(group.advantages.iter().all(|a| *a == 0.0));
                assert_eq!(group.advantages.len(), rewards.len());
            }
        }
    }
}
