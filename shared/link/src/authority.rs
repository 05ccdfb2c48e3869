//! The cluster's own certificate authority.
//!
//! It consists of one key. Whoever has it can issue any role, so its file is 0600, is refused when
//! others can read it, and is kept out of reach of environments.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls::pki_types::CertificateDer;

use crate::{
    error::LinkError,
    identity::Identity,
    role::{Peer, Role, check_cluster_id},
    secret_file,
};

/// How long an issued certificate is good, unless said otherwise. Certificates are checked when a
/// session begins, never during it; a month outlives any run, so that a worker may reconnect.
pub const IDENTITY_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the authority itself is good: ten years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Certificates begin an hour ago: clocks of two machines differ.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);

/// Files of an authority's directory.
const KEY_FILE: &str = "ca.key";
const CERT_FILE: &str = "ca.der";
const CLUSTER_FILE: &str = "cluster-id";

/// Bound on each of those files; an Ed25519 key has 85 bytes, the certificate about 400.
const CA_FILE_BYTES_MAX: usize = 16 << 10;

/// Issues identities for one cluster.
pub struct ClusterCa {
    cluster_id: String,
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// A new authority for `cluster_id` (one DNS label).
    pub fn create(cluster_id: &str) -> Result<Self, LinkError> {
        check_cluster_id(cluster_id)?;
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(crypto)?;
        let mut params = authority_params(cluster_id);
        set_validity(&mut params, SystemTime::now(), AUTHORITY_VALIDITY);
        let cert = params.self_signed(&key).map_err(crypto)?.der().clone();
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            cert,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads an authority from its directory; refuses a key that others can read.
    pub fn load(dir: &Path) -> Result<Self, LinkError> {
        let key = secret_file::read(&dir.join(KEY_FILE), CA_FILE_BYTES_MAX)?;
        let key = KeyPair::try_from(key.as_slice()).map_err(crypto)?;
        let cert = secret_file::read(&dir.join(CERT_FILE), CA_FILE_BYTES_MAX)?;
        let cluster_id = secret_file::read(&dir.join(CLUSTER_FILE), CA_FILE_BYTES_MAX)?;
        let cluster_id = String::from_utf8_lossy(&cluster_id).trim().to_owned();
        check_cluster_id(&cluster_id)?;
        let issuer = Issuer::new(authority_params(&cluster_id), key);
        let ca = Self {
            cluster_id,
            cert: CertificateDer::from(cert),
            issuer,
        };
        // A key that does not belong to the certificate would issue identities nobody trusts.
        ca.issue(Role::Monitor, "self-check")?.verify_chain()?;
        Ok(ca)
    }

    /// Writes the authority into an existing directory, every file with mode 0600.
    pub fn save(&self, dir: &Path) -> Result<(), LinkError> {
        secret_file::write(&dir.join(KEY_FILE), self.issuer.key().serialized_der())?;
        secret_file::write(&dir.join(CERT_FILE), &self.cert)?;
        secret_file::write(&dir.join(CLUSTER_FILE), self.cluster_id.as_bytes())
    }

    /// The cluster it speaks for.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// An identity for `role`, good for [`IDENTITY_VALIDITY`].
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, LinkError> {
        self.issue_at(role, name, SystemTime::now(), IDENTITY_VALIDITY)
    }

    /// An identity that is good from an hour before `now` until `validity` after it.
    pub fn issue_at(
        &self,
        role: Role,
        name: &str,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Identity, LinkError> {
        let peer = Peer::new(role, name, &self.cluster_id)?;
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(crypto)?;
        let cert = self.sign(&peer, &key, now, validity)?;
        Identity::new(
            vec![cert.der().clone()],
            key.serialize_der(),
            self.cert.clone(),
        )
    }

    fn sign(
        &self,
        peer: &Peer,
        key: &KeyPair,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Certificate, LinkError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, peer.to_string());
        let dns = Peer::dns_name(peer.role(), &self.cluster_id);
        params.subject_alt_names = vec![
            SanType::DnsName(dns.try_into().map_err(crypto)?),
            SanType::URI(peer.uri().try_into().map_err(crypto)?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, validity);
        params.signed_by(key, &self.issuer).map_err(crypto)
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

/// What the authority's certificate says, apart from its dates; the issuer name in every issued
/// certificate comes from here, so it is a function of the cluster id alone.
fn authority_params(cluster_id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("volley cluster {cluster_id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, validity: Duration) {
    params.not_before = (now - CLOCK_SKEW_MAX).into();
    params.not_after = (now + validity).into();
}

fn crypto(error: rcgen::Error) -> LinkError {
    LinkError::IdentityInvalid {
        what: "key or certificate".into(),
        detail: error.to_string(),
    }
}
