//! The lanes of [`super::avx512`], with the instruction for products of bfloat16 pairs.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::{Kernel, LANES, Simd};

/// Proof that avx512bf16, avx512f, avx2 and fma exist; made only by [`run`].
#[derive(Clone, Copy)]
pub(super) struct Avx512Bf16(Avx512);

/// Runs a kernel with these instructions.
///
/// # Safety
/// The machine must have avx512bf16, avx512f, avx2 and fma.
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512Bf16(Avx512::proven()))
}

/// All but `dot2` are the operations of [`Avx512`].
impl Simd for Avx512Bf16 {
    type V = __m512;
    type P = __m512i;
    const ACCUMULATORS: usize = Avx512::ACCUMULATORS;

    #[inline(always)]
    fn dot2(self, acc: __m512, x: __m512i, w: __m512i) -> __m512 {
        // SAFETY: `self` only exists where avx512bf16 does; both vector types are 512 bits in
        // which every pattern is valid.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(x);
            let w = std::mem::transmute::<__m512i, __m512bh>(w);
            _mm512_dpbf16_ps(acc, x, w)
        }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        self.0.splat(value)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        self.0.load(from)
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u32; LANES]) -> __m512i {
        self.0.load_pairs(from)
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> __m512i {
        self.0.splat_pair(pair)
    }
    #[inline(always)]
    fn even(self, pairs: __m512i) -> __m512 {
        self.0.even(pairs)
    }
    #[inline(always)]
    fn odd(self, pairs: __m512i) -> __m512 {
        self.0.odd(pairs)
    }
    #[inline(always)]
    fn flush(self, v: __m512) -> __m512 {
        self.0.flush(v)
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.0.add(a, b)
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        self.0.sub(a, b)
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.0.mul(a, b)
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        self.0.div(a, b)
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        self.0.max(a, b)
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        self.0.min(a, b)
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.0.fma(a, b, c)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: __m512) {
        self.0.store(to, v);
    }
    #[inline(always)]
    fn zero_if_less(self, v: __m512, x: __m512, limit: __m512) -> __m512 {
        self.0.zero_if_less(v, x, limit)
    }
    #[inline(always)]
    fn add_exponent(self, v: __m512, shifted: __m512) -> __m512 {
        self.0.add_exponent(v, shifted)
    }
}
