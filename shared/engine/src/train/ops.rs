//! Derivatives of the row-wise parts: norms, rotation, gated feed-forward, log-softmax.
//!
//! `dy` is the derivative of the loss by an operator's result, `dx` by its argument.

use crate::config::Activation;
use crate::cpu::gemm::{load_part, store_part};
use crate::cpu::math::{GELU_CUBIC, GELU_LINEAR, exp, gelu_sigmoid, sigmoid};
use crate::cpu::simd::{Isa, Kernel, LANES, Simd, sum_lanes};

/// Backward of the RMS norm `y = x * inv * w`, `inv = 1 / sqrt(mean(x^2) + eps)` (Zhang &
/// Sennrich 2019, arXiv 1910.07467, eq. 4), for frozen `w`, row by row:
///
/// ```text
/// dx = inv * (dy * w) - x * inv^3 / n * sum(dy * w * x)
/// ```
///
/// All rows have the weight's length; `dx` is added to.
pub(super) fn rms_norm_add(
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
) {
    let width = weight.len();
    let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width));
    for ((dx, dy), x) in rows.zip(x.chunks_exact(width)) {
        isa.dispatch(NormRow {
            dx: Target::Add(dx),
            dy,
            x,
            weight,
            eps,
        });
    }
}

/// The same for heads, in place: `dy` becomes `dx`.
pub(super) fn rms_norm_in_place(isa: Isa, dy: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    for (dy, x) in dy.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        isa.dispatch(NormRow {
            dx: Target::InPlace(dy),
            dy: &[],
            x,
            weight,
            eps,
        });
    }
}

enum Target<'a> {
    Add(&'a mut [f32]),
    InPlace(&'a mut [f32]),
}

struct NormRow<'a> {
    dx: Target<'a>,
    dy: &'a [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            dx,
            dy,
            x,
            weight,
            eps,
        } = self;
        let (mut square, mut along) = (s.splat(0.0), s.splat(0.0));
        {
            let dy = match &dx {
                Target::Add(_) => dy,
                Target::InPlace(dy) => dy,
            };
            let rows = dy.chunks(LANES).zip(x.chunks(LANES));
            for ((dy, x), w) in rows.zip(weight.chunks(LANES)) {
                let (dy, x, w) = (load_part(s, dy), load_part(s, x), load_part(s, w));
                square = s.fma(x, x, square);
                along = s.fma(s.mul(dy, w), x, along);
            }
        }
        let n = x.len() as f32;
        let inv = 1.0 / (sum_lanes(s, square) / n + eps).sqrt();
        let pull = s.splat(-(inv * inv * inv / n * sum_lanes(s, along)));
        let inv = s.splat(inv);
        let inputs = x.chunks(LANES).zip(weight.chunks(LANES));
        match dx {
            Target::Add(dx) => {
                let rows = dx.chunks_mut(LANES).zip(dy.chunks(LANES));
                for ((dx, dy), (x, w)) in rows.zip(inputs) {
                    let scaled = s.mul(inv, s.mul(load_part(s, dy), load_part(s, w)));
                    let v = s.fma(pull, load_part(s, x), scaled);
                    store_part(s, dx, s.add(load_part(s, dx), v));
                }
            }
            Target::InPlace(dy) => {
                for (dy, (x, w)) in dy.chunks_mut(LANES).zip(inputs) {
                    let scaled = s.mul(inv, s.mul(load_part(s, dy), load_part(s, w)));
                    store_part(s, dy, s.fma(pull, load_part(s, x), scaled));
                }
            }
        }
    }
}

/// Backward of the rotation of one head (Su et al. 2021, arXiv 2104.09864, eq. 34, in the layout
/// where element `i` pairs with `i + dim/2`): the rotation by the opposite angle, in place.
pub(super) fn unrotate(isa: Isa, dy: &mut [f32], cos: &[f32], sin: &[f32]) {
    isa.dispatch(Unrotate { dy, cos, sin });
}

