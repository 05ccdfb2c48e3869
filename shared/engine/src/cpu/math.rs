//! exp and log, the same on every path.

use super::simd::Simd;

/// Below this, exp is an exact zero (the true value is subnormal or smaller).
const EXP_MIN: f32 = -87.336_54;
/// Above this, exp stays at its value here, 2.4e38.
const EXP_MAX: f32 = 88.376_26;
/// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that `n * LN2_HI` is exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// exp(r) = 1 + r + r^2 (P0 r^5 + .. + P5) on |r| <= ln 2 / 2; coefficients of Cephes' expf.
const EXP_POLY: [f32; 6] = [
    1.987_569_1e-4,
    1.398_2e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// e^x per lane, within 2 units in the last place; 0 below -87.33, at most 2.4e38.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let clamped = s.min(s.max(x, s.splat(EXP_MIN)), s.splat(EXP_MAX));
    let shifted = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HI), clamped);
    let r = s.fma(n, s.splat(-LN2_LO), r);
    let mut poly = s.splat(EXP_POLY[0]);
    for coefficient in &EXP_POLY[1..] {
        poly = s.fma(poly, r, s.splat(*coefficient));
    }
    let value = s.add(s.fma(poly, s.mul(r, r), r), s.splat(1.0));
    // The low bits of `shifted` are n in two's complement; the rest is shifted out.
    s.zero_if_less(s.add_exponent(value, shifted), x, s.splat(EXP_MIN))
}

/// `1 / (1 + e^-x)` per lane.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `2 sqrt(2 / pi)`, so that `x gelu_sigmoid(x)` is the tanh form of GELU:
/// `(1 + tanh u) / 2 = sigmoid(2 u)`.
pub(crate) const GELU_LINEAR: f32 = 1.595_769_2;
/// `GELU_LINEAR` times 0.044715, of the cube.
pub(crate) const GELU_CUBIC: f32 = 0.071_354_82;

/// `sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))` per lane.
#[inline(always)]
pub(crate) fn gelu_sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let square = s.mul(x, x);
    let slope = s.fma(square, s.splat(GELU_CUBIC), s.splat(GELU_LINEAR));
    sigmoid(s, s.mul(x, slope))
}

/// Natural logarithm of a positive, normal, finite f32.
///
/// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh((m - 1) / (m + 1)) as a series in
/// f64, so the result is the correctly rounded f32 but for rare ties. Only IEEE operations.
///
/// # Panics
/// In debug builds, when `x` is not positive, normal and finite.
#[must_use]
pub fn ln(x: f32) -> f32 {
    debug_assert!(x.is_normal() && x > 0.0, "ln of {x}");
    let bits = f64::from(x).to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    // |t| <= 0.172, so t^19 / 19 is below 2e-16 of t.
    let mut series = 0.0f64;
    for power in (0..9).rev() {
        series = series.mul_add(t2, 1.0 / f64::from(2 * power + 1));
    }
    let ln_m = 2.0 * t * series;
    (exponent as f64).mul_add(std::f64::consts::LN_2, ln_m) as f32
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, Kernel, LANES, Simd};

    struct ExpOf([f32; LANES]);

    impl Kernel for ExpOf {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            s.store(&mut out, super::exp(s, s.load(&self.0)));
            out
        }
    }

    #[test]
    fn exp_is_close_to_the_truth_and_equal_on_all_paths() {
        let mut x = -90.0f32;
        while x < 88.0 {
            let lanes: [f32; LANES] = std::array::from_fn(|i| x + i as f32 * 0.001);
            let first = Isa::best().dispatch(ExpOf(lanes));
            for isa in Isa::available() {
                assert_eq!(first, isa.dispatch(ExpOf(lanes)), "{}", isa.name());
            }
            for (x, y) in lanes.into_iter().zip(first) {
                let truth = f64::from(x).exp();
                let error = (f64::from(y) - truth).abs() / truth;
                assert!(error < 2.4e-7 || (x < -87.3 && y == 0.0), "exp({x}) = {y}");
            }
            x += 0.0173;
        }
    }

    #[test]
    fn exp_has_exact_ends() {
        let mut x = [0.0; LANES];
        x[1] = f32::NEG_INFINITY;
        x[2] = f32::INFINITY;
        x[3] = -1e30;
        for isa in Isa::available() {
            let y = isa.dispatch(ExpOf(x));
            assert_eq!((y[0], y[1], y[3]), (1.0, 0.0, 0.0));
            assert!(y[2].is_finite() && y[2] > 2e38);
        }
    }

    #[test]
    fn ln_is_the_rounded_truth() {
        let mut x = 1.2e-38f32;
        while x < 3e38 {
            let truth = f64::from(x).ln() as f32;
            let ulps = (super::ln(x).to_bits() as i64 - truth.to_bits() as i64).abs();
            assert!(ulps <= 1, "ln({x}) = {} not {truth}", super::ln(x));
            x *= 1.000_37;
        }
        assert_eq!(super::ln(1.0), 0.0);
    }
}
