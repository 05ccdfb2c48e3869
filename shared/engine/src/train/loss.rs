//! Losses of single tokens, their derivatives, and what a step reports about them.
//!
//! Sums over tokens, never means: the sum of two batches is the batch of both. With
//! `lp` the learner's log-probability of the sampled token, `q` the sampler's, `r = exp(lp - q)`,
//! `A` the advantage and `w` the weight, a token adds
//!
//! | loss | term | source |
//! |---|---|---|
//! | `cross_entropy` | `-w lp` | |
//! | `importance_sampling` | `-r A` | off-policy policy gradient |
//! | `ppo` | `-min(r A, clamp(r, lo, hi) A)` | Schulman et al. 2017 (arXiv 1707.06347), eq. 7 |
//! | `cispo` | `-stop(clamp(r, lo, hi)) A lp` | MiniMax-M1 (arXiv 2506.13585) |
//! | `gspo` | `-min(s A, clamp(s, lo, hi) A)` | Zheng et al. 2025 (arXiv 2507.18071), eq. 13 |
//! | `dro` | `-(A lp - beta/2 (lp - q)^2)` | Richemond et al. 2024 (arXiv 2405.19107) |
//!
//! where `s = exp(mean(lp - q))` over the sequence's loss tokens (the paper's GSPO-token form).
//!
//! The weight scales a cross-entropy term. In the policy losses it is a mask, because the advantage
//! already is the scale: a token of weight 0 adds nothing to any loss or metric.

use crate::cpu::softmax::exp_shifted;

/// Which loss, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Weighted negative log-likelihood.
    CrossEntropy,
    /// Importance-weighted policy gradient without a clip.
    ImportanceSampling,
    /// Clipped surrogate.
    Ppo {
        /// Lower bound of the ratio, for instance 0.8.
        clip_low_threshold: f32,
        /// Upper bound of the ratio, for instance 1.2.
        clip_high_threshold: f32,
    },
    /// Policy gradient with a clipped, constant importance weight.
    Cispo {
        /// Lower bound of the weight, for instance 0.
        clip_low_threshold: f32,
        /// Upper bound of the weight, for instance 4.
        clip_high_threshold: f32,
    },
    /// Clipped surrogate with one ratio per sequence, the geometric mean of its tokens'.
    Gspo {
        /// Lower bound of the ratio, for instance 1 - 3e-4.
        clip_low_threshold: f32,
        /// Upper bound of the ratio, for instance 1 + 4e-4.
        clip_high_threshold: f32,
    },
    /// Policy gradient with a quadratic penalty on the distance to the sampler.
    Dro {
        /// Strength of the penalty, for instance 0.05.
        beta: f32,
    },
}

/// One token of a datum, as a loss sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossToken {
    /// The learner's log-probability, nats.
    pub logprob: f32,
    /// The sampler's log-probability, nats; cross-entropy does not read it.
    pub sampled_logprob: f32,
    /// The advantage; cross-entropy does not read it.
    pub advantage: f32,
    /// The weight; 0 masks the token.
    pub weight: f32,
    /// Mean of `lp - q` over the loss tokens of its sequence, nats; only GSPO reads it.
    pub sequence_gap: f32,
}

/// What one token adds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerm {
    /// The term of the sum.
    pub loss: f32,
    /// Its derivative by the learner's log-probability.
    pub dlogprob: f32,
    /// Whether a clip took the derivative away (PPO) or bounded the weight (CISPO).
    pub clipped: bool,
}

impl Loss {
    /// The name under which recipes and the command line know the loss.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::ImportanceSampling => "importance_sampling",
            Self::Ppo { .. } => "ppo",
            Self::Cispo { .. } => "cispo",
            Self::Gspo { .. } => "gspo",
            Self::Dro { .. } => "dro",
        }
    }

    /// Whether the loss compares the learner with the sampler.
    #[must_use]
    pub const fn reads_sampler(&self) -> bool {
        !matches!(self, Self::CrossEntropy)
    }

    /// Whether a token's term depends on the other tokens of its sequence.
    #[must_use]
    pub const fn reads_sequence(&self) -> bool {
        matches!(self, Self::Gspo { .. })
    }

    /// The term of one token and its derivative.
    #[must_use]
    pub fn term(&self, token: LossToken) -> LossTerm {
        let LossToken {
            logprob,
            sampled_logprob,
            advantage,
            weight,
            sequence_gap,
        } = token;
        if weight == 0.0 {
            return LossTerm::default();
        }
        let difference = logprob - sampled_logprob;
        match *self {
            Self::CrossEntropy => LossTerm::smooth(-(weight * logprob), -weight),
            Self::ImportanceSampling => {
                let surrogate = ratio(difference) * advantage;
                LossTerm::smooth(-surrogate, -surrogate)
            }
            Self::Ppo {
                clip_low_threshold,
                clip_high_threshold,
            } => LossTerm::clipped_surrogate(
                ratio(difference),
                advantage,
                [clip_low_threshold, clip_high_threshold],
            ),
            // The ratio is `s stop(1 / pi) pi`: its value is s, its derivative by lp too.
            Self::Gspo {
                clip_low_threshold,
                clip_high_threshold,
            } => LossTerm::clipped_surrogate(
                ratio(sequence_gap),
                advantage,
                [clip_low_threshold, clip_high_threshold],
            ),
            Self::Cispo {
                clip_low_threshold,
                clip_high_threshold,
            } => {
                let ratio = ratio(difference);
                let bounded = clamp(ratio, clip_low_threshold, clip_high_threshold);
                let scale = bounded * advantage;
                LossTerm {
                    loss: -(scale * logprob),
                    dlogprob: -scale,
                    clipped: bounded != ratio,
                }
            }
            Self::Dro { beta } => {
                let penalty = 0.5 * beta * difference * difference;
                let loss = -(logprob * advantage - penalty);
                LossTerm::smooth(loss, beta * difference - advantage)
            }
        }
    }
}

