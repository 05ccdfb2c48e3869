//! Sixteen lanes of f32, the unit in which every kernel is written.
//!
//! A kernel is a struct whose [`Kernel::run`] is generic over [`Simd`]. It is compiled once
//! per instruction set and picked at run time by [`Isa::dispatch`]. The operations of
//! [`Simd`] are IEEE 754 operations per lane, so all instruction sets give the same bits.
//! Methods of kernels and of [`Simd`] are `inline(always)`: they take the target features of
//! the function they end up in, and a call that is not inlined would fall back to slow code
//! (never to other results). For the same reason kernels use no closures around lanes.
#![allow(unsafe_code, reason = "target-feature functions and vector intrinsics")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod scalar;

use std::sync::OnceLock;

/// Lanes of one vector.
pub const LANES: usize = 16;

/// IEEE operations on sixteen lanes. A value of an implementing type proves that the
/// instruction set it names exists on this machine.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen pairs of bfloat16.
    type P: Copy;
    /// Vectors that fit in registers as accumulators, beside operands.
    const ACCUMULATORS: usize;

    /// The same value in each lane.
    fn splat(self, value: f32) -> Self::V;
    /// Reads sixteen values.
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// Reads sixteen pairs of bfloat16: the even element in the low half.
    fn load_pairs(self, from: &[u32; LANES]) -> Self::P;
    /// The same pair in each lane.
    fn splat_pair(self, pair: u32) -> Self::P;
    /// The even elements, widened exactly.
    fn even(self, pairs: Self::P) -> Self::V;
    /// The odd elements, widened exactly.
    fn odd(self, pairs: Self::P) -> Self::V;
    /// `fma(x.even, w.even, fma(x.odd, w.odd, acc))`, with subnormal elements and results as
    /// zero. `acc` is not subnormal (see [`Self::flush`]).
    ///
    /// The instruction asks whether a result is subnormal after it was rounded to 24 bits, this
    /// after it was rounded as a subnormal. They differ where the exact result is less than the
    /// least normal number by 2^-151 to 2^-150: 2^-126 here, zero there. To get between, a sum that
    /// is within 2^-134 of 2^-126 must meet a product below 2^-134, so an element below 2^-67. Two
    /// more operations on every step would tell; no sum of a model comes near.
    #[inline(always)]
    fn dot2(self, acc: Self::V, x: Self::P, w: Self::P) -> Self::V {
        let odd = self.fma(self.flush(self.odd(x)), self.flush(self.odd(w)), acc);
        let acc = self.flush(odd);
        let even = self.fma(self.flush(self.even(x)), self.flush(self.even(w)), acc);
        self.flush(even)
    }
    /// Zero where a lane is subnormal.
    fn flush(self, v: Self::V) -> Self::V;
    /// Writes sixteen values.
    fn store(self, to: &mut [f32; LANES], v: Self::V);
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: a NaN in `a` yields `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: a NaN in `a` yields `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if x < limit { 0 } else { v }`.
    fn zero_if_less(self, v: Self::V, x: Self::V, limit: Self::V) -> Self::V;
    /// Adds the low bits of `shifted`'s bit pattern to the exponent of `v`:
    /// `bits(v) + (bits(shifted) << 23)`, wrapping.
    fn add_exponent(self, v: Self::V, shifted: Self::V) -> Self::V;
}

/// Work that is written once and compiled per instruction set. `run` must be `inline(always)`.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work with `s`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that exists on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Scalar,
}

impl Isa {
    /// The fastest instruction set of this machine.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All instruction sets of this machine, fastest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if fma && is_x86_feature_detected!("avx512f") {
                if is_x86_feature_detected!("avx512bf16") {
                    all.push(Self(Kind::Avx512Bf16));
                }
                all.push(Self(Kind::Avx512));
            }
            if fma {
                all.push(Self(Kind::Avx2));
            }
        }
        all.push(Self(Kind::Scalar));
        all
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Scalar => "scalar",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: a value of this kind is only made by `available`, which detected
            // avx512bf16, avx512f, avx2 and fma.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => unsafe { avx512bf16::run(kernel) },
            // SAFETY: a value of this kind is only made by `available`, which detected
            // avx512f, avx2 and fma.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512::run(kernel) },
            // SAFETY: a value of this kind is only made by `available`, which detected
            // avx2 and fma.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2::run(kernel) },
            Kind::Scalar => kernel.run(scalar::Scalar),
        }
    }
}

/// The fixed tree in which sixteen partial sums become one: lane i meets i+8, i+4, i+2, i+1.
#[inline(always)]
pub(crate) fn sum_lanes<S: Simd>(s: S, v: S::V) -> f32 {
    let mut lanes = [0.0f32; LANES];
    s.store(&mut lanes, v);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest lane.
#[inline(always)]
pub(crate) fn max_lanes<S: Simd>(s: S, v: S::V) -> f32 {
    let mut lanes = [0.0f32; LANES];
    s.store(&mut lanes, v);
    let mut max = lanes[0];
    for &lane in &lanes[1..] {
        max = if lane > max { lane } else { max };
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::bf16::{narrow, widen};

    /// 2^-134: elements of at least 2^-67 have no smaller product.
    const PRODUCT_MIN: f64 = 4.6e-41;

    struct Dot2<'a> {
        acc: &'a [f32; LANES],
        x: &'a [u32; LANES],
        w: &'a [u32; LANES],
    }

    impl Kernel for Dot2<'_> {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            let result = s.dot2(s.load(self.acc), s.load_pairs(self.x), s.load_pairs(self.w));
            s.store(&mut out, result);
            out
        }
    }

    /// `acc + x w` as the instruction rounds it. Exact in f64 for the numbers below.
    fn instruction(acc: f32, x: f32, w: f32) -> f32 {
        let scale = 64f64.exp2();
        let rounded = ((f64::from(acc) + f64::from(x) * f64::from(w)) * scale) as f32;
        let least = f64::from(f32::MIN_POSITIVE) * scale;
        match f64::from(rounded.abs()) < least {
            true => 0f32.copysign(rounded),
            false => (f64::from(rounded) / scale) as f32,
        }
    }

    /// Sums near the least normal number and factors whose product is near their last bits.
    fn cases() -> Vec<(f32, f32, f32)> {
        let least = f32::MIN_POSITIVE;
        let sums = (0..6u32).chain([1 << 14, 1 << 15, 1 << 16, 1 << 23]);
        let sums: Vec<f32> = sums
            .map(|ulps| f32::from_bits(least.to_bits() + ulps))
            .collect();
        let mut cases = vec![(least, -(-75f32).exp2(), (-75f32).exp2())];
        for exponent in -160..=-126 {
            // Even splits and those with one element near one.
            for low in [exponent / 2, exponent.max(-126), -67, -66] {
                let high = exponent - low;
                for (a, b) in [(0x80u8, 0x80u8), (0x80, 0x81), (0xFF, 0xFF), (0xC3, 0xA7)] {
                    let x = f32::from(a) * ((low - 7) as f32).exp2();
                    let w = f32::from(b) * ((high - 7) as f32).exp2();
                    let normal = |v: f32| v >= least && widen(narrow(v)) == v;
                    if !(normal(x) && normal(w)) {
                        continue;
                    }
                    for acc in &sums {
                        cases.extend([(*acc, -x, w), (-*acc, x, w), (*acc, x, w)]);
                    }
                }
            }
        }
        cases
    }

    /// The emulation is the instruction but in the one place that `dot2` tells of.
    #[test]
    fn emulated_products_are_those_of_the_instruction_above_its_border() {
        let (mut equal, mut beyond) = (0, 0);
        for (acc, x, w) in cases() {
            let product = f64::from(x) * f64::from(w);
            let (x, w) = (u32::from(narrow(x)), u32::from(narrow(w)));
            let (exact, sums) = (
                instruction(acc, widen(x as u16), widen(w as u16)),
                [acc; LANES],
            );
            // As the odd elements, whose result the even ones (zeros) are then added to, and as
            // the even ones.
            for (shift, exact) in [(16, exact + 0.0), (0, exact)] {
                let pairs = [x << shift; LANES];
                let weights = [w << shift; LANES];
                for isa in Isa::available() {
                    let dot2 = Dot2 {
                        acc: &sums,
                        x: &pairs,
                        w: &weights,
                    };
                    let got = isa.dispatch(dot2)[LANES - 1];
                    let what = format!("{} {acc:e} {product:e}: {got:e}", isa.name());
                    if got.to_bits() == exact.to_bits() {
                        equal += 1;
                        continue;
                    }
                    assert_ne!(isa.name(), "avx512bf16", "{what}");
                    assert_eq!((got.abs(), exact), (f32::MIN_POSITIVE, 0.0), "{what}");
                    assert!(product.abs() < PRODUCT_MIN, "{what}");
                    beyond += 1;
                }
            }
        }
        assert!(
            equal > 10_000 && beyond > 0,
            "{equal} equal, {beyond} beyond"
        );
    }
}
