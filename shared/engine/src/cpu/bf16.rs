//! bfloat16 values, and inputs of a matrix product in pairs of them.
//!
//! The product of two pairs is, per lane, two f32 fused multiply-adds: first the odd elements,
//! then the even ones, each rounded to nearest; subnormal inputs and results count as zero. That
//! is what the instruction `vdpbf16ps` computes, and [`super::simd::Simd::dot2`] everywhere (but
//! for a border at 2^-126, which it tells of).

use super::simd::{Isa, Kernel, Simd};
use super::threads::Threads;
use super::tiles::for_each_mut;
use crate::buffers::sized;
use crate::config::Compute;

/// Values from which rounding is worth a second thread, about 4 µs of work.
const PARALLEL_MIN: usize = 32_768;

/// The values of bfloat16 bits.
#[must_use]
pub const fn widen(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The nearest bfloat16, ties to even. NaN stays NaN; what is subnormal becomes zero.
#[must_use]
#[inline(always)]
pub const fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if magnitude > 0x7F80_0000 {
        (bits >> 16) as u16 | 0x40
    } else if rounded & 0x7F80 == 0 {
        (rounded & 0x8000) as u16
    } else {
        rounded as u16
    }
}

/// The left side of a matrix product, row-major `[m, k]`.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// As it is.
    F32(&'a [f32]),
    /// Rounded, in pairs: `[m, k / 2]`, rounded up.
    Bf16(&'a [u32]),
}

impl<'a> From<&'a [f32]> for Input<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Input<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a mut [f32]> for Input<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::F32(values)
    }
}

impl Input<'_> {
    /// Number of rows, when each has `k` values.
    ///
    /// # Panics
    /// When the length does not fit.
    #[must_use]
    pub fn rows(&self, k: usize) -> usize {
        let (len, width) = match self {
            Self::F32(values) => (values.len(), k),
            Self::Bf16(pairs) => (pairs.len(), k.div_ceil(2)),
        };
        let rows = len.checked_div(width).unwrap_or(0);
        assert_eq!(len, rows * width, "x is [{rows}, {k}]");
        rows
    }

    /// The rows `from..` on.
    #[must_use]
    pub fn rows_at(self, k: usize, from: usize, count: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[from * k..][..count * k]),
            Self::Bf16(pairs) => {
                let width = k.div_ceil(2);
                Self::Bf16(&pairs[from * width..][..count * width])
            }
        }
    }
}

/// The rows of `x[m, k]` as a model computes with them; `pairs` keeps them if they are rounded.
pub fn input<'a>(
    compute: Compute,
    threads: &Threads,
    x: &'a [f32],
    k: usize,
    pairs: &'a mut Vec<u32>,
) -> Input<'a> {
    match compute {
        Compute::F32 => Input::F32(x),
        Compute::Bf16 => round_rows(threads, x, k, pairs),
    }
}

/// Rounds the rows of `x[m, k]` and keeps them in `pairs`.
pub fn round_rows<'a>(
    threads: &Threads,
    x: &[f32],
    k: usize,
    pairs: &'a mut Vec<u32>,
) -> Input<'a> {
    if x.len() < PARALLEL_MIN {
        return round_here(threads.isa(), x, k, pairs);
    }
    let (rows, width) = (x.len() / k.max(1), k.div_ceil(2));
    let pairs = sized(pairs, rows * width);
    let some = rows.div_ceil(2 * threads.count()).max(1);
    let (to, from) = (pairs.chunks_mut(some * width), x.chunks(some * k));
    let mut work: Vec<_> = to.zip(from).collect();
    let isa = threads.isa();
    for_each_mut(threads, true, &mut work, |_, (to, from)| {
        isa.dispatch(Round { from, to, k });
    });
    Input::Bf16(pairs)
}

/// The same on the calling thread.
pub(crate) fn round_here<'a>(isa: Isa, x: &[f32], k: usize, pairs: &'a mut Vec<u32>) -> Input<'a> {
    let pairs = sized(pairs, x.len() / k.max(1) * k.div_ceil(2));
    isa.dispatch(Round {
        from: x,
        to: pairs,
        k,
    });
    Input::Bf16(pairs)
}

struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [u32],
    k: usize,
}

impl Kernel for Round<'_> {
    type Output = ();

    /// Integer arithmetic that the compiler turns into vectors of the instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let width = self.k.div_ceil(2).max(1);
        let rows = self.from.chunks_exact(self.k.max(1));
        for (from, to) in rows.zip(self.to.chunks_exact_mut(width)) {
            let (pairs, rest) = from.as_chunks::<2>();
            for (to, [low, high]) in to.iter_mut().zip(pairs) {
                *to = u32::from(narrow(*low)) | u32::from(narrow(*high)) << 16;
            }
            if let ([last], Some(to)) = (rest, to.last_mut()) {
                *to = u32::from(narrow(*last));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_and_flushes_subnormals() {
        for (value, expected) in [
            (1.0, 0x3F80),
            (-2.5, 0xC020),
            (f32::from_bits(0x3F80_8000), 0x3F80),
            (f32::from_bits(0x3F81_8000), 0x3F82),
            (f32::from_bits(0x3F80_8001), 0x3F81),
            (f32::MAX, 0x7F80),
            (f32::NEG_INFINITY, 0xFF80),
            (1e-40, 0),
            (-1e-40, 0x8000),
            (f32::MIN_POSITIVE, 0x0080),
        ] {
            assert_eq!(narrow(value), expected, "{value:e}");
        }
        assert!(widen(narrow(f32::NAN)).is_nan());
        assert!(widen(narrow(f32::from_bits(0x7F80_0001))).is_nan());
    }

    #[test]
    fn rows_become_pairs() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut pairs = Vec::new();
        let Input::Bf16(got) = round_rows(&Threads::new(1), &x, 3, &mut pairs) else {
            panic!("pairs were asked for");
        };
        assert_eq!(got, [0x4000_3F80, 0x4040, 0x40A0_4080, 0x40C0]);
        assert_eq!(Input::Bf16(got).rows(3), 2);
    }
}
