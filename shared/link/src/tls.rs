//! TLS 1.3, mutual, always; and what its alerts mean.

use std::{net::SocketAddr, sync::Arc};

use quinn::{
    ConnectionError,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, client::Resumption, crypto::CryptoProvider,
    pki_types::UnixTime, server::NoServerSessionStorage, server::WebPkiClientVerifier,
};

use crate::{
    close::{CloseReason, peer_text},
    error::LinkError,
    identity::Identity,
    role::Role,
};

/// What both sides must speak.
pub(crate) const ALPN: &[u8] = b"volley/1";

/// QUIC carries a TLS alert as the error code `0x100 + alert`.
const ALERT_BASE: u64 = 0x100;
const ALERT_BAD_CERTIFICATE: u64 = 42;
const ALERT_CERTIFICATE_REQUIRED: u64 = 116;
/// QUIC's own "I am full".
const CONNECTION_REFUSED: u64 = 0x02;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, LinkError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority().clone()).map_err(unusable)?;
    Ok(Arc::new(roots))
}

/// The acceptor's side. Sessions are never resumed: a resumed one would skip the certificate.
pub(crate) fn server(identity: &Identity) -> Result<QuicServerConfig, LinkError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(unusable)
}

/// The dialler's side.
pub(crate) fn client(identity: &Identity) -> Result<QuicClientConfig, LinkError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(unusable)
}

/// Checks an identity against its own authority, dates excepted: a peer judges those.
pub(crate) fn verify_own(identity: &Identity) -> Result<(), LinkError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(unusable)?;
    let (leaf, rest) = identity
        .chain()
        .split_first()
        .expect("an identity has a certificate");
    match verifier.verify_client_cert(leaf, rest, UnixTime::now()) {
        Ok(_) => {}
        Err(rustls::Error::InvalidCertificate(
            rustls::CertificateError::ExpiredContext { .. }
            | rustls::CertificateError::NotValidYetContext { .. },
        )) => {}
        Err(error) => return Err(unusable(error)),
    }
    // Builds the signer and compares its public key with the certificate's.
    client(identity).map(drop)
}

/// Why a dial failed, told from the error QUIC reports.
pub(crate) fn dial_error(addr: SocketAddr, expected: Role, error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::TransportError(error) => {
            let detail = peer_text(error.reason.as_bytes());
            match alert(error.code.into()) {
                Some(ALERT_BAD_CERTIFICATE) => LinkError::PeerWrongRole {
                    addr,
                    expected,
                    detail,
                },
                Some(_) => LinkError::PeerUntrusted { addr, detail },
                None => LinkError::PeerUnreachable {
                    addr,
                    detail: error.to_string(),
                },
            }
        }
        ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            let detail = peer_text(close.to_string().as_bytes());
            if alert(code).is_some() {
                LinkError::IdentityRefused { addr, detail }
            } else if code == CONNECTION_REFUSED {
                LinkError::PeerRefused {
                    addr,
                    detail: "it has too many connections".into(),
                }
            } else {
                LinkError::PeerRefused { addr, detail }
            }
        }
        other => LinkError::ended(addr, CloseReason::from(other)),
    }
}

/// Why an incoming peer was turned away, told from the error QUIC reports.
pub(crate) fn accept_error(addr: SocketAddr, error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::TransportError(error) => match alert(error.code.into()) {
            Some(ALERT_CERTIFICATE_REQUIRED) => LinkError::PeerNoCertificate { addr },
            Some(_) => LinkError::PeerUntrusted {
                addr,
                detail: peer_text(error.reason.as_bytes()),
            },
            None => {
                let reason = CloseReason::Transport {
                    detail: peer_text(error.reason.as_bytes()),
                };
                LinkError::ended(addr, reason)
            }
        },
        ConnectionError::ConnectionClosed(close) if alert(close.error_code.into()).is_some() => {
            LinkError::IdentityRefused {
                addr,
                detail: peer_text(close.to_string().as_bytes()),
            }
        }
        other => LinkError::ended(addr, CloseReason::from(other)),
    }
}

fn alert(code: u64) -> Option<u64> {
    code.checked_sub(ALERT_BASE).filter(|alert| *alert < 0x100)
}

fn unusable(error: impl std::fmt::Display) -> LinkError {
    LinkError::IdentityInvalid {
        what: "identity".into(),
        detail: error.to_string(),
    }
}
