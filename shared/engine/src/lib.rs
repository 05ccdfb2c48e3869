//! The policy engine: exact forward, backward, sampling and optimiser on the CPU

pub mod adapter;
pub mod config;
pub mod error;
mod mapped;
pub mod safetensors;
pub mod text;
pub mod train;

pub use config::{Architecture, ModelConfig};
pub use error::EngineError;
