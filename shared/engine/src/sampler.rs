//! Drawing a token from a row of logits.
//!
//! Draws are a function of `(seed, position)`: no state, so a rollout that is repeated from
//! its middle, or beside other rollouts, draws the same tokens. The generator is Philox
//! 4x32-10 (Salmon et al., SC 2011) with the seed as key and the position as counter.

use crate::cpu::softmax::{exp_shifted, log_softmax_at, row_max};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
}

impl Default for SamplingParams {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl SamplingParams {
    /// The most likely token, always.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability under the untempered, unfiltered logits.
    pub logprob: f32,
}

/// Draws a token. Filters apply in the order top-k, top-p, min-p, each to the tempered
/// distribution that the one before left; among equal probabilities the lower id counts as
/// more likely. A NaN logit is never drawn while another is finite.
///
/// # Panics
///
/// When `logits` is empty.
#[must_use]
pub fn sample(logits: &[f32], params: &SamplingParams, seed: u64, position: u64) -> Sampled {
    assert!(!logits.is_empty(), "a row of logits");
    let token = if params.temperature > 0.0 {
        draw(logits, params, uniform(seed, position))
    } else {
        argmax(logits)
    };
    Sampled {
        token,
        logprob: log_softmax_at(logits, token),
    }
}

/// The largest logit; the lowest id wins ties.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let max = row_max(logits);
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

/// The `count` largest logits, largest first; among equal ones the lower id comes first, NaN last.
#[must_use]
pub fn top_tokens(logits: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let value = |token: u32| match logits[token as usize] {
        logit if logit.is_nan() => f32::NEG_INFINITY,
        // Zero has two signs, and both are equally likely.
        logit => logit + 0.0,
    };
    let larger = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, larger);
        order.truncate(count);
    }
    order.sort_unstable_by(larger);
    order
}

/// A number in [0, 1) with 53 random bits.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    let words = philox([position as u32, (position >> 32) as u32, 0, 0], seed);
    let bits = u64::from(words[0]) | (u64::from(words[1]) << 32);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The inverse of the cumulative distribution at `u`, in ascending token order.
fn draw(logits: &[f32], params: &SamplingParams, u: f64) -> u32 {
    let max = row_max(logits);
    let mut weights = vec![0.0f32; logits.len()];
    exp_shifted(logits, max, 1.0 / params.temperature, &mut weights);
    for (weight, logit) in weights.iter_mut().zip(logits) {
        *weight = if logit.is_nan() { 0.0 } else { *weight };
    }
    let vocab = weights.len();
    let top_k = if params.top_k == 0 {
        vocab
    } else {
        vocab.min(params.top_k as usize)
    };
    if top_k < vocab || params.top_p < 1.0 {
        keep_likeliest(&mut weights, top_k, params.top_p);
    }
    if params.min_p > 0.0 {
        // The most likely token has weight exp(0) = 1.
        weights
            .iter_mut()
            .for_each(|w| *w = if *w < params.min_p { 0.0 } else { *w });
    }
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let (target, mut sum, mut last) = (u * total, 0.0f64, None);
    for (token, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token as u32);
            if sum > target {
                break;
            }
        }
    }
    last.unwrap_or_else(|| argmax(logits))
}

/// Sets the weights of all but the likeliest tokens to zero.
fn keep_likeliest(weights: &mut [f32], top_k: usize, top_p: f32) {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| {
        weights[*b as usize]
            .total_cmp(&weights[*a as usize])
            .then(a.cmp(b))
    };
    if top_k < order.len() {
        order.select_nth_unstable_by(top_k, likelier);
        order.truncate(top_k);
    }
    order.sort_unstable_by(likelier);
    let weight = |token: &u32| f64::from(weights[*token as usize]);
    let total: f64 = order.iter().map(weight).sum();
    let (limit, mut sum) = (f64::from(top_p) * total, 0.0f64);
    let below = |token: &&u32| {
        let keep = sum < limit;
        sum += weight(token);
        keep
    };
    let count = if top_p < 1.0 {
        order.iter().take_while(below).count()
    } else {
        order.len()
    };
    let mut kept = vec![0.0f32; weights.len()];
    for &token in &order[..count.max(1)] {
        kept[token as usize] = weights[token as usize];
    }
    weights.copy_from_slice(&kept);
}

