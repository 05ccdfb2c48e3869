//! Buffers that one forward pass leaves for the next.

use super::layer::{LayerBuffers, Work};
use super::unembed::UnembedBuffers;

/// Reusable buffers; what they hold between passes has no meaning.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The residual stream.
    pub(super) x: Vec<f32>,
    /// Rows whose logits are wanted.
    pub(super) picked: Vec<f32>,
    pub(super) unembed: UnembedBuffers,
    pub(super) positions: Vec<u32>,
    pub(super) layer: LayerBuffers,
    pub(super) work: Work,
}

impl Scratch {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}
