//! The one matrix product of the backward pass: `C[m, n] (+)= A[m, k] B[k, n]`.
//!
//! Every product of LoRA's backward has this form with the matrices as they lie in memory, so none
//! is transposed or packed for long (`T` rows, `h = x A^T`, `dy` already scaled). With an adapter's
//! rank as the one small size, an element of `A` meets a vector or two of `B`: rows of `A` are read
//! where they lie, because packing them would cost as much as multiplying them.
//!
//! | product | A | B |
//! |---|---|---|
//! | `g = dy B` | `dy [T, out]` | `B [out, r]` |
//! | `dA += g^T x` | `g [T, r]`, by columns | `x [T, in]` |
//! | `dB += dy^T h` | `dy [T, out]`, by columns | `h [T, r]` |
//! | `dx += g A` | `g [T, r]` | `A [r, in]` |
//!
//! Each element of `C` is one chain of fused multiply-adds with `k` ascending, started from 0 or
//! from what `C` held, so tiles, threads and instruction sets do not change its bits.

use std::array::from_fn;

use crate::buffers::sized;
use crate::cpu::gemm::{load_part, store_part};
use crate::cpu::simd::{Isa, Kernel, LANES, Simd};

/// Rows of `A` that share one pass over a panel of `B`.
const ROWS: usize = 8;
/// Vectors of a panel.
const WIDTH: usize = 2;
/// Columns of a panel of `B`.
const PANEL: usize = WIDTH * LANES;
/// Depth of a panel: 256 x 32 floats are 32 KiB, one first-level cache.
const DEPTH: usize = 256;
/// Rows of `A` per block: 64 x 256 floats stay in the second-level cache beside the panel.
const BLOCK_ROWS: usize = 64;

/// How `A` lies in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left<'a> {
    /// `[m, k]`, row-major.
    Rows(&'a [f32]),
    /// `[k, m]`, row-major: its transpose is multiplied.
    Columns(&'a [f32]),
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Rows of `A` and `C`.
    pub(super) m: usize,
    /// Columns of `A`, rows of `B`.
    pub(super) k: usize,
    /// Columns of `B` and `C`.
    pub(super) n: usize,
}

/// Where the chains start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At 0: `C` is overwritten.
    Zero,
    /// At what `C` holds: the product is added to it.
    Old,
}

/// Buffers for packed blocks, used again by every product.
#[derive(Debug, Default)]
pub(super) struct Packing {
    left: Vec<[f32; ROWS]>,
    right: Vec<[[f32; LANES]; WIDTH]>,
}

impl Packing {
    /// Bytes of the largest blocks.
    pub(super) const BYTES: usize = (BLOCK_ROWS + PANEL) * DEPTH * size_of::<f32>();
}

/// Computes the product with the instructions of `isa`.
pub(super) fn matmul(
    isa: Isa,
    packing: &mut Packing,
    start: Start,
    c: &mut [f32],
    a: Left<'_>,
    b: &[f32],
    sizes: Sizes,
) {
    let Sizes { m, k, n } = sizes;
    let (Left::Rows(a_values) | Left::Columns(a_values)) = a;
    assert_eq!(
        (c.len(), a_values.len(), b.len()),
        (m * n, m * k, k * n),
        "{sizes:?}"
    );
    if start == Start::Zero {
        c.fill(0.0);
    }
    for k0 in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - k0);
        for m0 in (0..m).step_by(BLOCK_ROWS) {
            let rows = BLOCK_ROWS.min(m - m0);
            if let Left::Columns(values) = a {
                pack_columns(&mut packing.left, values, m, [m0, rows], [k0, depth]);
            }
            for n0 in (0..n).step_by(PANEL) {
                let columns = PANEL.min(n - n0);
                isa.dispatch(Panel {
                    packing,
                    a,
                    rows: [m0, rows],
                    k,
                    c: &mut c[m0 * n..(m0 + rows) * n],
                    b,
                    n,
                    at: [k0, depth],
                    columns: [n0, columns],
                });
            }
        }
    }
}

