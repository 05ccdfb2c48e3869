//! The gradients that a trainer has accumulated.
//!
//! After a step they count as zero without being written: the next micro-batch overwrites them.
//! It writes `0 + g`, which is what adding to a cleared array would give, also where g is -0.

use std::sync::OnceLock;

use super::adamw::{BLOCK, sum_of_squares};
use super::arena::PARALLEL_MIN;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::tiles::for_each_mut;

/// One value per value of the arena.
#[derive(Debug)]
pub(super) struct Gradients {
    values: Vec<f32>,
    state: State,
    /// For those who look while nothing is accumulated: made for the first one.
    zeros: OnceLock<Vec<f32>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Zero, whatever stands in the array.
    Cleared,
    /// What stands in the array, of this norm.
    Sum { norm: f64 },
}

impl Gradients {
    /// Zeros.
    pub(super) fn new(len: usize) -> Self {
        Self {
            values: vec![0.0; len],
            state: State::Cleared,
            zeros: OnceLock::new(),
        }
    }

    /// Makes them zero.
    pub(super) const fn clear(&mut self) {
        self.state = State::Cleared;
    }

    /// Adds the gradients of some micro-batches, in their order. Only after the `last` ones of a
    /// batch the norm is known.
    pub(super) fn add(&mut self, threads: &Threads, parts: &[&[f32]], last: bool) {
        let start = match self.state {
            State::Cleared => Start::Zero,
            State::Sum { .. } => Start::Old,
        };
        let mut blocks: Vec<_> = self
            .values
            .chunks_mut(BLOCK)
            .map(|sum| (sum, 0.0))
            .collect();
        let (isa, parallel) = (threads.isa(), blocks.len() * BLOCK >= PARALLEL_MIN);
        for_each_mut(threads, parallel, &mut blocks, |index, (sum, squares)| {
            for (i, part) in parts.iter().enumerate() {
                let part = &part[index * BLOCK..][..sum.len()];
                let start = if i == 0 { start } else { Start::Old };
                isa.dispatch(AddBlock { sum, part, start });
            }
            if last {
                // The block is still in the cache.
                *squares = sum_of_squares(isa, sum);
            }
        });
        let squares = blocks.iter().map(|(_, squares)| squares);
        let norm = if last {
            squares.sum::<f64>().sqrt()
        } else {
            f64::NAN
        };
        self.state = State::Sum { norm };
    }

    /// Global L2 norm: blocks are summed side by side, then in their order.
    pub(super) const fn norm(&self) -> f64 {
        match self.state {
            State::Cleared => 0.0,
            State::Sum { norm } => norm,
        }
    }

    /// All values, for a step.
    pub(super) fn values(&mut self) -> &[f32] {
        if self.state == State::Cleared {
            self.values.fill(0.0);
        }
        &self.values
    }

    /// Slices of these lengths, which make up the whole.
    pub(super) fn slices(
        &self,
        lengths: impl Iterator<Item = usize>,
    ) -> impl Iterator<Item = &[f32]> {
        let mut rest = match self.state {
            State::Cleared => self.zeros.get_or_init(|| vec![0.0; self.values.len()]),
            State::Sum { .. } => &self.values,
        }
        .as_slice();
        lengths.map(move |length| {
            let (slice, after) = rest.split_at(length);
            rest = after;
            slice
        })
    }
}

#[derive(Clone, Copy)]
enum Start {
    Zero,
    Old,
}

struct AddBlock<'a> {
    sum: &'a mut [f32],
    part: &'a [f32],
    start: Start,
}

impl Kernel for AddBlock<'_> {
    type Output = ();

    /// Plain loops: every addition stands alone, so the compiler may take any width for them.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.sum.iter_mut().zip(self.part);
        match self.start {
            Start::Zero => pairs.for_each(|(sum, g)| *sum = 0.0 + *g),
            Start::Old => pairs.for_each(|(sum, g)| *sum += g),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Isa;

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
    }

    fn bits(gradients: &Gradients) -> Vec<u32> {
        let slices = gradients.slices([gradients.values.len()].into_iter());
        slices.flatten().map(|value| value.to_bits()).collect()
    }

    /// An array that was filled with zeros and added to.
    fn filled(parts: &[&[f32]]) -> Vec<f32> {
        let mut sum = vec![0.0_f32; parts[0].len()];
        for part in parts {
            sum.iter_mut().zip(*part).for_each(|(sum, g)| *sum += g);
        }
        sum
    }

    #[test]
    fn sums_and_norms_are_those_of_cleared_arrays_to_the_bit() {
        for len in [1, BLOCK - 3, 3 * BLOCK + 11] {
            let mut parts = [wave(len, 0.2), wave(len, 1.7), wave(len, 2.9)];
            parts[0][0] = -0.0;
            let parts = [&*parts[0], &*parts[1], &*parts[2]];
            let due = filled(&parts);
            let squares: f64 = (due.chunks(BLOCK))
                .map(|block| sum_of_squares(Isa::best(), block))
                .sum();
            for isa in Isa::available() {
                let threads = Threads::with_isa(2, isa);
                let mut gradients = Gradients::new(len);
                for _ in 0..2 {
                    gradients.add(&threads, &parts[..2], false);
                    gradients.add(&threads, &parts[2..], true);
                    let due: Vec<u32> = due.iter().map(|value| value.to_bits()).collect();
                    assert_eq!(bits(&gradients), due, "{len} {}", isa.name());
                    assert_eq!(gradients.norm().to_bits(), squares.sqrt().to_bits());
                    gradients.clear();
                }
                gradients.add(&threads, &parts[..1], true);
                assert_eq!(bits(&gradients)[0], 0.0_f32.to_bits(), "0 + -0 is 0");
            }
        }
    }

    #[test]
    fn cleared_ones_are_zero_for_everybody() {
        let mut gradients = Gradients::new(5);
        gradients.add(&Threads::new(1), &[&[1.0, -2.0, 3.0, 0.5, 4.0]], true);
        assert!(gradients.norm() > 5.0);
        gradients.clear();
        assert_eq!(gradients.norm(), 0.0);
        assert_eq!(bits(&gradients), [0; 5]);
        assert_eq!(gradients.values(), [0.0; 5]);
    }
}
