//! The rows of a micro-batch: whole sequences, what they have in common computed once.

use super::packing::Bundle;
use crate::cpu::attention::RowPlace;
use crate::model::SequenceRows;

/// Which rows belong to which sequence, and where in it they are.
#[derive(Debug, Default)]
pub(super) struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    places: Vec<RowPlace>,
    sequences: Vec<SequenceRows>,
    /// For each datum, its sequence.
    of_datum: Vec<usize>,
}

impl Rows {
    /// The rows of these bundles; `inputs` are the input tokens of the data in them.
    pub(super) fn of<'a>(bundles: &[Bundle], mut inputs: impl Iterator<Item = &'a [u32]>) -> Self {
        let mut rows = Self::default();
        for bundle in bundles {
            let mut prefix = 0..0;
            for (member, tokens) in inputs.by_ref().take(bundle.members).enumerate() {
                let (common, own) = tokens.split_at(bundle.prefix);
                if member == 0 && !common.is_empty() {
                    prefix = rows.push(0..0, common).own;
                }
                rows.of_datum.push(rows.sequences.len());
                rows.push(prefix.clone(), own);
            }
        }
        rows
    }

    /// Adds a sequence.
    fn push(&mut self, prefix: std::ops::Range<usize>, tokens: &[u32]) -> SequenceRows {
        let (sequence, first) = (self.sequences.len() as u32, self.tokens.len());
        for (position, token) in (prefix.len() as u32..).zip(tokens) {
            self.tokens.push(*token);
            self.positions.push(position);
            self.places.push(RowPlace { sequence, position });
        }
        let own = first..self.tokens.len();
        let rows = SequenceRows { prefix, own };
        self.sequences.push(rows.clone());
        rows
    }

    /// Number of rows.
    pub(super) const fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The input token of each row.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
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
    pub(super) fn sequences(&self) -> &[SequenceRows] {
        &self.sequences
    }

    /// The row of a datum's position.
    pub(super) fn row_of(&self, datum: usize, position: usize) -> usize {
        self.sequences[self.of_datum[datum]].row_of(position)
    }
}
