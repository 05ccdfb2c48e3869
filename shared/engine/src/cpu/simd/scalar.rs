//! Sixteen lanes in plain Rust: the definition that the others must equal.

use super::{LANES, Simd};

/// No instruction set assumed.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type V = [f32; LANES];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type V = V;
    type P = [u32; LANES];
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        *from
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u32; LANES]) -> [u32; LANES] {
        *from
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> [u32; LANES] {
        [pair; LANES]
    }
    #[inline(always)]
    fn even(self, pairs: [u32; LANES]) -> V {
        pairs.map(|pair| f32::from_bits(pair << 16))
    }
    #[inline(always)]
    fn odd(self, pairs: [u32; LANES]) -> V {
        pairs.map(|pair| f32::from_bits(pair & 0xFFFF_0000))
    }
    #[inline(always)]
    fn flush(self, v: V) -> V {
        v.map(|v| {
            if v.abs() < f32::MIN_POSITIVE {
                0.0f32.copysign(v)
            } else {
                v
            }
        })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: V) {
        *to = v;
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn zero_if_less(self, v: V, x: V, limit: V) -> V {
        std::array::from_fn(|i| if x[i] < limit[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn add_exponent(self, v: V, shifted: V) -> V {
        map2(v, shifted, |v, s| {
            f32::from_bits(v.to_bits().wrapping_add(s.to_bits() << 23))
        })
    }
}
