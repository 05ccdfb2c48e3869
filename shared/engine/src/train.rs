//! Learning: losses, advantages, the backward pass through the adapter, and the optimiser.

mod advantage;
mod loss;

pub use advantage::{Estimator, GroupAdvantages, group_advantages};
pub use loss::{Loss, LossMetrics, LossSums, LossTerm, LossToken};
