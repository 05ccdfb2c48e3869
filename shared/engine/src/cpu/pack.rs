//! Weight matrices in the order in which the matrix product reads them.

use std::sync::Arc;

use super::LANES;
use super::bf16::{narrow, widen};
use crate::mapped::{Bytes, Elements};

/// A weight matrix `W[n, k]` of `y[m, n] = x[m, k] * W^T`, cut into panels of sixteen outputs:
/// panel p holds, for each k, the weights of outputs `16 p .. 16 p + 16`. The last panel is
/// filled up with zeros.
#[derive(Debug, Clone)]
pub struct PackedWeights {
    n: usize,
    k: usize,
    panels: Panels,
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    /// One row per k.
    F32(Elements<[f32; LANES]>),
    /// One row per two k: the weights of the even one in the low halves, those of the odd one in
    /// the high halves. An odd `k` ends with zeros.
    Bf16(Elements<[u32; LANES]>),
}

/// In which of the two [`Panels`] a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Bf16,
}

impl Format {
    /// Rows of a panel of `k` inputs.
    const fn depth(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            Self::Bf16 => k.div_ceil(2),
        }
    }

    /// Bytes of all panels of `[n, k]`; `None` when they cannot be counted.
    pub(crate) fn bytes(self, n: usize, k: usize) -> Option<usize> {
        let rows = n.div_ceil(LANES).checked_mul(self.depth(k))?;
        rows.checked_mul(LANES * size_of::<u32>())
    }
}

impl PackedWeights {
    /// Packs a row-major `w[n, k]`.
    ///
    /// # Panics
    /// When `w` does not have `n * k` elements.
    #[must_use]
    pub fn pack(w: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(w.len(), n * k, "w is [{n}, {k}]");
        let mut panels = vec![[0.0; LANES]; n.div_ceil(LANES) * k];
        for (row, values) in w.chunks_exact(k.max(1)).enumerate() {
            let panel = &mut panels[row / LANES * k..][..k];
            (panel.iter_mut().zip(values)).for_each(|(to, &value)| to[row % LANES] = value);
        }
        Self {
            n,
            k,
            panels: Panels::F32(panels.into()),
        }
    }

    /// Packs row-major bfloat16 bit patterns `w[n, k]`. Products with f32 inputs equal those of
    /// the same values in f32 to the bit; the weights take half the memory.
    ///
    /// # Panics
    /// When `w` does not have `n * k` elements.
    #[must_use]
    pub fn pack_bf16(w: &[u16], n: usize, k: usize) -> Self {
        assert_eq!(w.len(), n * k, "w is [{n}, {k}]");
        Self::pack_pairs(n, k, |row, column| w[row * k + column])
    }

    /// Rounds a row-major `w[n, k]` to bfloat16 and packs it.
    ///
    /// # Panics
    /// When `w` does not have `n * k` elements.
    #[must_use]
    pub fn pack_rounded(w: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(w.len(), n * k, "w is [{n}, {k}]");
        Self::pack_pairs(n, k, |row, column| narrow(w[row * k + column]))
    }

    /// Packs bfloat16 weights `at(output, input)`.
    fn pack_pairs(n: usize, k: usize, at: impl Fn(usize, usize) -> u16) -> Self {
        let depth = k.div_ceil(2);
        let mut panels = vec![[0u32; LANES]; n.div_ceil(LANES) * depth];
        for row in 0..n {
            let panel = &mut panels[row / LANES * depth..][..depth];
            for (step, to) in panel.iter_mut().enumerate() {
                let low = at(row, 2 * step);
                let high = if 2 * step + 1 < k {
                    at(row, 2 * step + 1)
                } else {
                    0
                };
                to[row % LANES] = u32::from(low) | u32::from(high) << 16;
            }
        }
        Self {
            n,
            k,
            panels: Panels::Bf16(panels.into()),
        }
    }

    /// Packs the transpose of a row-major `w[k, n]`, so that the product is `x[m, k] * w`:
    /// what a gradient needs.
    ///
    /// # Panics
    /// When `w` does not have `k * n` elements.
    #[must_use]
    pub fn pack_transposed(w: &[f32], k: usize, n: usize) -> Self {
        assert_eq!(w.len(), n * k, "w is [{k}, {n}]");
        let mut panels = vec![[0.0; LANES]; n.div_ceil(LANES) * k];
        for (row, values) in w.chunks_exact(n.max(1)).enumerate() {
            for (panel, chunk) in values.chunks(LANES).enumerate() {
                panels[panel * k + row][..chunk.len()].copy_from_slice(chunk);
            }
        }
        Self {
            n,
            k,
            panels: Panels::F32(panels.into()),
        }
    }

