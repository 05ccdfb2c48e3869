//! Who a peer is, read from its verified certificate and from nothing else.
//!
//! A certificate carries two names: the DNS name `<role>.<cluster-id>.volley`, which TLS itself
//! compares when a process dials, and the URI `spiffe://<cluster-id>/<role>/<name>`, which says
//! which worker it is. Both must agree.

use std::{fmt, str::FromStr};

use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use crate::error::LinkError;

/// Longest peer name; the alphabet of adapter names.
pub(crate) const PEER_NAME_CHARS_MAX: usize = 64;

/// Longest cluster id: one DNS label.
pub(crate) const CLUSTER_ID_CHARS_MAX: usize = 63;

/// What a process of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Keeps jobs, leases and the roster.
    Coordinator,
    /// Trains and publishes adapters.
    Learner,
    /// Executes rollouts.
    Worker,
    /// Submits jobs and receives results.
    Client,
    /// Watches.
    Monitor,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Coordinator,
        Self::Learner,
        Self::Worker,
        Self::Client,
        Self::Monitor,
    ];

    /// The name in certificates and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Learner => "learner",
            Self::Worker => "worker",
            Self::Client => "client",
            Self::Monitor => "monitor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| LinkError::InvalidName {
                what: "role",
                value: cut(text),
                allowed: "coordinator, learner, worker, client or monitor",
            })
    }
}

/// Role, name and cluster of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    role: Role,
    name: String,
    cluster_id: String,
}

impl Peer {
    /// Checks the names: a cluster id is one DNS label, a name is `[a-z0-9._-]{1,64}`.
    pub fn new(role: Role, name: &str, cluster_id: &str) -> Result<Self, LinkError> {
        check_cluster_id(cluster_id)?;
        check_peer_name(name)?;
        Ok(Self {
            role,
            name: name.to_owned(),
            cluster_id: cluster_id.to_owned(),
        })
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Which one it is, unique by convention within its role.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it belongs.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The name that TLS compares.
    pub(crate) fn dns_name(role: Role, cluster_id: &str) -> String {
        format!("{role}.{cluster_id}.volley")
    }

    /// The name that tells one worker from another.
    pub(crate) fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.cluster_id, self.role, self.name)
    }

    /// Reads the names of a certificate. The caller has verified, or issued, it.
    pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, LinkError> {
        let bad = |detail: String| LinkError::IdentityInvalid {
            what: "certificate".into(),
            detail,
        };
        let cert = EndEntityCert::try_from(der).map_err(|e| bad(e.to_string()))?;
        let mut uris = cert.valid_uri_names();
        let uri = uris
            .next()
            .ok_or_else(|| bad("it has no spiffe name".into()))?;
        if uris.next().is_some() {
            return Err(bad("it has more than one name".into()));
        }
        let peer = Self::parse_uri(uri)?;
        // The DNS name decides the role for TLS: a certificate must answer to exactly one.
        for role in Role::ALL {
            let dns = Self::dns_name(role, &peer.cluster_id);
            let server_name = ServerName::try_from(dns).map_err(|e| bad(e.to_string()))?;
            let answers = cert.verify_is_valid_for_subject_name(&server_name).is_ok();
            if answers != (role == peer.role) {
                return Err(bad(format!("its DNS name does not match {uri}")));
            }
        }
        Ok(peer)
    }

    fn parse_uri(uri: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::IdentityInvalid {
            what: "certificate".into(),
            detail: format!("{:?} is not spiffe://CLUSTER/ROLE/NAME", cut(uri)),
        };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let (Some(cluster_id), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        Self::new(role.parse()?, name, cluster_id)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// A cluster id: 1 to 63 of `a-z`, `0-9` and `-`, which neither begins nor ends it.
pub(crate) fn check_cluster_id(id: &str) -> Result<(), LinkError> {
    let allowed = id
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    let edges = id.starts_with('-') || id.ends_with('-');
    if id.is_empty() || id.len() > CLUSTER_ID_CHARS_MAX || !allowed || edges {
        return Err(LinkError::InvalidName {
            what: "cluster id",
            value: cut(id),
            allowed: "[a-z0-9-]{1,63}, not beginning or ending with a hyphen",
        });
    }
    Ok(())
}

fn check_peer_name(name: &str) -> Result<(), LinkError> {
    let allowed = name
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    if name.is_empty() || name.len() > PEER_NAME_CHARS_MAX || !allowed {
        return Err(LinkError::InvalidName {
            what: "peer name",
            value: cut(name),
            allowed: "[a-z0-9._-]{1,64}",
        });
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(PEER_NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_alphabet() {
        for bad in ["", "-a", "a-", "A", "a.b", "ä", &"x".repeat(64)] {
            assert_eq!(
                check_cluster_id(bad).unwrap_err().code(),
                "INVALID_NAME",
                "{bad}"
            );
        }
        for bad in ["", "a/b", "Worker", "a b", "\u{202e}x", &"x".repeat(65)] {
            assert_eq!(
                check_peer_name(bad).unwrap_err().code(),
                "INVALID_NAME",
                "{bad}"
            );
        }
        assert!(Peer::new(Role::Worker, "w-0.node_1", "c1").is_ok());
    }

    #[test]
    fn uris_are_read_whole_or_not_at_all() {
        let peer = Peer::new(Role::Learner, "l0", "c1").unwrap();
        assert_eq!(Peer::parse_uri(&peer.uri()).unwrap(), peer);
        for bad in [
            "spiffe://c1/learner",
            "spiffe://c1/learner/a/b",
            "http://c1/learner/a",
            "",
            "spiffe://c1/king/a",
        ] {
            assert!(Peer::parse_uri(bad).is_err(), "{bad}");
        }
    }
}
