//! What every role's shell uses: configuration, store, segment files, run directory, processes.
//!
//! | module | what it does |
//! |---|---|
//! | [`process`] | starts role processes, hands them their identity, restarts dead ones |
//! | [`segment`] | append-only record files that know what was synced |
//! | [`store`] | the coordinator's records: one durable transaction per call |
//! | [`lock`] | one process per data directory |
//! | [`env_vars`] | every environment variable, in one table |

pub mod env_vars;
mod faults;
mod files;

pub mod process;

pub mod telemetry;

#[cfg(test)]
mod test_support;
