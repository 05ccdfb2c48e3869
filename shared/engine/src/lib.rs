//! The policy engine: exact forward, backward, sampling and optimiser on the CPU

pub mod adapter;
pub mod config;
pub mod cpu;
pub mod error;
pub mod kv;
mod mapped;
pub mod model;
pub mod safetensors;
pub mod sampler;
pub mod text;
pub mod train;

pub use config::{Architecture, ModelConfig};
pub use error::EngineError;

/// Names this arithmetic. Log-probabilities of equal classes and versions are equal to the bit;
/// the number rises with every change that alters one.
pub const NUMERICS_CLASS: &str = "cpu-f32-1";
