//! Sixteen lanes in two 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that avx2 and fma exist; made only by [`run`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Lanes 0 to 7 and 8 to 15.
type V = [__m256; 2];

/// Pairs of lanes 0 to 7 and 8 to 15.
type P = [__m256i; 2];

/// Runs a kernel with these instructions.
///
/// # Safety
/// The machine must have avx2 and fma.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

// SAFETY (every block below): `self` is an `Avx2`, which only exists where avx2 and fma do;
// loads and stores are unaligned and stay inside the array they were given.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one fact for all, stated above"
)]
impl Simd for Avx2 {
    type V = V;
    type P = P;
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr()),
                _mm256_loadu_ps(from.as_ptr().add(8)),
            ]
        }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u32; LANES]) -> P {
        unsafe {
            [
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(8).cast()),
            ]
        }
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> P {
        unsafe { [_mm256_set1_epi32(pair.cast_signed()); 2] }
    }
    #[inline(always)]
    fn even(self, pairs: P) -> V {
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[0])),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[1])),
            ]
        }
    }
    #[inline(always)]
    fn odd(self, pairs: P) -> V {
        unsafe {
            let high = _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed());
            [
                _mm256_castsi256_ps(_mm256_and_si256(pairs[0], high)),
                _mm256_castsi256_ps(_mm256_and_si256(pairs[1], high)),
            ]
        }
    }
    #[inline(always)]
    fn flush(self, v: V) -> V {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let least = _mm256_set1_ps(f32::MIN_POSITIVE);
            let keep = |v: __m256| {
                let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_andnot_ps(sign, v), least);
                _mm256_or_ps(_mm256_and_ps(sign, v), _mm256_andnot_ps(tiny, v))
            };
            [keep(v[0]), keep(v[1])]
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: V) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn zero_if_less(self, v: V, x: V, limit: V) -> V {
        unsafe {
            let less = [
                _mm256_cmp_ps::<_CMP_LT_OQ>(x[0], limit[0]),
                _mm256_cmp_ps::<_CMP_LT_OQ>(x[1], limit[1]),
            ];
            [
                _mm256_andnot_ps(less[0], v[0]),
                _mm256_andnot_ps(less[1], v[1]),
            ]
        }
    }
    #[inline(always)]
    fn add_exponent(self, v: V, shifted: V) -> V {
        unsafe {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v[0]), low)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v[1]), high)),
            ]
        }
    }
}
