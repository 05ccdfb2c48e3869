//! One cluster on the loopback interface.

// Each test binary uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;

use volley_link::{
    ClusterCa, Connected, Endpoint, Identity, LinkConfig, LinkRuntime, Listener, Role,
};

/// An authority, a network thread, and what tests ask of them.
pub(crate) struct Cluster {
    pub(crate) ca: ClusterCa,
    pub(crate) runtime: LinkRuntime,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            ca: ClusterCa::create("test").unwrap(),
            runtime: LinkRuntime::start().unwrap(),
        }
    }

    pub(crate) fn identity(&self, role: Role) -> Identity {
        self.ca.issue(role, "one").unwrap()
    }

    pub(crate) fn listener(&self, role: Role) -> Listener {
        self.listener_with(role, over_quic())
    }

    pub(crate) fn listener_with(&self, role: Role, config: LinkConfig) -> Listener {
        let identity = self.identity(role);
        Endpoint::listen(&self.runtime, loopback(0), &identity, config).unwrap()
    }

    pub(crate) fn endpoint(&self, role: Role) -> Endpoint {
        self.endpoint_with(role, over_quic())
    }

    pub(crate) fn endpoint_with(&self, role: Role, config: LinkConfig) -> Endpoint {
        let identity = self.identity(role);
        Endpoint::client(&self.runtime, &identity, config).unwrap()
    }

    /// A worker's and a coordinator's end of one session.
    pub(crate) async fn pair(&self) -> (Connected, Connected) {
        let mut listener = self.listener(Role::Coordinator);
        self.pair_with(&mut listener).await
    }

    pub(crate) async fn pair_with(&self, listener: &mut Listener) -> (Connected, Connected) {
        let endpoint = self.endpoint(Role::Worker);
        let dialled = endpoint.dial(listener.local_addr(), Role::Coordinator);
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        (dialled.unwrap(), accepted.unwrap())
    }
}

/// As between two machines: everything goes by QUIC.
pub(crate) fn over_quic() -> LinkConfig {
    LinkConfig {
        local_bulk: false,
        ..LinkConfig::default()
    }
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}
