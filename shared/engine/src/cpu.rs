//! The CPU kernels and the numerics they promise.
//!
//! **Contract.** The value of every output element depends on its inputs alone, never on
//! batch size, chunking, packing, prefix sharing, prefill or decode, thread count or vector
//! width. It is kept by these rules:
//!
//! - All arithmetic is f32, IEEE 754, round to nearest, subnormals kept.
//! - A matrix product element is one chain of fused multiply-adds in ascending k, starting at
//!   zero (or at a bias): `y = fma(x[k], w[k], y)`. Vectors run across outputs, never across k.
//!   Weights stored as bfloat16 are widened exactly and then follow the same chain.
//! - Where a model computes in bfloat16, inputs and weights of the products are rounded to it
//!   (everything between stays f32), and the chain takes pairs: `y = fma(x[k+1], w[k+1], y)`, then
//!   `y = fma(x[k], w[k], y)`, k even, subnormals as zero: what `vdpbf16ps` does.
//! - A sum over one row (RMS norm, softmax) has sixteen partial sums, element i going to lane
//!   `i % 16` in ascending order, and one fixed tree over the lanes ([`simd::LANES`]).
//! - Attention counts keys by absolute position: scores are chains over the head's width,
//!   masked keys are left out or add an exact zero, the weighted sum of values is one chain
//!   over keys in ascending order.
//! - Threads divide outputs, never reductions.
//! - exp and log are our own polynomials ([`math`]); sine and cosine are tabled once from f64;
//!   square root and division are exact by IEEE. No kernel calls libm.
//! - Every kernel is written once, over sixteen abstract lanes, and compiled for AVX-512, AVX2
//!   and plain Rust: the instruction set cannot change the order of anything.

pub mod attention;
pub mod bf16;
pub(crate) mod chains;
pub mod gemm;
pub mod math;
pub mod ops;
pub mod pack;
pub mod rope;
pub(crate) mod simd;
pub mod softmax;
pub mod threads;
pub(crate) mod tiles;

pub use simd::{Isa, LANES};
