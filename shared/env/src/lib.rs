//! Environments: where a policy acts and is rewarded.
//!
//! An [`Environment`] is one episode: [`create`] makes it for a [`Scenario`], `reset` gives the
//! first [`Observation`], every `step` takes the policy's reply and either goes on or ends with a
//! [`Reward`]. It is synchronous and a function of its scenario and the replies alone: no IO, no
//! clock, no randomness of its own, so that a rollout tried again gives the same episode.
//!
//! ```
//! use volley_env::{Scenario, Split, Transition};
//!
//! let mut env = volley_env::create("arithmetic", &Scenario::new(Split::Train, 0))?;
//! assert_eq!(env.reset()?.messages[1].content, "22+6=");
//! let Transition::Done { reward } = env.step("28")? else { panic!("one turn") };
//! assert_eq!(reward.validate()?.value(), 1.0);
//! # Ok::<(), volley_env::EnvError>(())
//! ```
//!
//! Who runs environments wraps them in [`Guarded`], which turns a panic into an error with the
//! code `ENV_PANIC`, and takes rewards through [`Reward::validate`], which refuses what must not
//! reach a learner. `faulty` is a bundled diagnostic that breaks in every way these two catch.

mod catalog;
mod draw;
mod environment;
mod error;
mod guard;
mod reward;
mod scenario;
mod tasks;

pub use catalog::{ConfigKey, EnvInfo, Yardstick, catalog, create};
pub use environment::{Environment, Message, Observation, Role, Transition};
pub use error::EnvError;
pub use guard::{Guarded, quiet_guarded_panics, run_guarded};
pub use reward::{METRIC_NAME_BYTES_MAX, METRICS_MAX, REWARD_MAGNITUDE_MAX, Reward, ValidReward};
pub use scenario::{Scenario, Split};