/// Philox 4x32 with ten rounds.
#[must_use]
pub fn philox(counter: [u32; 4], key: u64) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut keys = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for _ in 0..10 {
        let [p0, p1] = [
            MULTIPLIERS[0] * u64::from(c[0]),
            MULTIPLIERS[1] * u64::from(c[2]),
        ];
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ keys[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ keys[1],
            p0 as u32,
        ];
        keys = [keys[0].wrapping_add(WEYL[0]), keys[1].wrapping_add(WEYL[1])];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of Random123 (kat_vectors, philox4x32 10).
        assert_eq!(
            philox([0; 4], 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                0x299f_31d0_a409_3822
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Frozen: rollouts that are recorded today must be drawn again tomorrow. The numbers were
    /// computed by a separate program.
    #[test]
    fn draws_are_pinned() {
        for (seed, position, expected) in [
            (0, 0, 0.880_520_197_888_614_2),
            (1, 0, 0.894_684_716_335_092_4),
            (0, 1, 0.362_091_115_669_403_44),
            (0x0123_4567_89ab_cdef, 41, 0.743_360_179_559_599_5),
            (u64::MAX, (1 << 40) + 5, 0.250_663_994_770_826_1),
        ] {
            assert_eq!(uniform(seed, position), expected, "{seed} {position}");
        }
        let logits: [f32; 24] =
            std::array::from_fn(|i| 0.5 * ((i * 7) % 13) as f32 - 0.1 * i as f32);
        let drawn = |params: SamplingParams| -> Vec<u32> {
            (0..16)
                .map(|position| sample(&logits, &params, 2026, position).token)
                .collect()
        };
        let all = SamplingParams::default();
        assert_eq!(
            drawn(all),
            [9, 7, 11, 20, 5, 3, 22, 16, 7, 5, 7, 3, 11, 9, 9, 9]
        );
        let warm = SamplingParams {
            temperature: 0.7,
            top_k: 5,
            ..all
        };
        assert_eq!(
            drawn(warm),
            [9, 9, 11, 11, 5, 5, 11, 11, 7, 5, 7, 5, 11, 9, 9, 9]
        );
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.0f32, 3.0, 1.0, 3.0, 2.0, f32::NAN];
        let seen = |params: SamplingParams| -> Vec<u32> {
            let mut seen: Vec<u32> = (0..400)
                .map(|position| sample(&logits, &params, 7, position).token)
                .collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let all = SamplingParams::default();
        assert_eq!(seen(SamplingParams::greedy()), [1]);
        assert_eq!(seen(all), [0, 1, 2, 3, 4]);
        assert_eq!(seen(SamplingParams { top_k: 1, ..all }), [1]);
        assert_eq!(seen(SamplingParams { top_k: 3, ..all }), [1, 3, 4]);
        assert_eq!(seen(SamplingParams { top_p: 0.5, ..all }), [1, 3]);
        assert_eq!(seen(SamplingParams { top_p: 1e-9, ..all }), [1]);
        assert_eq!(seen(SamplingParams { min_p: 0.3, ..all }), [1, 3, 4]);
        assert_eq!(
            seen(SamplingParams {
                temperature: 1e-3,
                ..all
            }),
            [1, 3]
        );
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.1f32, -1.0, 0.7, 0.4];
        let mut counts = [0u32; 4];
        for position in 0..20_000 {
            counts[sample(&logits, &SamplingParams::default(), 42, position).token as usize] += 1;
        }
        for (token, &count) in counts.iter().enumerate() {
            let p = f64::from(log_softmax_at(&logits, token as u32)).exp();
            // Five standard deviations.
            let bound = 5.0 * (p * (1.0 - p) / 20_000.0).sqrt();
            assert!(
                (f64::from(count) / 20_000.0 - p).abs() < bound,
                "{token}: {count} {p}"
            );
        }
    }

    #[test]
    fn rows_without_numbers_do_not_panic() {
        for row in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY; 3]] {
            let drawn = sample(&row, &SamplingParams::default(), 1, 2);
            assert!(drawn.token < 3);
        }
    }
}
