//! Weight matrices in the order in which the matrix product reads them.

use super::LANES;
use super::simd::Simd;

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
    F32(Vec<[f32; LANES]>),
    Bf16(Vec<[u16; LANES]>),
}

impl PackedWeights {
    /// Packs a row-major `w[n, k]`.
    ///
    /// # Panics
    /// When `w` does not have `n * k` elements.
    #[must_use]
    pub fn pack(w: &[f32], n: usize, k: usize) -> Self {
        Self {
            n,
            k,
            panels: Panels::F32(pack_rows(w, n, k)),
        }
    }

    /// Packs row-major bfloat16 bit patterns `w[n, k]`. Products equal those of the same values
    /// in f32 to the bit; the weights take half the memory.
    ///
    /// # Panics
    /// When `w` does not have `n * k` elements.
    #[must_use]
    pub fn pack_bf16(w: &[u16], n: usize, k: usize) -> Self {
        Self {
            n,
            k,
            panels: Panels::Bf16(pack_rows(w, n, k)),
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
            panels: Panels::F32(panels),
        }
    }

    /// These weights with inputs and outputs exchanged.
    #[must_use]
    pub fn transposed(&self) -> Self {
        // pack_transposed(w[a, b]) has outputs b and inputs a; here a = n, b = k.
        Self::pack_transposed(&self.to_row_major(), self.n, self.k)
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
        let range = panel * self.k..(panel + 1) * self.k;
        match &self.panels {
            Panels::F32(all) => {
                to.iter_mut()
                    .zip(&all[range])
                    .for_each(|(to, lanes)| *to = lanes[lane]);
            }
            Panels::Bf16(all) => to
                .iter_mut()
                .zip(&all[range])
                .for_each(|(to, lanes)| *to = f32::from_bits(u32::from(lanes[lane]) << 16)),
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
}

fn pack_rows<T: Copy + Default>(w: &[T], n: usize, k: usize) -> Vec<[T; LANES]> {
    assert_eq!(w.len(), n * k, "w is [{n}, {k}]");
    let mut panels = vec![[T::default(); LANES]; n.div_ceil(LANES) * k];
    for (row, values) in w.chunks_exact(k.max(1)).enumerate() {
        let panel = &mut panels[row / LANES * k..][..k];
        panel
            .iter_mut()
            .zip(values)
            .for_each(|(to, &value)| to[row % LANES] = value);
    }
    panels
}

/// A stored weight that can be read as f32 lanes.
pub(crate) trait Element: Copy + Sync + 'static {
    /// Sixteen of them, widened exactly.
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load(from)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load_bf16(from)
    }
}
