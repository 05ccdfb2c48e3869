//! Learning: losses, advantages, the backward pass through the adapter, and the optimiser.

mod adamw;
mod advantage;
mod arena;
mod attention;
mod backward;
mod batch;
mod cut;
#[cfg(test)]
mod differences;
mod gradients;
mod head;
mod linear;
mod loss;
mod matmul;
mod memory;
mod ops;
mod packing;
mod rows;
mod state;
mod tape;
mod trainer;
mod weights;
mod worker;

pub use adamw::AdamParams;
pub use advantage::{Estimator, GroupAdvantages, group_advantages};
pub use batch::Datum;
pub(crate) use batch::check_tokens;
pub use loss::{Loss, LossMetrics, LossSums, LossTerm, LossToken};
pub use memory::{MEMORY_UNLIMITED, MemoryPlan};
pub(crate) use packing::bundles;
pub use trainer::{NamedGrad, OptimOutput, StepOutput, Trainer};
