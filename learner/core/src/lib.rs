//! The learner decides here: intake, groups, staleness, schedule, publish; no IO.
//!
//! The learner is the sink and the only arbiter of its training job. [`Learner::apply`] takes
//! what happened and says what is to be done; the shell holds the bytes.
//!
//! ```text
//! worker ══batch══► judge ──Intake──► (disk) ──Synced──► settled ──► Delivered to the worker
//!                     │                                     │  └─────► Receipt to the coordinator
//!                duplicate: the same two answers       group complete ──Step──► StepDone
//!                                                                                  │
//!                              Admit ◄── Discard, Checkpoint ◄── Published, Progress
//! ```
//!
//! * The first valid result of a rollout is accepted; nothing is told before it is synced.
//! * A batch is whole groups in a fixed order, so a synchronous run is the same arithmetic
//!   whatever order results came in.
//! * A step is made for every version up to the last one, if need be of an empty batch.

pub mod config;
pub mod effect;
pub mod input;

mod chain;
mod counters;
mod deliveries;
mod groups;
mod intake;
mod learner;
mod ledger;
mod receipts;
mod restore;
mod steps;
#[cfg(test)]
mod tests;

pub use config::{Config, Restored, Schedule};
pub use counters::{Counters, GroupCounters};
pub use effect::{Batch, Effect, Group, Keep};
pub use input::{Arrival, Input, Millis, SessionId};
pub use learner::Learner;
