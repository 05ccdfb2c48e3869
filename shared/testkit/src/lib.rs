//! For tests only: a virtual clock, a seeded generator, and a network that misbehaves.
//!
//! Nothing here knows what the nodes are. A test owns a [`Schedule`] of its own events, a [`Net`]
//! that turns sends into scheduled deliveries, a [`Rng`], and a [`Trace`] that hashes everything
//! that happened, so that two runs of one seed can be compared and a failing one can be read.

mod net;
mod rng;
mod schedule;
mod trace;

pub use net::{Lane, Net, NetConfig, NetEvent, Session};
pub use rng::Rng;
pub use schedule::Schedule;
pub use trace::Trace;
