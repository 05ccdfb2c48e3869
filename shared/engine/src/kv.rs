//! Keys and values of one sequence, in the order in which attention reads them.

use crate::config::ModelConfig;
use crate::cpu::LANES;

/// Keys and values of all layers for the tokens that were computed.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

impl KvCache {
    /// An empty cache for this model. Memory grows with the tokens.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let layer = LayerCache::new(config.num_kv_heads, config.head_dim);
        Self {
            layers: vec![layer; config.num_layers],
            len: 0,
        }
    }

    /// Tokens in the cache.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `n` tokens; nothing happens when there are no more than that.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
    }

    /// A copy that continues on its own: what it computes is, to the bit, what this one would.
    #[must_use]
    pub fn fork(&self) -> Self {
        let layers = self
            .layers
            .iter()
            .map(|layer| layer.prefix(self.len))
            .collect();
        Self {
            layers,
            len: self.len,
        }
    }

    /// Bytes in use.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let vectors = self
            .layers
            .iter()
            .map(|l| l.keys.len() + l.values.len())
            .sum::<usize>();
        vectors * size_of::<[f32; LANES]>()
    }

    /// Whether the cache was made for a model of these sizes.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        let same =
            |l: &LayerCache| l.kv_heads == config.num_kv_heads && l.head_dim == config.head_dim;
        self.layers.len() == config.num_layers && self.layers.iter().all(same)
    }

    /// A layer to write the tokens after the current ones to; they count only after
    /// [`Self::advance`].
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Makes `n` written tokens part of the sequence.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// One layer of a cache.
///
/// Keys: `[block][kv head][d]` vectors of sixteen keys, so that a block of scores is a matrix
/// product whose outputs are keys. Values: `[block][kv head][d / 16][key]` vectors of sixteen
/// elements of the head. Blocks of sixteen tokens are counted from position 0.
#[derive(Debug, Clone)]
pub struct LayerCache {
    kv_heads: usize,
    head_dim: usize,
    keys: Vec<[f32; LANES]>,
    values: Vec<[f32; LANES]>,
}

impl LayerCache {
    /// An empty layer.
    #[must_use]
    pub const fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self {
            kv_heads,
            head_dim,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Writes rows `k[n, kv_heads * head_dim]` and `v` (the same shape) at `position..`.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn write(&mut self, position: usize, k: &[f32], v: &[f32]) {
        let (dim, panels) = (self.head_dim, self.value_panels());
        let width = self.kv_heads * dim;
        assert!(
            k.len() == v.len() && k.len().is_multiple_of(width),
            "rows of {width}"
        );
        self.grow(position + k.len() / width);
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let (block, lane) = ((position + i) / LANES, (position + i) % LANES);
            for head in 0..self.kv_heads {
                let slot = block * self.kv_heads + head;
                let keys = &mut self.keys[slot * dim..][..dim];
                for (to, &value) in keys.iter_mut().zip(&k[head * dim..]) {
                    to[lane] = value;
                }
                let values = &mut self.values[slot * panels * LANES..][..panels * LANES];
                for (panel, part) in v[head * dim..][..dim].chunks(LANES).enumerate() {
                    values[panel * LANES + lane][..part.len()].copy_from_slice(part);
                }
            }
        }
    }

    /// Vectors that hold one value.
    pub(crate) const fn value_panels(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// `head_dim` vectors of the sixteen keys of a block.
    #[inline(always)]
    pub(crate) fn key_panel(&self, block: usize, head: usize) -> &[[f32; LANES]] {
        &self.keys[(block * self.kv_heads + head) * self.head_dim..][..self.head_dim]
    }

    /// For each of the sixteen keys of a block, sixteen elements of its value.
    #[inline(always)]
    pub(crate) fn value_panel(&self, block: usize, head: usize, panel: usize) -> &[[f32; LANES]] {
        let slot = (block * self.kv_heads + head) * self.value_panels() + panel;
        &self.values[slot * LANES..][..LANES]
    }

    fn grow(&mut self, tokens: usize) {
        let slots = tokens.div_ceil(LANES) * self.kv_heads;
        if self.keys.len() < slots * self.head_dim {
            let panels = self.value_panels();
            self.keys.resize(slots * self.head_dim, [0.0; LANES]);
            self.values.resize(slots * panels * LANES, [0.0; LANES]);
        }
    }

    fn prefix(&self, tokens: usize) -> Self {
        let slots = tokens.div_ceil(LANES) * self.kv_heads;
        Self {
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            keys: self.keys[..slots * self.head_dim].to_vec(),
            values: self.values[..slots * self.value_panels() * LANES].to_vec(),
        }
    }
}
