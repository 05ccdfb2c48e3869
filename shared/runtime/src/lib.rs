//! What every role's shell uses: configuration, store, segment files, run directory, processes.
//!
//! | module | what it does |
//! |---|---|
//! | [`process`] | starts role processes, hands them their identity, restarts dead ones |
//! | [`segment`] | append-only record files that know what was synced |
//! | [`store`] | the coordinator's records: one durable transaction per call |
//! | [`config`] | TOML files whose mistakes are told with their place |
//! | [`recipe`] | the training recipe |
//! | [`run_dir`] | the directory of a training run |
//! | [`report`] | `report.html` of a run |
//! | [`checked_line`] | lines of JSON that carry a checksum |
//! | [`cache_dir`] | where files are that can be made again |
//! | [`host_adapters`] | adapters that the processes of a host share |
//! | [`cluster_file`] | where a cluster on this machine is |
//! | [`vital`] | threads whose panic ends the process |
//! | [`mailbox`] | the way to a driver that does not exist yet |
//! | [`memory`] | what the system would still give |
//! | [`journal`] | what a look at a directory of durable files found |
//! | [`lock`] | one process per data directory |
//! | [`files`] | files that are there whole or not at all |
//! | [`telemetry`] | log lines, and text from elsewhere made safe to show |
//! | [`greeting`] | hello and welcome |
//! | [`conversation`] | dial, read typed messages, bounded |
//! | [`env_vars`] | every environment variable, in one table |

pub mod cache_dir;
pub mod checked_line;
pub mod cluster_file;
pub mod config;
pub mod conversation;
pub mod env_vars;
mod faults;
pub mod files;
pub mod greeting;
pub mod host_adapters;
pub mod journal;
pub mod lock;
pub mod mailbox;
pub mod memory;
pub mod process;
pub mod recipe;
pub mod report;
pub mod run_dir;
pub mod segment;
pub mod store;
pub mod telemetry;
pub mod vital;

#[cfg(test)]
mod test_support;