struct Unrotate<'a> {
    dy: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Unrotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = self.dy.split_at_mut(self.cos.len());
        let table = self.cos.chunks(LANES).zip(self.sin.chunks(LANES));
        let halves = low.chunks_mut(LANES).zip(high.chunks_mut(LANES));
        for ((a, b), (cos, sin)) in halves.zip(table) {
            let (va, vb) = (load_part(s, a), load_part(s, b));
            let (cos, sin) = (load_part(s, cos), load_part(s, sin));
            let minus = s.sub(s.splat(0.0), s.mul(va, sin));
            store_part(s, a, s.fma(va, cos, s.mul(vb, sin)));
            store_part(s, b, s.fma(vb, cos, minus));
        }
    }
}

/// Backward of `y = act(gate) * up` (Shazeer 2020, arXiv 2002.05202, eq. 6), both activations
/// being `act(g) = g f` with a sigmoid `f = sigmoid(u(g))`:
///
/// ```text
/// dup = dy * gate * f      dgate = dy * up * f * (1 + gate * u'(gate) * (1 - f))
/// silu: u' = 1             gelu (tanh): u = a g + b g^3, u' = a + 3 b g^2
/// ```
///
/// In place: `gate` becomes `dgate`, `up` becomes `dup`.
pub(super) fn gate_mul(
    isa: Isa,
    activation: Activation,
    gate: &mut [f32],
    up: &mut [f32],
    dy: &[f32],
) {
    isa.dispatch(GateMul {
        activation,
        gate,
        up,
        dy,
    });
}

struct GateMul<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a mut [f32],
    dy: &'a [f32],
}

impl Kernel for GateMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        let pairs = self.gate.chunks_mut(LANES).zip(self.up.chunks_mut(LANES));
        for ((gate, up), dy) in pairs.zip(self.dy.chunks(LANES)) {
            let (g, u, dy) = (load_part(s, gate), load_part(s, up), load_part(s, dy));
            let (f, inner) = match self.activation {
                Activation::Silu => (sigmoid(s, g), g),
                Activation::GeluTanh => {
                    let cubic = s.splat(3.0 * GELU_CUBIC);
                    let slope = s.fma(s.mul(g, g), cubic, s.splat(GELU_LINEAR));
                    (gelu_sigmoid(s, g), s.mul(g, slope))
                }
            };
            let slope = s.mul(f, s.fma(inner, s.sub(one, f), one));
            store_part(s, up, s.mul(dy, s.mul(g, f)));
            store_part(s, gate, s.mul(s.mul(dy, u), slope));
        }
    }
}

/// Backward of `lp = logits[token] - max - ln_sum` times `dlogprob`, in place: the logits become
/// `dlogprob * (onehot(token) - softmax(logits))`.
pub(super) fn log_softmax(
    isa: Isa,
    logits: &mut [f32],
    (max, ln_sum): (f32, f32),
    token: usize,
    dlogprob: f32,
) {
    isa.dispatch(MinusSoftmax {
        logits,
        shift: max + ln_sum,
        dlogprob,
    });
    logits[token] += dlogprob;
}

struct MinusSoftmax<'a> {
    logits: &'a mut [f32],
    shift: f32,
    dlogprob: f32,
}

impl Kernel for MinusSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shift, factor) = (s.splat(self.shift), s.splat(-self.dlogprob));
        for logits in self.logits.chunks_mut(LANES) {
            let p = exp(s, s.sub(load_part(s, logits), shift));
            store_part(s, logits, s.mul(factor, p));
        }
    }
}