/// Groups of eight columns of `[k, m]`, each `[depth][8]`; missing ones are 0.
fn pack_columns(
    to: &mut Vec<[f32; ROWS]>,
    values: &[f32],
    m: usize,
    [m0, rows]: [usize; 2],
    [k0, depth]: [usize; 2],
) {
    let to = sized(to, rows.div_ceil(ROWS) * depth);
    for (group, packed) in to.chunks_exact_mut(depth).enumerate() {
        let first = m0 + group * ROWS;
        let count = ROWS.min(m0 + rows - first);
        for (index, to) in packed.iter_mut().enumerate() {
            let from = &values[(k0 + index) * m + first..][..count];
            match from.first_chunk::<ROWS>() {
                Some(from) => *to = *from,
                None => {
                    *to = [0.0; ROWS];
                    to[..count].copy_from_slice(from);
                }
            }
        }
    }
}

/// What a tile multiplies its vectors with.
trait Factors: Copy {
    /// The element of a row at a depth of the block.
    fn at(self, depth: usize, row: usize) -> f32;
}

/// Packed groups of eight rows.
#[derive(Clone, Copy)]
struct Packed<'a>(&'a [[f32; ROWS]]);

impl Factors for Packed<'_> {
    #[inline(always)]
    fn at(self, depth: usize, row: usize) -> f32 {
        self.0[depth][row]
    }
}

/// Eight rows where they lie, cut to the block's depth.
#[derive(Clone, Copy)]
struct InPlace<'a>([&'a [f32]; ROWS]);

impl Factors for InPlace<'_> {
    #[inline(always)]
    fn at(self, depth: usize, row: usize) -> f32 {
        self.0[row][depth]
    }
}

/// One panel of `B` against one block of `A`.
struct Panel<'a> {
    packing: &'a mut Packing,
    a: Left<'a>,
    /// First row of the block and their number.
    rows: [usize; 2],
    /// Columns of `A`.
    k: usize,
    /// Rows of the block, whole.
    c: &'a mut [f32],
    b: &'a [f32],
    n: usize,
    /// First row of the panel and their number.
    at: [usize; 2],
    /// First column of the panel and their number.
    columns: [usize; 2],
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            packing,
            a,
            rows: [m0, rows],
            k,
            c,
            b,
            n,
            at,
            columns: [n0, columns],
        } = self;
        let [k0, depth] = at;
        let Packing { left, right } = packing;
        // Columns beyond the matrix are computed and never stored: any number may stand there.
        let right = sized(right, depth);
        pack_right(right, b, n, at, [n0, columns]);
        let place = Place { n, n0, columns };
        for group in 0..rows.div_ceil(ROWS) {
            let c = &mut c[group * ROWS * n..];
            match a {
                Left::Columns(_) => {
                    let packed = &left[group * depth..][..depth];
                    eight_rows(s, Packed(packed), right, c, place);
                }
                Left::Rows(values) => {
                    // Rows beyond the matrix are never stored: the last one stands in.
                    let row = |r: usize| m0 + (group * ROWS + r).min(rows - 1);
                    let lines = from_fn(|r| &values[row(r) * k + k0..][..depth]);
                    eight_rows(s, InPlace(lines), right, c, place);
                }
            }
        }
    }
}

/// The eight rows of a group times a panel.
#[inline(always)]
fn eight_rows<S: Simd>(
    s: S,
    left: impl Factors,
    right: &[[[f32; LANES]; WIDTH]],
    rows: &mut [f32],
    place: Place,
) {
    let narrow = place.columns <= LANES;
    match narrow {
        true if const { S::ACCUMULATORS >= ROWS } => {
            tile::<S, _, ROWS, 1>(s, left, right, 0, 0, rows, place);
        }
        false if const { S::ACCUMULATORS >= ROWS * WIDTH } => {
            tile::<S, _, ROWS, WIDTH>(s, left, right, 0, 0, rows, place);
        }
        _ => {
            // Half the rows and one vector: what sixteen registers hold.
            for half in 0..2 {
                tile::<S, _, 4, 1>(s, left, right, 4 * half, 0, rows, place);
                if !narrow {
                    tile::<S, _, 4, 1>(s, left, right, 4 * half, 1, rows, place);
                }
            }
        }
    }
}

/// Where a panel's columns lie in `C`.
#[derive(Clone, Copy)]
struct Place {
    n: usize,
    n0: usize,
    columns: usize,
}

fn pack_right(
    to: &mut [[[f32; LANES]; WIDTH]],
    b: &[f32],
    n: usize,
    [k0, depth]: [usize; 2],
    [n0, columns]: [usize; 2],
) {
    for (index, to) in to.iter_mut().enumerate().take(depth) {
        let from = &b[(k0 + index) * n + n0..][..columns];
        let to = to.as_flattened_mut();
        // A length known to the compiler is a few moves, an unknown one a call.
        match (from.first_chunk::<PANEL>(), from.first_chunk::<LANES>()) {
            (Some(from), _) => to.copy_from_slice(from),
            (None, Some(head)) if columns == LANES => to[..LANES].copy_from_slice(head),
            _ => to[..columns].copy_from_slice(from),
        }
    }
}

