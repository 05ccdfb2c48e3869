//! A batch, cut into micro-batches.

use std::ops::Range;

use super::batch::Datum;
use super::memory::{Demand, Wave};
use super::packing::{Bundle, bundles, micro_batches};
use crate::config::ModelConfig;

/// What is computed together.
#[derive(Debug)]
pub(super) struct Cut {
    bundles: Vec<Bundle>,
    /// First datum of each bundle, and the end.
    firsts: Vec<usize>,
    /// The bundles of each micro-batch.
    runs: Vec<Range<usize>>,
    /// What each micro-batch needs.
    pub(super) demands: Vec<Demand>,
    /// Micro-batches that are computed side by side; none before there is a plan.
    pub(super) waves: Vec<Wave>,
}

impl Cut {
    /// Micro-batches of at most `rows_max` rows, unless a single datum has more. Nothing else
    /// decides about them, so sums over them depend neither on threads nor on memory.
    pub(super) fn of(model: &ModelConfig, data: &[Datum], rows_max: usize) -> Self {
        let bundles = bundles(data.iter().map(Datum::inputs), rows_max);
        let mut firsts = vec![0];
        firsts.extend(bundles.iter().scan(0, |sum, bundle| {
            *sum += bundle.members;
            Some(*sum)
        }));
        let mut cut = Self {
            runs: micro_batches(&bundles, rows_max),
            bundles,
            firsts,
            demands: Vec::new(),
            waves: Vec::new(),
        };
        let demand = |index| {
            let (bundles, data) = cut.micro_batch(index, data);
            Demand::of(model, bundles, data)
        };
        cut.demands = (0..cut.runs.len()).map(demand).collect();
        cut
    }

    /// A micro-batch: its bundles and their data.
    pub(super) fn micro_batch<'a>(
        &'a self,
        index: usize,
        data: &'a [Datum],
    ) -> (&'a [Bundle], &'a [Datum]) {
        let run = self.runs[index].clone();
        let data = &data[self.firsts[run.start]..self.firsts[run.end]];
        (&self.bundles[run], data)
    }
}