impl LossTerm {
    /// `-min(r A, clamp(r, low, high) A)` for a ratio whose derivative is itself.
    fn clipped_surrogate(ratio: f32, advantage: f32, [low, high]: [f32; 2]) -> Self {
        let surrogate = ratio * advantage;
        let bounded = clamp(ratio, low, high) * advantage;
        if bounded < surrogate {
            return Self {
                loss: -bounded,
                dlogprob: 0.0,
                clipped: true,
            };
        }
        Self::smooth(-surrogate, -surrogate)
    }

    const fn smooth(loss: f32, dlogprob: f32) -> Self {
        Self {
            loss,
            dlogprob,
            clipped: false,
        }
    }

    /// Whether both numbers are finite.
    #[must_use]
    pub const fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.dlogprob.is_finite()
    }
}

/// `exp(difference)` by the kernels' polynomial, the same on every machine; infinite where it
/// leaves f32, so that an overflow is seen and not trained on.
fn ratio(difference: f32) -> f32 {
    if difference > 88.0 {
        return f32::INFINITY;
    }
    let mut ratio = [0.0];
    exp_shifted(&[difference], 0.0, 1.0, &mut ratio);
    if difference.is_nan() {
        difference
    } else {
        ratio[0]
    }
}

/// Bounds without the panic that `f32::clamp` has for crossed or NaN bounds; NaN stays NaN.
fn clamp(value: f32, low: f32, high: f32) -> f32 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

/// What a step reports about its loss tokens (those of non-zero weight).
///
/// For cross-entropy, which knows no sampler, the ratios are 1 and the distances 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossMetrics {
    /// Number of loss tokens.
    pub loss_tokens: u64,
    /// Mean of `r = exp(lp - q)`.
    pub ratio_mean: f64,
    /// Smallest `r`.
    pub ratio_min: f64,
    /// Largest `r`.
    pub ratio_max: f64,
    /// Share of the tokens on which the clip had an effect.
    pub clip_fraction: f64,
    /// KL divergence of the learner's forward from the sampler, nats per token: the mean of
    /// `r - 1 - ln r` over sampled tokens (Schulman 2020, "Approximating KL divergence", k3).
    /// Zero exactly when every log-probability equals the sampler's to the bit.
    pub drift_kl: f64,
    /// Largest `|lp - q|`, nats.
    pub logprob_gap_max: f64,
    /// Estimate of the policy's entropy, nats per token: the mean of `-lp` over sampled tokens.
    pub entropy: f64,
}

/// The loss and the sums from which [`LossMetrics`] come; tokens are added in the batch's order.
#[derive(Clone, Copy, Debug)]
pub struct LossSums {
    loss: f64,
    tokens: u64,
    clipped: u64,
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    kl: f64,
    gap_max: f64,
    neg_logprob: f64,
}

impl Default for LossSums {
    fn default() -> Self {
        Self {
            loss: 0.0,
            tokens: 0,
            clipped: 0,
            ratio: 0.0,
            ratio_min: f64::INFINITY,
            ratio_max: f64::NEG_INFINITY,
            kl: 0.0,
            gap_max: 0.0,
            neg_logprob: 0.0,
        }
    }
}

impl LossSums {
    /// Adds a token that was not masked, with its term.
    pub fn add(&mut self, loss: &Loss, token: LossToken, term: LossTerm) {
        let gap = if loss.reads_sampler() {
            f64::from(token.logprob) - f64::from(token.sampled_logprob)
        } else {
            0.0
        };
        let ratio = gap.exp();
        self.loss += f64::from(term.loss);
        self.tokens += 1;
        self.clipped += u64::from(term.clipped);
        self.ratio += ratio;
        self.ratio_min = self.ratio_min.min(ratio);
        self.ratio_max = self.ratio_max.max(ratio);
        // `exp_m1` keeps the digits that `r - 1` loses near r = 1.
        self.kl += gap.exp_m1() - gap;
        self.gap_max = self.gap_max.max(gap.abs());
        self.neg_logprob -= f64::from(token.logprob);
    }

    /// The sum of all terms.
    #[must_use]
    pub const fn loss(&self) -> f64 {
        self.loss
    }

