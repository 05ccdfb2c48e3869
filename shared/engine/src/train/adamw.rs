//! AdamW over one arena: every adapter value is a slot in flat arrays of masters and moments.
//!
//! With gradient `g`, norm limit `c` and step `t` (Loshchilov & Hutter 2019, arXiv 1711.05101,
//! algorithm 2, with the constant schedule and the decay scaled by the learning rate, as torch
//! does it):
//!
//! ```text
//! g  <- g * min(1, c / (|g| + 1e-6))          |g| over all tensors; c = 0 switches it off
//! p  <- p * (1 - lr * decay)
//! m  <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
//! p  <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//! ```
//!
//! One pass does all of it and writes the published copy: per value 16 bytes are read and 16
//! written. The norm is known from the last addition to the gradient; it is a sum of fixed blocks
//! in their order, so neither threads nor micro-batches change a bit of it.

use crate::cpu::simd::{Isa, Kernel, Simd};
use crate::error::EngineError;

/// Values summed into one partial of the norm, and the grain of work of one pass. A block of five
/// arrays is 320 KiB: it stays in a core's second-level cache.
pub(super) const BLOCK: usize = 16 * 1024;

/// Settings of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamParams {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, outside the root.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Limit of the gradient's global L2 norm; 0 switches it off.
    pub grad_clip_norm: f64,
}

impl Default for AdamParams {
    /// Betas 0.9 and 0.95, eps 1e-8, no decay, no limit, learning rate 1e-4.
    fn default() -> Self {
        Self {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_clip_norm: 0.0,
        }
    }
}

impl AdamParams {
    /// Refuses settings with which a step would not be finite.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let Self {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            grad_clip_norm,
        } = *self;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        for (name, good, value) in [
            ("lr", not_negative(lr), lr),
            ("beta1", fraction(beta1), beta1),
            ("beta2", fraction(beta2), beta2),
            // Below f32's smallest normal number, eps is 0 where it is needed.
            ("eps", eps.is_finite() && eps >= 1e-37, eps),
            ("weight_decay", not_negative(weight_decay), weight_decay),
            (
                "grad_clip_norm",
                not_negative(grad_clip_norm),
                grad_clip_norm,
            ),
        ] {
            if !good {
                let what = format!("{name} is {value}");
                return Err(EngineError::InvalidArgument { what });
            }
        }
        Ok(())
    }

    /// `min(1, c / (norm + 1e-6))`.
    pub(super) fn clip_coef(&self, norm: f64) -> f64 {
        if self.grad_clip_norm == 0.0 {
            1.0
        } else {
            (self.grad_clip_norm / (norm + 1e-6)).min(1.0)
        }
    }
}

/// The numbers of one step, as the pass over the values needs them.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepScalars {
    clip: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    lr_hat: f32,
    root_scale: f32,
    eps: f32,
}

impl StepScalars {
    /// `step` counts from 1.
    pub(super) fn new(params: &AdamParams, clip_coef: f64, step: u64) -> Self {
        debug_assert!(step >= 1, "the first step is 1");
        // Beyond 2^31 steps both corrections have long been 1.
        let t = i32::try_from(step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - params.beta1.powi(t);
        let correction2 = 1.0 - params.beta2.powi(t);
        Self {
            clip: clip_coef as f32,
            keep: (1.0 - params.lr * params.weight_decay) as f32,
            beta1: params.beta1 as f32,
            beta2: params.beta2 as f32,
            rest1: (1.0 - params.beta1) as f32,
            rest2: (1.0 - params.beta2) as f32,
            lr_hat: (params.lr / correction1) as f32,
            root_scale: (1.0 / correction2.sqrt()) as f32,
            eps: params.eps as f32,
        }
    }
}

/// A run of values with everything that belongs to them; all slices have one length.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) master: &'a mut [f32],
    pub(super) exp_avg: &'a mut [f32],
    pub(super) exp_avg_sq: &'a mut [f32],
    pub(super) grad: &'a [f32],
    pub(super) published: &'a mut [f32],
}

impl Block<'_> {
    /// The fused pass over this run.
    pub(super) fn update(&mut self, isa: Isa, scalars: &StepScalars) {
        isa.dispatch(Update {
            block: self,
            scalars: *scalars,
        });
    }
}

struct Update<'a, 'b> {
    block: &'a mut Block<'b>,
    scalars: StepScalars,
}

impl Kernel for Update<'_, '_> {
    type Output = ();

