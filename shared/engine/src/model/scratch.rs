//! Buffers that one forward pass leaves for the next.

/// Reusable buffers; what they hold between passes has no meaning.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) x: Vec<f32>,
    pub(super) h: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) branch: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) gated: Vec<f32>,
    /// `A x` of up to three targets that share `x`.
    pub(super) low: [Vec<f32>; 3],
    pub(super) positions: Vec<u32>,
}

impl Scratch {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Makes a buffer exactly `len` long without clearing it.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
