//! The end of the forward, from the last layer's result to logits: the code that the sampler and
//! the learner both run.

use super::Model;
use super::layout::AdapterRun;
use super::lora::{Wide, add_wide};
use crate::adapter::Site;
use crate::buffers::sized;
use crate::cpu::bf16::input;
use crate::cpu::gemm::{Store, gemm};
use crate::cpu::ops::rms_norm;
use crate::cpu::threads::Threads;

/// Logits of one chunk of rows: 2^18 of them are 1 MiB, the second-level cache of one core …
const CHUNK_VALUES: usize = 1 << 18;
/// … but never fewer rows than this, or the output matrix would be read too often.
const CHUNK_ROWS_MIN: usize = 64;

/// Rows whose logits are computed at a time by whoever reads them once.
pub(crate) fn logit_rows(vocab_size: usize) -> usize {
    (CHUNK_VALUES / vocab_size).max(CHUNK_ROWS_MIN)
}

/// What the end of the forward leaves behind.
#[derive(Debug, Default)]
pub(crate) struct UnembedBuffers {
    /// The rows after the final norm.
    pub(crate) normed: Vec<f32>,
    /// What the adapters of the output matrix computed.
    pub(crate) wide: Wide,
    /// The rows, rounded.
    pairs: Vec<u32>,
}

impl Model {
    /// Computes the logits `[T, vocab]` of some rows `x[T, hidden]` of the last layer's result:
    /// final norm, output matrix, and what the adapters of `runs` add to it.
    pub(crate) fn unembed(
        &self,
        threads: &Threads,
        x: &[f32],
        runs: &[AdapterRun<'_>],
        buffers: &mut UnembedBuffers,
        logits: &mut [f32],
    ) {
        let UnembedBuffers {
            normed,
            wide,
            pairs,
        } = buffers;
        let (compute, eps) = (self.compute, self.config.rms_norm_eps);
        let normed = sized(normed, x.len());
        rms_norm(threads, x, &self.final_norm, eps, normed);
        let x = input(compute, threads, normed, self.config.hidden_size, pairs);
        gemm(threads, x, &self.output, logits, Store::Set);
        add_wide(threads, compute, runs, Site::LmHead, x, logits, wide);
    }
}