    /// Means and extremes of the tokens so far.
    #[must_use]
    pub fn metrics(&self) -> LossMetrics {
        let Self {
            loss: _,
            tokens,
            clipped,
            ratio,
            ratio_min,
            ratio_max,
            kl,
            gap_max,
            neg_logprob,
        } = *self;
        if tokens == 0 {
            return LossMetrics {
                loss_tokens: 0,
                ratio_mean: 1.0,
                ratio_min: 1.0,
                ratio_max: 1.0,
                clip_fraction: 0.0,
                drift_kl: 0.0,
                logprob_gap_max: 0.0,
                entropy: 0.0,
            };
        }
        let count = tokens as f64;
        LossMetrics {
            loss_tokens: tokens,
            ratio_mean: ratio / count,
            ratio_min,
            ratio_max,
            clip_fraction: clipped as f64 / count,
            drift_kl: kl / count,
            logprob_gap_max: gap_max,
            entropy: neg_logprob / count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Loss; 6] = [
        Loss::CrossEntropy,
        Loss::ImportanceSampling,
        Loss::Ppo {
            clip_low_threshold: 0.8,
            clip_high_threshold: 1.2,
        },
        Loss::Cispo {
            clip_low_threshold: 0.8,
            clip_high_threshold: 1.2,
        },
        Loss::Dro { beta: 0.05 },
        // One token is a sequence too; there it is PPO.
        Loss::Gspo {
            clip_low_threshold: 0.8,
            clip_high_threshold: 1.2,
        },
    ];

    fn token(logprob: f32, advantage: f32) -> LossToken {
        LossToken {
            logprob,
            sampled_logprob: -1.0,
            advantage,
            weight: 1.0,
            sequence_gap: logprob + 1.0,
        }
    }

    #[test]
    fn derivatives_match_differences() {
        for loss in ALL {
            for logprob in [-2.0_f32, -1.3, -1.05, -0.9, -0.5] {
                for advantage in [-1.5_f32, 0.7] {
                    // CISPO's weight is a constant of the derivative, so only its token varies.
                    if matches!(loss, Loss::Cispo { .. }) {
                        continue;
                    }
                    let step = 1e-3;
                    let up = loss.term(token(logprob + step, advantage)).loss;
                    let down = loss.term(token(logprob - step, advantage)).loss;
                    let expected = (up - down) / (2.0 * step);
                    let got = loss.term(token(logprob, advantage)).dlogprob;
                    assert!(
                        (got - expected).abs() < 2e-3,
                        "{} at {logprob}: {got} against {expected}",
                        loss.name()
                    );
                }
            }
        }
    }

    #[test]
    fn ppo_clips_only_where_it_takes_gain_away() {
        let ppo = ALL[2];
        let high = -1.0 + 1.5_f32.ln();
        let low = -1.0 + 0.5_f32.ln();
        assert!(ppo.term(token(high, 1.0)).clipped);
        assert!(!ppo.term(token(high, -1.0)).clipped);
        assert!(!ppo.term(token(low, 1.0)).clipped);
        assert!(ppo.term(token(low, -1.0)).clipped);
        assert_eq!(ppo.term(token(high, 1.0)).loss, -1.2);
    }

    #[test]
    fn a_masked_token_adds_nothing_even_if_its_numbers_are_not_finite() {
        let masked = LossToken {
            logprob: f32::NEG_INFINITY,
            sampled_logprob: f32::NAN,
            advantage: f32::INFINITY,
            weight: 0.0,
            sequence_gap: f32::NAN,
        };
        for loss in ALL {
            assert_eq!(loss.term(masked), LossTerm::default());
        }
    }

    #[test]
    fn an_overflow_is_not_finite() {
        let loss = Loss::ImportanceSampling;
        assert!(!loss.term(token(88.0, 1.0)).is_finite());
        assert!(!loss.term(token(f32::NAN, 1.0)).is_finite());
        assert!(loss.term(token(-200.0, 1.0)).is_finite());
    }

    #[test]
    fn equal_logprobs_have_no_drift() {
        let loss = Loss::ImportanceSampling;
        let mut sums = LossSums::default();
        for advantage in [1.0, -2.0] {
            let token = token(-1.0, advantage);
            sums.add(&loss, token, loss.term(token));
        }
        let metrics = sums.metrics();
        assert_eq!(metrics.drift_kl, 0.0);
        assert_eq!((metrics.ratio_min, metrics.ratio_max), (1.0, 1.0));
        assert_eq!(metrics.entropy, 1.0);
        assert_eq!(metrics.loss_tokens, 2);
    }

    #[test]
    fn drift_is_positive_on_both_sides() {
        let loss = Loss::ImportanceSampling;
        for logprob in [-1.1, -0.9] {
            let mut sums = LossSums::default();
            let token = token(logprob, 1.0);
            sums.add(&loss, token, loss.term(token));
            let metrics = sums.metrics();
            assert!(metrics.drift_kl > 0.0, "{metrics:?}");
            assert!((metrics.drift_kl - 0.005).abs() < 5e-4, "{metrics:?}");
        }
    }
}
