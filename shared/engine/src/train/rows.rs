//! The positions of a micro-batch: whole sequences, one after the other.

use std::ops::Range;

use crate::cpu::attention::RowPlace;

/// Which rows belong to which sequence, and where in it they are.
#[derive(Debug, Default)]
pub(super) struct Rows {
    positions: Vec<u32>,
    places: Vec<RowPlace>,
    sequences: Vec<Range<usize>>,
}

impl Rows {
    /// Sequences of these lengths.
    pub(super) fn of(lengths: impl Iterator<Item = usize>) -> Self {
        let mut rows = Self::default();
        for (sequence, length) in (0_u32..).zip(lengths) {
            let first = rows.positions.len();
            rows.positions.extend((0_u32..).take(length));
            let places = rows.positions[first..].iter();
            rows.places
                .extend(places.map(|&position| RowPlace { sequence, position }));
            rows.sequences.push(first..rows.positions.len());
        }
        rows
    }

    /// Number of rows.
    pub(super) const fn len(&self) -> usize {
        self.positions.len()
    }

    /// The position of each row in its sequence.
    pub(super) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Sequence and position of each row.
    pub(super) fn places(&self) -> &[RowPlace] {
        &self.places
    }

    /// The rows of each sequence.
    pub(super) fn sequences(&self) -> &[Range<usize>] {
        &self.sequences
    }
}
