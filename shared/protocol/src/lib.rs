//! The words of the system: ids, plain data types, messages and their codec.
//!
//! Every other room speaks in these types; nothing here does IO, reads a clock or knows who
//! listens. One file per conversation:
//!
//! | file | who talks |
//! |---|---|
//! | [`version`] | everybody: `Hello`, `Welcome`, `Refused` |
//! | [`client`] | client or monitor ↔ coordinator |
//! | [`worker`] | worker ↔ coordinator |
//! | [`learner`] | learner ↔ coordinator |
//! | [`delivery`] | worker ↔ sink (a learner, or the coordinator's relay) |
//! | [`trajectory`] | the bulk bytes of a finished episode |
//! | [`adapter`] | names and bulk bytes of LoRA adapters |

pub mod adapter;
pub mod client;
pub mod codec;
pub mod dead;
pub mod delivery;
pub mod digest;
pub mod fault;
pub mod ids;
pub mod job;
pub mod learner;
pub mod limits;
pub mod payload;
pub mod range_set;
pub mod retry;
pub mod run;
pub mod seed;
pub mod snapshot;
pub mod trajectory;
pub mod version;
pub mod worker;

pub use adapter::AdapterVersion;
pub use digest::Digest;
pub use fault::{ErrorCode, Fault};
pub use ids::{AttemptId, Epoch, GroupIndex, JobId, PeerId, RolloutId, RunId, WorkerId};
pub use job::{EnvSpec, JobKind, JobSpec, PolicyRef, SamplingSpec, SinkRef, Split, Take};
pub use payload::Payloads;
pub use range_set::RangeSet;
pub use retry::RetryPolicy;
pub use trajectory::Trajectory;
