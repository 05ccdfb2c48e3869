//! Where each adapter tensor lies in the optimiser's flat arrays.

use std::ops::Range;

use super::adamw::{AdamParams, BLOCK, Block, StepScalars};
use crate::adapter::{Adapter, PerSite, Site};
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;

/// Values per thread below which the pass stays on one thread, about 20 µs of work.
pub(super) const PARALLEL_MIN: usize = 32 * 1024;

/// The two factors of one adapted site in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `[rank, in]`
    pub(super) a: Range<usize>,
    /// `[out, rank]`
    pub(super) b: Range<usize>,
}

/// The layout: tensors one after the other in the adapter's order.
#[derive(Debug)]
pub(super) struct Arena {
    places: PerSite<Option<Place>>,
    len: usize,
}

impl Arena {
    pub(super) fn of(adapter: &Adapter) -> Self {
        let mut len = 0;
        let mut next = |count: usize| {
            len += count;
            len - count..len
        };
        let places = PerSite::from_fn(adapter.num_layers(), |site| {
            adapter.pair(site).map(|pair| Place {
                a: next(pair.a.len()),
                b: next(pair.b.len()),
            })
        });
        debug_assert_eq!(len, adapter.num_values(), "every tensor has its place");
        Self { places, len }
    }

    /// Number of values.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The place of a site's pair, if it is adapted.
    pub(super) fn place(&self, site: Site) -> Option<&Place> {
        self.places[site].as_ref()
    }
}

/// All values of an adapter in the arena's order.
pub(super) fn flatten(adapter: &Adapter) -> Vec<f32> {
    let tensors = adapter.tensors().map(|tensor| tensor.values);
    tensors.collect::<Vec<_>>().concat()
}

/// The optimiser's arrays.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments {
    pub(super) master: Vec<f32>,
    pub(super) exp_avg: Vec<f32>,
    pub(super) exp_avg_sq: Vec<f32>,
    /// Steps taken.
    pub(super) step: u64,
}

impl Moments {
    pub(super) fn new(master: Vec<f32>) -> Self {
        let zeros = vec![0.0; master.len()];
        Self {
            master,
            exp_avg: zeros.clone(),
            exp_avg_sq: zeros,
            step: 0,
        }
    }

    /// One step with a gradient that is scaled by `clip_coef`, written to `published` as well.
    pub(super) fn apply(
        &mut self,
        threads: &Threads,
        params: &AdamParams,
        clip_coef: f64,
        grads: &[f32],
        published: &mut Adapter,
    ) {
        debug_assert_eq!(grads.len(), self.master.len(), "one gradient per value");
        self.step += 1;
        let scalars = StepScalars::new(params, clip_coef, self.step);
        let parallel = grads.len() >= PARALLEL_MIN;
        let mut rest = (
            self.master.as_mut_slice(),
            self.exp_avg.as_mut_slice(),
            self.exp_avg_sq.as_mut_slice(),
            grads,
        );
        let mut blocks = Vec::new();
        for tensor in published.values_mut() {
            for copy in tensor.chunks_mut(BLOCK) {
                let (master, master_rest) = rest.0.split_at_mut(copy.len());
                let (exp_avg, exp_avg_rest) = rest.1.split_at_mut(copy.len());
                let (exp_avg_sq, exp_avg_sq_rest) = rest.2.split_at_mut(copy.len());
                let (grad, grad_rest) = rest.3.split_at(copy.len());
                rest = (master_rest, exp_avg_rest, exp_avg_sq_rest, grad_rest);
                blocks.push(Block {
                    master,
                    exp_avg,
                    exp_avg_sq,
                    grad,
                    published: copy,
                });
            }
        }
        let isa = threads.isa();
        for_each_mut(threads, parallel, &mut blocks, |_, block| {
            block.update(isa, &scalars);
        });
    }
}