    /// These weights with inputs and outputs exchanged, in the same number format.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let sizes = [self.n, self.k];
        let panels = match &self.panels {
            Panels::F32(all) => Panels::F32(turn(all, sizes, Format::F32, turn_f32).into()),
            Panels::Bf16(all) => Panels::Bf16(turn(all, sizes, Format::Bf16, turn_bf16).into()),
        };
        Self {
            n: self.k,
            k: self.n,
            panels,
        }
    }

    /// The matrix `[n, k]` again, row-major.
    #[must_use]
    pub fn to_row_major(&self) -> Vec<f32> {
        let mut w = vec![0.0; self.n * self.k];
        for (row, values) in w.chunks_exact_mut(self.k.max(1)).enumerate() {
            self.copy_row(row, values);
        }
        w
    }

    /// Copies the weights of one output: row `row` of `[n, k]`.
    ///
    /// # Panics
    /// When `row >= n` or `to` does not have `k` elements.
    pub fn copy_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        assert_eq!(to.len(), self.k, "a row has k elements");
        let (panel, lane) = (row / LANES, row % LANES);
        match &self.panels {
            Panels::F32(all) => {
                let panel = &all[panel * self.k..][..self.k];
                (to.iter_mut().zip(panel)).for_each(|(to, lanes)| *to = lanes[lane]);
            }
            Panels::Bf16(all) => {
                let depth = self.k.div_ceil(2);
                let panel = &all[panel * depth..][..depth];
                for (to, lanes) in to.chunks_mut(2).zip(panel) {
                    let pair = [lanes[lane] as u16, (lanes[lane] >> 16) as u16];
                    (to.iter_mut().zip(pair)).for_each(|(to, bits)| *to = widen(bits));
                }
            }
        }
    }

    /// Number of outputs.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Number of inputs, the length of every chain.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    pub(crate) const fn panels(&self) -> &Panels {
        &self.panels
    }

    pub(crate) const fn format(&self) -> Format {
        match self.panels {
            Panels::F32(_) => Format::F32,
            Panels::Bf16(_) => Format::Bf16,
        }
    }

    /// The panels as they lie in memory.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &self.panels {
            Panels::F32(all) => bytemuck::cast_slice(all),
            Panels::Bf16(all) => bytemuck::cast_slice(all),
        }
    }

    /// Weights `[n, k]` whose panels begin at `offset` of `bytes` and stay there; `None` when
    /// they do not lie inside, or not on an element's boundary.
    pub(crate) fn in_place(
        format: Format,
        [n, k]: [usize; 2],
        bytes: &Arc<Bytes>,
        offset: usize,
    ) -> Option<Self> {
        let range = offset..offset.checked_add(format.bytes(n, k)?)?;
        let panels = match format {
            Format::F32 => Panels::F32(Elements::in_place(bytes, range)?),
            Format::Bf16 => Panels::Bf16(Elements::in_place(bytes, range)?),
        };
        Some(Self { n, k, panels })
    }
}

/// Panels of the transpose that are written side by side: a tile of each is read from one page.
const TURNED_TOGETHER: usize = 8;

/// The panels of the transpose of `[n, k]`, tile by tile: sixteen inputs of a panel, `ROWS` rows
/// that follow each other, become as many rows of a panel of the transpose. Element by element,
/// every one would come from another cache line.
fn turn<T: Copy + Default, const ROWS: usize>(
    panels: &[[T; LANES]],
    [n, k]: [usize; 2],
    format: Format,
    turn_tile: impl Fn(&[[T; LANES]; ROWS]) -> [[T; LANES]; ROWS],
) -> Vec<[T; LANES]> {
    let (depth, turned_depth) = (format.depth(k), format.depth(n));
    let mut turned = vec![[T::default(); LANES]; k.div_ceil(LANES) * turned_depth];
    let together = (TURNED_TOGETHER * turned_depth).max(1);
    for (group, to) in turned.chunks_mut(together).enumerate() {
        for panel in 0..n.div_ceil(LANES) {
            let from = &panels[panel * depth..][..depth];
            let from = from.chunks(ROWS).skip(group * TURNED_TOGETHER);
            for (from, to) in from.zip(to.chunks_exact_mut(turned_depth)) {
                let to = &mut to[panel * ROWS..];
                let rows = to.len().min(ROWS);
                // Inputs that do not exist are outputs of zeros.
                let mut tile = [[T::default(); LANES]; ROWS];
                tile[..from.len()].copy_from_slice(from);
                to[..rows].copy_from_slice(&turn_tile(&tile)[..rows]);
            }
        }
    }
    turned
}

fn turn_f32(tile: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
    std::array::from_fn(|row| std::array::from_fn(|lane| tile[lane][row]))
}

/// The same of pairs: two by two, the high half of one and the low half of the next change places.
fn turn_bf16(tile: &[[u32; LANES]; LANES / 2]) -> [[u32; LANES]; LANES / 2] {
    let mut turned = [[0; LANES]; LANES / 2];
    for (step, from) in tile.iter().enumerate() {
        for (to, &[even, odd]) in turned.iter_mut().zip(from.as_chunks::<2>().0) {
            to[2 * step] = even & 0xffff | odd << 16;
            to[2 * step + 1] = even >> 16 | odd & 0xffff_0000;
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_panels_are_those_of_the_transposed_matrix() {
        let sizes = [0, 1, 2, 7, 15, 16, 17, 18, 31, 33, 64, 101];
        for (n, k) in sizes.iter().flat_map(|n| sizes.map(|k| (*n, k))) {
            // Different everywhere, and nothing that rounding changes.
            let bits: Vec<u16> = (0..n * k).map(|i| 0x3f80 + i as u16).collect();
            let turned = (0..n * k)
                .map(|i| bits[i % n * k + i / n])
                .collect::<Vec<_>>();
            let packed = PackedWeights::pack_bf16(&bits, n, k).transposed();
            let expected = PackedWeights::pack_bf16(&turned, k, n);
            assert_eq!(packed.as_bytes(), expected.as_bytes(), "bf16 [{n}, {k}]");
            assert_eq!((packed.n(), packed.k()), (k, n));
            let [w, turned] = [bits, turned].map(|bits| bits.into_iter().map(widen).collect());
            let (w, turned): (Vec<f32>, Vec<f32>) = (w, turned);
            let packed = PackedWeights::pack(&w, n, k).transposed();
            let expected = PackedWeights::pack(&turned, k, n);
            assert_eq!(packed.as_bytes(), expected.as_bytes(), "f32 [{n}, {k}]");
        }
    }
}
