//! The client library: submit jobs, receive results, watch a cluster, fetch adapters.
//!
//! ```text
//! Client (cheap handle) ── calls ──> driver task ── one QUIC session ──> coordinator
//! ```
//!
//! The driver owns the session. When it is lost, the driver dials again and repeats every open
//! request: each of them is idempotent, so a caller sees a restarted coordinator as a slow answer.
//! After [`volley_protocol::limits::COORDINATOR_ABSENCE_MS_MAX`] without a coordinator the open
//! requests end with `COORDINATOR_UNREACHABLE`; the driver goes on dialling for those that follow.

mod address;
mod client;
mod contact;
mod driver;
mod faults;
mod fetch;
mod handle;
mod near;
mod puts;
mod requests;
mod results;

pub use address::ClusterAddress;
pub use client::{Client, ClientOptions};
pub use contact::Contact;
pub use handle::{GET_BYTES_MAX, JobHandle, Order, Outcome, Outcomes};
pub use puts::Putter;
pub use requests::{Adapters, Progress, Submitted};
pub use results::{OrderedResults, REORDER_BYTES_MAX, ResultStream};
