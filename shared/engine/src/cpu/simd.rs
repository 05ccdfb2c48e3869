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
