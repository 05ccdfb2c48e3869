//! The learner decides here: intake, groups, staleness, schedule, publish; no IO.

pub mod config;
pub mod effect;
pub mod input;

pub use config::{Config, Restored, Schedule};
pub use effect::{Batch, Effect, Group, Keep};
pub use input::{Arrival, Input, Millis, SessionId};
