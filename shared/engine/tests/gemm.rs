//! The matrix product against its definition, to the bit, in every shape that leaves remainders.

mod random_model;

use random_model::Noise;
use volley_engine::cpu::Isa;
use volley_engine::cpu::bf16::{narrow, round_rows, widen};
use volley_engine::cpu::gemm::{Product, Store, gemm, gemm_group};
use volley_engine::cpu::pack::PackedWeights;
use volley_engine::cpu::threads::Threads;

fn values(noise: &mut Noise, len: usize) -> Vec<f32> {
    (0..len).map(|_| noise.symmetric()).collect()
}

/// `y (+)= x W^T` as one chain of fused multiply-adds per element.
fn definition(x: &[f32], w: &[f32], y: &mut [f32], [m, n, k]: [usize; 3], store: Store) {
    for i in 0..m {
        for j in 0..n {
            let y = &mut y[i * n + j];
            let start = if store == Store::Continue { *y } else { 0.0 };
            let chain = (0..k).fold(start, |sum, l| x[i * k + l].mul_add(w[j * k + l], sum));
            *y = match store {
                Store::AddScaled(scale) => scale.mul_add(chain, *y),
                Store::Set | Store::Continue => chain,
            };
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_path_is_the_definition() {
    let mut noise = Noise::new(77);
    let mut shapes = vec![
        [1, 1, 1],
        [13, 33, 1100],
        [100, 7, 513],
        [97, 130, 31],
        [1, 300, 700],
    ];
    shapes.extend((1..=26).map(|m| [m, 16 * (m % 9) + m, 3 + 5 * m]));
    for [m, n, k] in shapes {
        let x = values(&mut noise, m * k);
        let bf16: Vec<u16> = values(&mut noise, n * k)
            .iter()
            .map(|v| (v.to_bits() >> 16) as u16)
            .collect();
        let w: Vec<f32> = bf16
            .iter()
            .map(|b| f32::from_bits(u32::from(*b) << 16))
            .collect();
        let mut transposed = vec![0.0; n * k];
        for (i, value) in w.iter().enumerate() {
            transposed[i % k * n + i / k] = *value;
        }
        let packed = [
            PackedWeights::pack(&w, n, k),
            PackedWeights::pack_bf16(&bf16, n, k),
            PackedWeights::pack_transposed(&transposed, k, n),
            PackedWeights::pack_transposed(&w, n, k).transposed(),
        ];
        for weights in &packed {
            assert_eq!(weights.to_row_major(), w);
        }
        let before = values(&mut noise, m * n);
        for store in [Store::Set, Store::Continue, Store::AddScaled(0.37)] {
            let mut expected = before.clone();
            definition(&x, &w, &mut expected, [m, n, k], store);
            for isa in Isa::available() {
                for count in [1, 2] {
                    let threads = Threads::with_isa(count, isa);
                    for weights in &packed {
                        let mut y = before.clone();
                        gemm(&threads, &x, weights, &mut y, store);
                        let same = bits(&y) == bits(&expected);
                        assert!(same, "{m} {n} {k} {store:?} {} x {count}", isa.name());
                    }
                }
            }
        }
    }
}

/// Zero with the sign of `v` where it is subnormal.
fn flush(v: f32) -> f32 {
    if v.abs() < f32::MIN_POSITIVE {
        0.0f32.copysign(v)
    } else {
        v
    }
}

/// The chain over pairs of bfloat16: odd before even, subnormals as zero.
fn paired_definition(x: &[f32], w: &[f32], y: &mut [f32], [m, n, k]: [usize; 3], store: Store) {
    let at = |v: &[f32], row: usize, l: usize| if l < k { flush(v[row * k + l]) } else { 0.0 };
    for i in 0..m {
        for j in 0..n {
            let y = &mut y[i * n + j];
            let mut chain = if store == Store::Continue {
                flush(*y)
            } else {
                0.0
            };
            for pair in 0..k.div_ceil(2) {
                for l in [2 * pair + 1, 2 * pair] {
                    chain = flush(at(x, i, l).mul_add(at(w, j, l), chain));
                }
            }
            *y = match store {
                Store::AddScaled(scale) => scale.mul_add(chain, *y),
                Store::Set | Store::Continue => chain,
            };
        }
    }
}

#[test]
fn every_path_of_rounded_inputs_is_the_definition() {
    let mut noise = Noise::new(78);
    let mut shapes = vec![[1, 1, 1], [13, 33, 1100], [97, 40, 31], [1, 300, 700]];
    shapes.extend((1..=26).map(|m| [m, 16 * (m % 9) + m, 3 + 5 * m]));
    for [m, n, k] in shapes {
        // Every third row of products is about as small as f32 goes.
        let tiny = |i: usize| {
            if (i / k).is_multiple_of(3) {
                1e-19
            } else {
                1.0
            }
        };
        let scaled = |values: Vec<f32>| -> Vec<f32> {
            (values.iter().enumerate())
                .map(|(i, v)| v * tiny(i))
                .collect()
        };
        let x = scaled(values(&mut noise, m * k));
        let w = scaled(values(&mut noise, n * k));
        let rounded = |v: &[f32]| -> Vec<f32> { v.iter().map(|v| widen(narrow(*v))).collect() };
        let weights = PackedWeights::pack_rounded(&w, n, k);
        assert_eq!(weights.to_row_major(), rounded(&w));
        assert_eq!(
            weights.transposed().transposed().to_row_major(),
            rounded(&w)
        );
        let before = scaled(values(&mut noise, m * n));
        for store in [Store::Set, Store::Continue, Store::AddScaled(0.37)] {
            let mut expected = before.clone();
            let shape = [m, n, k];
            paired_definition(&rounded(&x), &rounded(&w), &mut expected, shape, store);
            for isa in Isa::available() {
                let threads = Threads::with_isa(1 + m % 2, isa);
                let (mut y, mut pairs) = (before.clone(), Vec::new());
                let x = round_rows(&threads, &x, k, &mut pairs);
                gemm(&threads, x, &weights, &mut y, store);
                let same = bits(&y) == bits(&expected);
                assert!(same, "{m} {n} {k} {store:?} {}", isa.name());
            }
        }
    }
}

#[test]
fn a_group_is_its_members() {
    let mut noise = Noise::new(5);
    let (m, k) = (70, 90);
    let x = values(&mut noise, m * k);
    let weights: Vec<PackedWeights> = [64, 5, 129]
        .map(|n| PackedWeights::pack(&values(&mut noise, n * k), n, k))
        .into();
    let alone: Vec<Vec<f32>> = (weights.iter())
        .map(|weights| {
            let mut y = vec![0.0; m * weights.n()];
            gemm(&Threads::new(1), &x, weights, &mut y, Store::Set);
            y
        })
        .collect();
    let mut together: Vec<Vec<f32>> = alone.iter().map(|y| vec![9.0; y.len()]).collect();
    let products = weights.iter().zip(&mut together);
    let products = products.map(|(weights, y)| Product {
        weights,
        y,
        store: Store::Set,
    });
    gemm_group(&Threads::new(2), &x, products.collect());
    assert!(alone == together);
}
