//! Role processes: how they are started, what they are handed, how they end.
//!
//! ```text
//! launcher                                         child (any role)
//!   | ChildSpec ── spawn ── own process group ──────> |  descriptor 0 is a Unix socket
//!   | ── handoff: identity bytes, descriptors ──────> |  Handoff::take(); 0 becomes /dev/null
//!   | holds the write end of its lifeline (a pipe)    |  holds the read end: EOF = launcher died
//!   | <── pidfd readable ──────────────────────────── |  exit
//! ```
//!
//! Keys never stand on a command line, in the environment or in a file. Descriptors travel as
//! `SCM_RIGHTS` over the child's standard input, so no descriptor is ever made inheritable: a
//! program started by another thread at the same moment gets nothing, and what a role starts
//! itself gets nothing either. A lifeline can be handed on, so that the death of the launcher
//! ends the workers that the coordinator started.

mod child;
mod handoff;
mod lifeline;
mod signal;
mod spec;
mod supervisor;

pub use child::Child;
pub use handoff::Handoff;
pub use lifeline::{Lifelines, ParentGone};
pub use signal::{Shutdown, ShutdownSignals, shutdown_signal};
pub use spec::{ChildLog, ChildSpec};
pub use supervisor::{RestartBudget, RoleEnd, RoleHandle, supervise};
