//! Whole clusters of real processes: the `volley` program as users start it, killed, stopped and
//! lied to as the world does it.
//!
//! Every test has a home of its own ([`home::Home`]); nothing it starts outlives it. Tests wait for
//! conditions, with deadlines that a slow and busy machine meets, too.
//! `VOLLEY_TEST_BINARY=/path/to/volley` tests that program instead of the one of this build.

mod adapters;
mod bad_environments;
mod bad_inputs;
mod binary;
mod cluster;
mod disk;
mod failures;
mod home;
mod hostile;
mod journal;
mod launcher;
mod map;
mod memory;
mod process;
mod put;
mod recipe;
mod resume;
mod scaling;
mod torture;
mod train;
