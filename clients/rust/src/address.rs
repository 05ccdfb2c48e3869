//! Where a cluster is and how this process proves that it belongs there.

use std::net::SocketAddr;

use volley_link::Identity;

/// What is needed to reach a coordinator.
#[derive(Clone, Debug)]
pub struct ClusterAddress {
    /// Where the coordinator listens.
    pub addr: SocketAddr,
    /// Certificate and key of this process, and the authority it trusts.
    pub identity: Identity,
}