/// `R` rows by `C` vectors, starting at row `r0` of the group and vector `c0` of the panel.
#[inline(always)]
fn tile<S: Simd, F: Factors, const R: usize, const C: usize>(
    s: S,
    left: F,
    right: &[[[f32; LANES]; WIDTH]],
    r0: usize,
    c0: usize,
    rows: &mut [f32],
    place: Place,
) {
    let mut sums = [[s.splat(0.0); C]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            // A whole vector is one move; anything else is rare, and kept out of the way.
            match part(rows, r0 + r, c0 + c, place).map(|row| row.as_chunks::<LANES>()) {
                Some(([row], _)) => *sum = s.load(row),
                Some((_, row)) => *sum = load_ragged(s, row),
                None => {}
            }
        }
    }
    for (depth, b) in right.iter().enumerate() {
        let mut vectors = [s.splat(0.0); C];
        for c in 0..C {
            vectors[c] = s.load(&b[c0 + c]);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let factor = s.splat(left.at(depth, r0 + r));
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = s.fma(factor, vector, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            match part(rows, r0 + r, c0 + c, place).map(|row| row.as_chunks_mut::<LANES>()) {
                Some(([row], _)) => s.store(row, *sum),
                Some((_, row)) => store_ragged(s, row, *sum),
                None => {}
            }
        }
    }
}

#[cold]
#[inline(never)]
fn load_ragged<S: Simd>(s: S, row: &[f32]) -> S::V {
    load_part(s, row)
}

#[cold]
#[inline(never)]
fn store_ragged<S: Simd>(s: S, row: &mut [f32], sum: S::V) {
    store_part(s, row, sum);
}

/// The part of `C` that one vector of a tile stands for; `None` below or right of the matrix.
#[inline(always)]
fn part(rows: &mut [f32], row: usize, vector: usize, place: Place) -> Option<&mut [f32]> {
    let Place { n, n0, columns } = place;
    let begin = vector * LANES;
    if begin >= columns {
        return None;
    }
    let end = columns.min(begin + LANES);
    rows.get_mut(row * n + n0 + begin..row * n + n0 + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
    }

    /// The definition: one chain per element.
    fn reference(c: &mut [f32], a: Left<'_>, b: &[f32], Sizes { m, k, n }: Sizes) {
        for i in 0..m {
            for j in 0..n {
                let mut sum = c[i * n + j];
                for l in 0..k {
                    let left = match a {
                        Left::Rows(values) => values[i * k + l],
                        Left::Columns(values) => values[l * m + i],
                    };
                    sum = left.mul_add(b[l * n + j], sum);
                }
                c[i * n + j] = sum;
            }
        }
    }

    #[test]
    fn every_shape_and_instruction_set_is_the_definition_to_the_bit() {
        for (m, k, n) in [
            (1, 1, 1),
            (8, 3, 32),
            (9, 300, 33),
            (70, 17, 16),
            (3, 520, 49),
        ] {
            let sizes = Sizes { m, k, n };
            let (values, b) = (wave(m * k, 0.2), wave(k * n, 1.4));
            for a in [Left::Rows(&values), Left::Columns(&values)] {
                let start = wave(m * n, 2.2);
                let mut expected = start.clone();
                reference(&mut expected, a, &b, sizes);
                for isa in Isa::available() {
                    let mut c = start.clone();
                    let packing = &mut Packing::default();
                    matmul(isa, packing, Start::Old, &mut c, a, &b, sizes);
                    assert_eq!(c, expected, "{sizes:?} {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn starting_at_zero_forgets_what_was_there() {
        let sizes = Sizes { m: 5, k: 7, n: 37 };
        let (a, b) = (wave(35, 0.1), wave(7 * 37, 0.5));
        let mut expected = vec![0.0; 5 * 37];
        reference(&mut expected, Left::Rows(&a), &b, sizes);
        let mut c = vec![9.0; 5 * 37];
        let packing = &mut Packing::default();
        matmul(
            Isa::best(),
            packing,
            Start::Zero,
            &mut c,
            Left::Rows(&a),
            &b,
            sizes,
        );
        assert_eq!(c, expected);
    }
}
