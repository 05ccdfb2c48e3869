//! The log-softmax that sampler and learner share.

use super::gemm::load_part;
use super::math::{exp, ln};
use super::simd::{Isa, Kernel, LANES, Simd, max_lanes, sum_lanes};

/// `logits[token] - max - ln(sum(exp(logits - max)))`: the log-probability of `token`.
///
/// # Panics
/// When `token` is not an index of `logits`.
#[must_use]
pub fn log_softmax_at(logits: &[f32], token: u32) -> f32 {
    let (max, ln_sum) = max_and_ln_sum(logits);
    (logits[token as usize] - max) - ln_sum
}

/// The two numbers of a row that make a log-softmax: `max` and `ln(sum(exp(logits - max)))`.
#[must_use]
pub fn max_and_ln_sum(logits: &[f32]) -> (f32, f32) {
    let max = Isa::best().dispatch(RowMax(logits));
    let sum = Isa::best().dispatch(ExpSum { logits, max });
    // At least one term is exp(0) = 1, unless the row is empty or not a number.
    (max, if sum >= 1.0 { ln(sum) } else { f32::NAN })
}

/// Writes `exp(logits - max)` and returns nothing else: the sampler's weights.
pub(crate) fn exp_shifted(logits: &[f32], max: f32, scale: f32, out: &mut [f32]) {
    Isa::best().dispatch(ExpShifted {
        logits,
        max,
        scale,
        out,
    });
}

/// Largest value of a row; NaN is passed over.
pub(crate) fn row_max(logits: &[f32]) -> f32 {
    Isa::best().dispatch(RowMax(logits))
}

struct RowMax<'a>(&'a [f32]);

impl Kernel for RowMax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut max = s.splat(f32::NEG_INFINITY);
        for chunk in chunks {
            max = s.max(s.load(chunk), max);
        }
        let mut max = max_lanes(s, max);
        for &value in rest {
            max = if value > max { value } else { max };
        }
        max
    }
}

struct ExpSum<'a> {
    logits: &'a [f32],
    max: f32,
}

impl Kernel for ExpSum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, rest) = self.logits.as_chunks::<LANES>();
        let max = s.splat(self.max);
        let mut sum = s.splat(0.0);
        for chunk in chunks {
            sum = s.add(sum, exp(s, s.sub(s.load(chunk), max)));
        }
        if !rest.is_empty() {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            sum = s.add(sum, exp(s, s.sub(s.load(&lanes), max)));
        }
        sum_lanes(s, sum)
    }
}

struct ExpShifted<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for ExpShifted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, scale) = (s.splat(self.max), s.splat(self.scale));
        for (x, y) in self.logits.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            let v = exp(s, s.mul(s.sub(load_part(s, x), max), scale));
            super::gemm::store_part(s, y, v);
        }
    }
}
