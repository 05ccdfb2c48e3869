//! Which row of a batch belongs to which sequence, position and adapter.

use std::ops::Range;

use super::forward::{LogitsWanted, SequenceStep};
use super::layer::SequenceRows;
use super::lora::PackedAdapter;
use crate::config::{Compute, ModelConfig};
use crate::cpu::attention::RowPlace;
use crate::error::EngineError;

/// Consecutive rows with the same adapter.
pub(crate) struct AdapterRun<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) adapter: &'a PackedAdapter,
}

/// The rows of a batch.
pub(super) struct Layout<'a> {
    /// One per row.
    pub(super) places: Vec<RowPlace>,
    /// Rows of each sequence.
    pub(super) sequences: Vec<SequenceRows>,
    pub(super) runs: Vec<AdapterRun<'a>>,
    /// Rows whose logits are wanted, ascending.
    pub(super) wanted: Vec<usize>,
    /// How many of `wanted` belong to each sequence.
    pub(super) wanted_rows: Vec<usize>,
}

impl<'a> Layout<'a> {
    /// Checks a batch and lays its rows out.
    pub(super) fn new(
        batch: &[SequenceStep<'a>],
        config: &ModelConfig,
        compute: Compute,
    ) -> Result<Self, EngineError> {
        let mut layout = Self {
            places: Vec::new(),
            sequences: Vec::with_capacity(batch.len()),
            runs: Vec::new(),
            wanted: Vec::new(),
            wanted_rows: Vec::with_capacity(batch.len()),
        };
        for (sequence, step) in batch.iter().enumerate() {
            let checked = sequence > 0 && same_adapter(&batch[sequence - 1], step);
            check(step, config, checked)?;
            let (begin, past) = (layout.places.len(), step.cache.len());
            let place = |position: usize| RowPlace {
                sequence: sequence as u32,
                position: position as u32,
            };
            layout
                .places
                .extend((past..past + step.tokens.len()).map(place));
            let rows = begin..layout.places.len();
            let first_wanted = match step.logits {
                LogitsWanted::None => rows.end,
                LogitsWanted::Last => rows.end.saturating_sub(1).max(rows.start),
                LogitsWanted::All => rows.start,
            };
            layout.wanted.extend(first_wanted..rows.end);
            layout.wanted_rows.push(rows.end - first_wanted);
            layout.add_adapter(step, compute, rows.clone());
            layout.sequences.push(SequenceRows {
                prefix: 0..0,
                own: rows,
            });
        }
        Ok(layout)
    }

    fn add_adapter(&mut self, step: &SequenceStep<'a>, compute: Compute, rows: Range<usize>) {
        let Some(adapter) = step.adapter.filter(|_| !rows.is_empty()) else {
            return;
        };
        let adapter = adapter.packed(compute);
        match self.runs.last_mut() {
            Some(run) if run.rows.end == rows.start && std::ptr::eq(run.adapter, adapter) => {
                run.rows.end = rows.end;
            }
            _ => self.runs.push(AdapterRun { rows, adapter }),
        }
    }
}

/// The runs of some rows of a batch, given ascending, counted by their place among them.
pub(super) fn runs_among<'a>(runs: &[AdapterRun<'a>], rows: &[usize]) -> Vec<AdapterRun<'a>> {
    let among = runs.iter().map(|run| AdapterRun {
        rows: rows.partition_point(|row| *row < run.rows.start)
            ..rows.partition_point(|row| *row < run.rows.end),
        adapter: run.adapter,
    });
    among.filter(|run| !run.rows.is_empty()).collect()
}

fn same_adapter(a: &SequenceStep<'_>, b: &SequenceStep<'_>) -> bool {
    matches!((a.adapter, b.adapter), (Some(a), Some(b)) if std::ptr::eq(a, b))
}

fn check(
    step: &SequenceStep<'_>,
    config: &ModelConfig,
    adapter_checked: bool,
) -> Result<(), EngineError> {
    if !step.cache.fits(config) {
        let what = "the cache was made for a model of other sizes".to_owned();
        return Err(EngineError::InvalidArgument { what });
    }
    let needed = step.cache.len() + step.tokens.len();
    if needed > config.max_position_embeddings {
        return Err(EngineError::ContextExceeded {
            needed,
            max: config.max_position_embeddings,
        });
    }
    let vocab_size = config.vocab_size;
    if let Some(&token) = step
        .tokens
        .iter()
        .find(|&&token| token as usize >= vocab_size)
    {
        return Err(EngineError::TokenOutOfRange { token, vocab_size });
    }
    match step.adapter {
        Some(adapter) if !adapter_checked => adapter.check_fits(config),
        _ => Ok(()),
    }
}
