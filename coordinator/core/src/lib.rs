//! The coordinator decides here; `coordinator/src` does.
//!
//! [`Coordinator::apply`] takes one [`Input`] and appends [`Effect`]s. Nothing in this crate does
//! IO, reads a clock, draws a random number or depends on the order of a hash.
//!
//! | file | what it knows |
//! |---|---|
//! | `coordinator` | the whole: one event in, effects out |
//! | `place`, `queue`, `ledger`, `extents`, `jobs` | where each rollout is; what is closed; all jobs and whose turn it is |
//! | `dispatch`, `lease`, `attempts`, `retry` | who gets what, for how long; what follows when an attempt ends |
//! | `timeouts`, `dead` | rollouts whose time is over; those that were given up, and trying them anew |
//! | `roster`, `workers`, `departures` | who works; what workers say; how they leave |
//! | `autoscale`, `scaling` | how many there should be (pure); carrying it out |
//! | `adapters`, `versions`, `runs`, `learners` | versions and their pins; runs; what learners say |
//! | `sinks`, `lifecycle` | what is closed; how jobs begin and end |
//! | `clients`, `puts` | what clients ask, and add to queues |
//! | `snapshot`, `stats` | what people see |
//! | `record`, `restore` | what survives, and how it comes back |
//! | `invariants`, `violation` | what must always hold |

mod adapters;
mod attempts;
mod autoscale;
#[cfg(test)]
mod autoscale_laws;
mod clients;
mod config;
mod coordinator;
mod dead;
mod departures;
mod dispatch;
mod effect;
mod extents;
mod fit;
#[cfg(test)]
mod fixtures;
mod input;
mod invariants;
mod jobs;
mod learners;
mod lease;
mod ledger;
mod lifecycle;
mod place;
mod puts;
mod queue;
mod ranges;
mod record;
mod restore;
mod retry;
mod roster;
mod runs;
mod scaling;
mod sinks;
mod snapshot;
mod stats;
mod timeouts;
mod versions;
mod violation;
mod workers;

pub use config::*;
pub use coordinator::Coordinator;
pub use effect::Effect;
pub use input::{Input, Millis, SessionId};
pub use record::Record;
pub use violation::Violation;
