//! QUIC between the processes of a cluster: who a peer is, how bytes get there, and how one learns
//! that it is gone. What the bytes mean is `volley-protocol`'s business.
//!
//! ```text
//! LinkRuntime        the network's own thread: drivers, timers, keep-alives
//!   Listener ─┐
//!   Endpoint ─┴─ Connected { session, sender, receiver }
//!                  sender, receiver   control: one stream, small frames, coalesced, back-pressure
//!                  session            bulk: one uni stream per object, lower priority
//!                                     closed(): killed, restarted, closed, with the reason
//! ```
//!
//! Both sides show a certificate of the cluster's own authority ([`ClusterCa`]); a peer's [`Role`]
//! and name come from it and from nothing else. Every queue, window and wait has a bound, named in
//! [`limits`]. quinn, rustls and rcgen are used in this crate only.

mod authority;
mod backoff;
mod bulk;
mod close;
mod control;
mod endpoint;
mod error;
mod frame;
mod identity;
pub mod limits;
mod listener;
mod local;
mod memory;
mod queue;
mod reset_key;
mod role;
mod runtime;
mod secret_file;
mod session;
mod socket;
mod tls;

pub use authority::{ClusterCa, IDENTITY_VALIDITY};
pub use backoff::Backoff;
pub use bulk::{BulkPriority, BulkReceiver, BulkSender};
pub use close::{CloseReason, close_code};
pub use control::{ControlReceiver, ControlSender};
pub use endpoint::Endpoint;
pub use error::LinkError;
pub use frame::{Frame, FrameDecoder, encode_frame};
pub use identity::{IDENTITY_BYTES_MAX, Identity};
pub use limits::LinkConfig;
pub use listener::Listener;
pub use memory::memory_pair;
pub use reset_key::{RESET_KEY_BYTES, ResetKey};
pub use role::{Peer, Role};
pub use runtime::LinkRuntime;
pub use session::{Connected, Session};