    /// Plain loops: every operation stands alone and is exact by IEEE, so the compiler may take
    /// any width for them.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Block {
            master,
            exp_avg,
            exp_avg_sq,
            grad,
            published,
        } = self.block;
        let s = self.scalars;
        let moments = exp_avg.iter_mut().zip(exp_avg_sq.iter_mut());
        let values = master.iter_mut().zip(published.iter_mut());
        let values = values.zip(grad.iter());
        for (((p, copy), grad), (m, v)) in values.zip(moments) {
            let g = *grad * s.clip;
            *m = s.beta1 * *m + s.rest1 * g;
            *v = s.beta2 * *v + s.rest2 * (g * g);
            let step = s.lr_hat * *m / (v.sqrt() * s.root_scale + s.eps);
            *p = *p * s.keep - step;
            *copy = *p;
        }
    }
}

/// Sum of squares of one block, in f64: eight interleaved chains, joined in a fixed order.
pub(super) fn sum_of_squares(isa: Isa, block: &[f32]) -> f64 {
    isa.dispatch(SumOfSquares(block))
}

struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let (chunks, rest) = self.0.as_chunks::<8>();
        let mut lanes = [0.0_f64; 8];
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                let value = f64::from(*value);
                *lane += value * value;
            }
        }
        let mut sum = lanes.iter().sum::<f64>();
        for value in rest {
            sum += f64::from(*value) * f64::from(*value);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formulas of the module's head in f64, one value.
    fn reference(params: &AdamParams, grads: &[f64], start: f64) -> f64 {
        let (mut p, mut m, mut v) = (start, 0.0, 0.0);
        for (index, gradient) in grads.iter().enumerate() {
            let t = index as i32 + 1;
            let g = gradient * params.clip_coef(gradient.abs());
            p *= 1.0 - params.lr * params.weight_decay;
            m = params.beta1 * m + (1.0 - params.beta1) * g;
            v = params.beta2 * v + (1.0 - params.beta2) * g * g;
            let root = (v / (1.0 - params.beta2.powi(t))).sqrt() + params.eps;
            p -= params.lr * (m / (1.0 - params.beta1.powi(t))) / root;
        }
        p
    }

    #[test]
    fn the_pass_is_the_formula() {
        let params = AdamParams {
            lr: 1e-2,
            weight_decay: 0.1,
            grad_clip_norm: 0.5,
            ..AdamParams::default()
        };
        let gradients = [0.3_f32, -2.0, 0.7];
        let (mut p, mut m, mut v, mut copy) = ([0.25_f32], [0.0], [0.0], [0.0]);
        for (index, gradient) in gradients.into_iter().enumerate() {
            let grad = [gradient];
            let norm = sum_of_squares(Isa::best(), &grad).sqrt();
            let scalars = StepScalars::new(&params, params.clip_coef(norm), index as u64 + 1);
            let mut block = Block {
                master: &mut p,
                exp_avg: &mut m,
                exp_avg_sq: &mut v,
                grad: &grad,
                published: &mut copy,
            };
            block.update(Isa::best(), &scalars);
            assert_eq!(copy, p);
        }
        let expected = reference(&params, &gradients.map(f64::from), 0.25);
        assert!(
            (f64::from(p[0]) - expected).abs() < 1e-7,
            "{} {expected}",
            p[0]
        );
    }

    #[test]
    fn the_clip_only_shrinks() {
        let params = AdamParams {
            grad_clip_norm: 1.0,
            ..AdamParams::default()
        };
        assert_eq!(params.clip_coef(0.5), 1.0);
        assert!((params.clip_coef(4.0) - 0.25).abs() < 1e-6);
        assert_eq!(AdamParams::default().clip_coef(1e30), 1.0);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = AdamParams::default();
        assert!(good.check().is_ok());
        for bad in [
            AdamParams { lr: -1.0, ..good },
            AdamParams {
                lr: f64::NAN,
                ..good
            },
            AdamParams { beta1: 1.0, ..good },
            AdamParams {
                beta2: -0.1,
                ..good
            },
            AdamParams { eps: 0.0, ..good },
            AdamParams {
                weight_decay: f64::INFINITY,
                ..good
            },
            AdamParams {
                grad_clip_norm: -1.0,
                ..good
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn squares_of_ragged_blocks_are_summed() {
        let values: Vec<f32> = (0..19).map(|v| v as f32).collect();
        let expected: f64 = (0..19).map(|v| f64::from(v * v)).sum();
        assert_eq!(sum_of_squares(Isa::best(), &values), expected);
    }
}
