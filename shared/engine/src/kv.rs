//! Keys and values of one sequence, in pages that sequences share.
//!
//! A page holds sixteen tokens of one layer. A fork shares all pages; whoever writes to a page
//! that another sequence holds too copies that one first. So the members of a group, and prompts
//! with a common beginning, keep one copy of it, whatever they go on with.

use std::sync::Arc;

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
        let pages = self.len.div_ceil(LANES);
        (self.layers.iter_mut()).for_each(|layer| layer.pages.truncate(pages));
    }

    /// A copy that continues on its own: what it computes is, to the bit, what this one would.
    /// It costs no memory but for the pages that either of the two writes to later.
    #[must_use]
    pub fn fork(&self) -> Self {
        let pages = self.len.div_ceil(LANES);
        Self {
            layers: self.layers.iter().map(|layer| layer.first(pages)).collect(),
            len: self.len,
        }
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_where(|_| true)
    }

    /// Bytes of the pages that no other cache holds.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        self.bytes_where(|page| Arc::strong_count(page) == 1)
    }

    /// Where its pages lie, and the bytes of each: equal addresses, the same page.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        let pages = self.layers.iter().flat_map(|layer| &layer.pages);
        pages.map(|page| {
            (
                Arc::as_ptr(page).addr(),
                size_of_val::<[[f32; LANES]]>(page),
            )
        })
    }

    fn bytes_where(&self, counts: impl Fn(&Page) -> bool) -> usize {
        let pages = self.layers.iter().flat_map(|layer| &layer.pages);
        let bytes = |page: &Page| size_of_val::<[[f32; LANES]]>(page);
        pages.filter(|page| counts(page)).map(bytes).sum()
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

/// Vectors of one page: for each head its keys, then for each head its values.
///
/// Keys: `head_dim` vectors of the sixteen tokens' keys, so that a page of scores is a matrix
/// product whose outputs are keys. Values: for each sixteen elements of the head, one vector per
/// token.
type Page = Arc<[[f32; LANES]]>;

/// One layer of a cache: pages of sixteen tokens, counted from position 0.
#[derive(Debug, Clone)]
pub struct LayerCache {
    kv_heads: usize,
    head_dim: usize,
    pages: Vec<Page>,
}

impl LayerCache {
    /// An empty layer.
    #[must_use]
    pub const fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self {
            kv_heads,
            head_dim,
            pages: Vec::new(),
        }
    }

    /// A layer with room for this many tokens.
    pub(crate) fn with_room(kv_heads: usize, head_dim: usize, tokens: usize) -> Self {
        let mut layer = Self::new(kv_heads, head_dim);
        layer.grow(tokens);
        layer
    }

    /// Bytes of a layer with room for this many tokens.
    pub(crate) const fn bytes_of(kv_heads: usize, head_dim: usize, tokens: usize) -> u64 {
        let vectors = kv_heads * (head_dim + head_dim.div_ceil(LANES) * LANES);
        // A page's counts and the reference to it, in a list that may double as it grows.
        let page = vectors * size_of::<[f32; LANES]>() + 4 * size_of::<Page>();
        (tokens.div_ceil(LANES) * page) as u64
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
        let (mut k, mut v, mut position) = (k, v, position);
        self.grow(position + k.len() / width);
        while !k.is_empty() {
            let (page, lane) = (position / LANES, position % LANES);
            let rows = (LANES - lane).min(k.len() / width);
            let ((k_page, k_after), (v_page, v_after)) =
                (k.split_at(rows * width), v.split_at(rows * width));
            let page = Arc::make_mut(&mut self.pages[page]);
            let (keys, values) = page.split_at_mut(width);
            for head in 0..self.kv_heads {
                let keys = &mut keys[head * dim..][..dim];
                for (row, k) in k_page.chunks_exact(width).enumerate() {
                    for (to, &value) in keys.iter_mut().zip(&k[head * dim..]) {
                        to[lane + row] = value;
                    }
                }
                let values = &mut values[head * panels * LANES..][..panels * LANES];
                for (row, v) in v_page.chunks_exact(width).enumerate() {
                    for (panel, part) in v[head * dim..][..dim].chunks(LANES).enumerate() {
                        values[panel * LANES + lane + row][..part.len()].copy_from_slice(part);
                    }
                }
            }
            (k, v, position) = (k_after, v_after, position + rows);
        }
    }

    /// Vectors that hold one value.
    pub(crate) const fn value_panels(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// `head_dim` vectors of the sixteen keys of a page.
    #[inline(always)]
    pub(crate) fn key_panel(&self, page: usize, head: usize) -> &[[f32; LANES]] {
        &self.pages[page][head * self.head_dim..][..self.head_dim]
    }

    /// For each of the sixteen keys of a page, sixteen elements of its value.
    #[inline(always)]
    pub(crate) fn value_panel(&self, page: usize, head: usize, panel: usize) -> &[[f32; LANES]] {
        let keys = self.kv_heads * self.head_dim;
        let at = keys + (head * self.value_panels() + panel) * LANES;
        &self.pages[page][at..][..LANES]
    }

    fn grow(&mut self, tokens: usize) {
        let vectors = self.kv_heads * (self.head_dim + self.value_panels() * LANES);
        let empty = || std::iter::repeat_n([0.0; LANES], vectors).collect();
        let pages = tokens.div_ceil(LANES);
        if self.pages.len() < pages {
            self.pages.resize_with(pages, empty);
        }
    }

    /// The same pages, but no more than `pages` of them.
    fn first(&self, pages: usize) -> Self {
        Self {
            pages: self.pages[..pages].to_vec(),
            ..*self
        }
    }
}
