//! The policy engine: exact forward, backward, sampling and optimiser on the CPU

pub mod adapter;
mod buffers;
pub mod config;
pub mod cpu;
pub mod decode;
pub mod error;
pub mod kv;
pub mod mapped;
pub mod model;
pub mod packed;
pub mod safetensors;
pub mod sampler;
pub mod score;
mod small_file;
pub mod text;
pub mod train;

pub use config::{Architecture, Compute, ModelConfig};
pub use error::EngineError;
