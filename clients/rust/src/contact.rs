//! Whether the coordinator is there, for people who watch.

use std::time::Instant;

use volley_protocol::{Epoch, Fault};

/// Where the session stands. `Away → Here → Away → …`, or `Refused` for good.
#[derive(Clone, Debug)]
pub enum Contact {
    /// No session at the moment; the driver dials.
    Away {
        /// Since when.
        since: Instant,
        /// What the last dial met, if one has ended.
        last: Option<Fault>,
    },
    /// A session is up.
    Here {
        /// Name of the cluster.
        cluster: String,
        /// Epoch of the coordinator: it rises when the coordinator was restarted.
        epoch: Epoch,
    },
    /// The coordinator does not want this client; further dials cannot go better.
    Refused(Fault),
}

impl Contact {
    /// Is a session up?
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here { .. })
    }
}