/// `x = factor * x`.
pub(super) fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    isa.dispatch(Scale { x, factor });
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.splat(self.factor);
        for x in self.x.chunks_mut(LANES) {
            store_part(s, x, s.mul(factor, load_part(s, x)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect()
    }

    /// Compares a derivative with central differences of `loss`.
    fn check(got: &[f32], at: &[f32], loss: impl Fn(&[f64]) -> f64) {
        let mut moved: Vec<f64> = at.iter().copied().map(f64::from).collect();
        for (i, value) in got.iter().enumerate() {
            let middle = moved[i];
            moved[i] = middle + 1e-5;
            let up = loss(&moved);
            moved[i] = middle - 1e-5;
            let expected = (up - loss(&moved)) / 2e-5;
            moved[i] = middle;
            assert!(
                (f64::from(*value) - expected).abs() < 1e-5,
                "{i}: {value} {expected}"
            );
        }
    }

    fn weighted(values: impl Iterator<Item = f64>, dy: &[f32]) -> f64 {
        values
            .zip(dy)
            .map(|(value, dy)| value * f64::from(*dy))
            .sum()
    }

    #[test]
    fn the_norm_matches_differences() {
        let (n, eps) = (19, 1e-6);
        let (x, dy, w) = (wave(n, 0.1), wave(n, 1.3), wave(n, 2.0));
        let loss = |x: &[f64]| {
            let square = x.iter().map(|v| v * v).sum::<f64>() / n as f64;
            let inv = 1.0 / (square + f64::from(eps)).sqrt();
            weighted((0..n).map(|i| f64::from(w[i]) * x[i] * inv), &dy)
        };
        for isa in Isa::available() {
            let mut dx = vec![0.0; n];
            rms_norm_add(isa, &mut dx, &dy, &x, &w, eps);
            check(&dx, &x, loss);
            let mut in_place = dy.clone();
            rms_norm_in_place(isa, &mut in_place, &x, &w, eps);
            check(&in_place, &x, loss);
        }
    }

    #[test]
    fn the_gate_matches_differences() {
        let n = 21;
        let (gate, up, dy) = (wave(n, 0.3), wave(n, 1.9), wave(n, 0.8));
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let gelu = |g: f64| g / 2.0 * (1.0 + (root * (g + 0.044_715 * g * g * g)).tanh());
        let cases: [(Activation, &dyn Fn(f64) -> f64); 2] =
            [(Activation::Silu, &silu), (Activation::GeluTanh, &gelu)];
        for (activation, act) in cases {
            let (mut dgate, mut dup) = (gate.clone(), up.clone());
            gate_mul(Isa::best(), activation, &mut dgate, &mut dup, &dy);
            check(&dgate, &gate, |g| {
                weighted((0..n).map(|i| act(g[i]) * f64::from(up[i])), &dy)
            });
            check(&dup, &up, |u| {
                weighted((0..n).map(|i| act(f64::from(gate[i])) * u[i]), &dy)
            });
        }
    }

    #[test]
    fn the_log_softmax_matches_differences() {
        let logits = wave(37, 0.2);
        let mut got = logits.clone();
        let shift = crate::cpu::softmax::max_and_ln_sum(&logits);
        log_softmax(Isa::best(), &mut got, shift, 5, -1.7);
        let logprob = |l: &[f64]| l[5] - l.iter().map(|v| v.exp()).sum::<f64>().ln();
        check(&got, &logits, |l| -1.7 * logprob(l));
    }

    #[test]
    fn unrotating_undoes_a_rotation() {
        let angles = [0.3_f32, 1.1, -2.0];
        let (cos, sin) = (angles.map(f32::cos), angles.map(f32::sin));
        let x = wave(6, 0.4);
        let mut y = x.clone();
        for i in 0..3 {
            y[i] = x[i] * cos[i] - x[i + 3] * sin[i];
            y[i + 3] = x[i + 3] * cos[i] + x[i] * sin[i];
        }
        unrotate(Isa::best(), &mut y, &cos, &sin);
        for (got, expected) in y.iter().zip(&x) {
            assert!((got - expected).abs() < 1e-6);
        }
    }
}
