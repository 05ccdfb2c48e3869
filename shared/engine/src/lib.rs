//! The policy engine: exact forward, backward, sampling and optimiser on the CPU

pub mod config;
pub mod error;
mod mapped;
pub mod safetensors;

pub use config::{Architecture, ModelConfig};
pub use error::EngineError;
