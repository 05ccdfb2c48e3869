//! The heart of every product: `R` rows times `B` panels of sixteen columns, along k.
//!
//! Each accumulator lane is one chain of fused multiply-adds in ascending k, whatever the tile.
//! What is multiplied, and in which steps, are the [`Operands`].

use std::ops::Range;

use super::simd::{LANES, Simd};

/// Inputs and weights of a product, and how a chain walks along them.
pub(crate) trait Operands: 'static {
    /// An element of a row.
    type X: Copy + Sync;
    /// An element of a panel.
    type W: Copy + Sync;

    /// Elements of a row of k values.
    fn width(k: usize) -> usize;
    /// Rows of a panel for k values.
    fn depth(k: usize) -> usize;
    /// The elements of a row that meet these rows of a panel.
    fn columns(depth: Range<usize>, width: usize) -> Range<usize>;
    /// Continues the chains.
    fn chains<S: Simd, const R: usize, const B: usize>(
        s: S,
        x: [&[Self::X]; R],
        w: [&[[Self::W; LANES]]; B],
        acc: [[S::V; B]; R],
    ) -> [[S::V; B]; R];
}

/// f32 times f32: `acc = fma(x[k], w[k], acc)`.
pub(crate) struct Single;

impl Operands for Single {
    type X = f32;
    type W = f32;

    #[inline(always)]
    fn width(k: usize) -> usize {
        k
    }
    #[inline(always)]
    fn depth(k: usize) -> usize {
        k
    }
    #[inline(always)]
    fn columns(depth: Range<usize>, _: usize) -> Range<usize> {
        depth
    }
    #[inline(always)]
    fn chains<S: Simd, const R: usize, const B: usize>(
        s: S,
        x: [&[f32]; R],
        w: [&[[f32; LANES]]; B],
        mut acc: [[S::V; B]; R],
    ) -> [[S::V; B]; R] {
        let len = equal_lengths(&x, &w);
        for k in 0..len {
            let mut lanes = [s.splat(0.0); B];
            for b in 0..B {
                lanes[b] = s.load(&w[b][k]);
            }
            for r in 0..R {
                let value = s.splat(x[r][k]);
                for b in 0..B {
                    acc[r][b] = s.fma(value, lanes[b], acc[r][b]);
                }
            }
        }
        acc
    }
}

/// f32 times bfloat16 pairs, widened exactly: the chain is that of [`Single`].
pub(crate) struct Widened;

impl Operands for Widened {
    type X = f32;
    type W = u32;

    #[inline(always)]
    fn width(k: usize) -> usize {
        k
    }
    #[inline(always)]
    fn depth(k: usize) -> usize {
        k.div_ceil(2)
    }
    #[inline(always)]
    fn columns(depth: Range<usize>, width: usize) -> Range<usize> {
        2 * depth.start..width.min(2 * depth.end)
    }
    #[inline(always)]
    fn chains<S: Simd, const R: usize, const B: usize>(
        s: S,
        x: [&[f32]; R],
        w: [&[[u32; LANES]]; B],
        mut acc: [[S::V; B]; R],
    ) -> [[S::V; B]; R] {
        let (width, depth) = (x[0].len(), w[0].len());
        assert!(width.div_ceil(2) == depth, "two values meet a pair");
        for row in x {
            assert_eq!(row.len(), width, "rows are equally long");
        }
        for panel in w {
            assert_eq!(panel.len(), depth, "panels are equally long");
        }
        let whole = width / 2;
        for step in 0..whole {
            let mut even = [s.splat(0.0); B];
            let mut odd = [s.splat(0.0); B];
            for b in 0..B {
                let pair = s.load_pairs(&w[b][step]);
                even[b] = s.even(pair);
                odd[b] = s.odd(pair);
            }
            for r in 0..R {
                let value = s.splat(x[r][2 * step]);
                for b in 0..B {
                    acc[r][b] = s.fma(value, even[b], acc[r][b]);
                }
            }
            for r in 0..R {
                let value = s.splat(x[r][2 * step + 1]);
                for b in 0..B {
                    acc[r][b] = s.fma(value, odd[b], acc[r][b]);
                }
            }
        }
        if whole < depth {
            for b in 0..B {
                let even = s.even(s.load_pairs(&w[b][whole]));
                for r in 0..R {
                    acc[r][b] = s.fma(s.splat(x[r][2 * whole]), even, acc[r][b]);
                }
            }
        }
        acc
    }
}

/// Pairs of bfloat16 times the same: per step [`Simd::dot2`], the odd elements first.
pub(crate) struct Paired;

impl Operands for Paired {
    type X = u32;
    type W = u32;

    #[inline(always)]
    fn width(k: usize) -> usize {
        k.div_ceil(2)
    }
    #[inline(always)]
    fn depth(k: usize) -> usize {
        k.div_ceil(2)
    }
    #[inline(always)]
    fn columns(depth: Range<usize>, _: usize) -> Range<usize> {
        depth
    }
    #[inline(always)]
    fn chains<S: Simd, const R: usize, const B: usize>(
        s: S,
        x: [&[u32]; R],
        w: [&[[u32; LANES]]; B],
        mut acc: [[S::V; B]; R],
    ) -> [[S::V; B]; R] {
        let len = equal_lengths(&x, &w);
        for lanes in acc.as_flattened_mut() {
            *lanes = s.flush(*lanes);
        }
        for k in 0..len {
            let mut lanes = [s.splat_pair(0); B];
            for b in 0..B {
                lanes[b] = s.load_pairs(&w[b][k]);
            }
            for r in 0..R {
                let value = s.splat_pair(x[r][k]);
                for b in 0..B {
                    acc[r][b] = s.dot2(acc[r][b], value, lanes[b]);
                }
            }
        }
        acc
    }
}

/// Rows and panels that a chain may index alike; the check takes the bounds out of its loop.
#[inline(always)]
fn equal_lengths<X, W>(x: &[&[X]], w: &[&[[W; LANES]]]) -> usize {
    let len = w[0].len();
    for row in x {
        assert_eq!(row.len(), len, "rows and panels are equally long");
    }
    for panel in w {
        assert_eq!(panel.len(), len, "panels are equally long");
    }
    len
}
