//! Sixteen lanes in one 512-bit register.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that avx512f, avx2 and fma exist; made only by [`run`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, for code that runs with these instructions already.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) fn proven() -> Self {
        Self(())
    }
}

/// Runs a kernel with these instructions.
///
/// # Safety
/// The machine must have avx512f, avx2 and fma.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

// SAFETY (every block below): `self` is an `Avx512`, which only exists where avx512f does;
// loads and stores are unaligned and stay inside the array they were given.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one fact for all, stated above"
)]
impl Simd for Avx512 {
    type V = __m512;
    type P = __m512i;
    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(pair.cast_signed()) }
    }
    #[inline(always)]
    fn even(self, pairs: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)) }
    }
    #[inline(always)]
    fn odd(self, pairs: __m512i) -> __m512 {
        unsafe {
            let high = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(pairs, high))
        }
    }
    #[inline(always)]
    fn flush(self, v: __m512) -> __m512 {
        unsafe {
            let bits = _mm512_castps_si512(v);
            let sign = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MIN));
            let normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7F80_0000));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(sign, normal, bits))
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: __m512) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn zero_if_less(self, v: __m512, x: __m512, limit: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), v) }
    }
    #[inline(always)]
    fn add_exponent(self, v: __m512, shifted: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponent))
        }
    }
}
