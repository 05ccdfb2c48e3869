//! What a process proves itself with: certificate, key and the authority it trusts.
//!
//! An identity travels as one small, bounded blob: in a file of mode 0600, or through a pipe whose
//! read end a child inherits, so that no key is ever on a command line.
//!
//! ```text
//! "VLYI" | version u8 = 1 | parts u8 | parts × (u32 length, little endian | bytes)
//! part 0 authority certificate, part 1 key (PKCS#8), parts 2.. certificate chain
//! ```

use std::{
    fmt,
    hint::black_box,
    io::{Read, Write},
    path::Path,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    error::LinkError,
    role::{Peer, Role},
    secret_file, tls,
};

/// Largest identity. Ours has about 900 bytes; below 64 KiB it also fits a pipe without a reader.
pub const IDENTITY_BYTES_MAX: usize = 32 << 10;

/// Longest certificate chain.
const CHAIN_MAX: usize = 4;

const MAGIC: &[u8; 4] = b"VLYI";
const VERSION: u8 = 1;

/// Key bytes that are wiped when dropped and never printed.
#[derive(Clone)]
struct SecretBytes(Vec<u8>);

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.fill(0);
        black_box(&self.0);
    }
}

/// Certificate, key and trusted authority of one process.
#[derive(Clone)]
pub struct Identity {
    peer: Peer,
    chain: Vec<CertificateDer<'static>>,
    key: SecretBytes,
    authority: CertificateDer<'static>,
}

impl Identity {
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Vec<u8>,
        authority: CertificateDer<'static>,
    ) -> Result<Self, LinkError> {
        let key = SecretBytes(key);
        let leaf = chain
            .first()
            .ok_or_else(|| invalid("it has no certificate"))?;
        let peer = Peer::from_certificate(leaf)?;
        Ok(Self {
            peer,
            chain,
            key,
            authority,
        })
    }

    /// Who this is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What this is.
    pub fn role(&self) -> Role {
        self.peer.role()
    }

    /// Which one this is.
    pub fn name(&self) -> &str {
        self.peer.name()
    }

    /// Where it belongs.
    pub fn cluster_id(&self) -> &str {
        self.peer.cluster_id()
    }

    /// Certificate chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The authority this process trusts.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.0.clone()))
    }

    /// Checks that key, certificate and authority belong together.
    pub(crate) fn verify_chain(&self) -> Result<(), LinkError> {
        tls::verify_own(self)
    }

    /// The blob of the module's head. It contains the key.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = vec![&self.authority, &self.key.0];
        parts.extend(self.chain.iter().map(|cert| cert.as_ref()));
        let mut bytes = Vec::from(MAGIC);
        bytes.push(VERSION);
        bytes.push(u8::try_from(parts.len()).expect("a chain has at most CHAIN_MAX parts"));
        for part in parts {
            let len = u32::try_from(part.len()).expect("a part is far below 4 GiB");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes); refuses anything else, trailing bytes included.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LinkError> {
        if bytes.len() > IDENTITY_BYTES_MAX {
            return Err(invalid("it is too large"));
        }
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| invalid("it is no identity"))?;
        let (&[version, count], mut rest) = rest
            .split_first_chunk::<2>()
            .ok_or_else(|| invalid("it is cut short"))?;
        if version != VERSION {
            return Err(invalid(&format!(
                "it has version {version}, this release reads {VERSION}"
            )));
        }
        if !(3..=2 + CHAIN_MAX).contains(&usize::from(count)) {
            return Err(invalid(&format!("it has {count} parts")));
        }
        let mut parts = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (len, tail) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| invalid("it is cut short"))?;
            let (part, tail) = tail
                .split_at_checked(u32::from_le_bytes(*len) as usize)
                .ok_or_else(|| invalid("it is cut short"))?;
            parts.push(part.to_vec());
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(invalid("bytes follow its end"));
        }
        let chain = parts
            .split_off(2)
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let key = parts.pop().expect("at least three parts were read");
        let authority = parts.pop().expect("at least three parts were read");
        let identity = Self::new(chain, key, CertificateDer::from(authority))?;
        identity.verify_chain()?;
        Ok(identity)
    }

    /// Writes a file that only its owner can read.
    pub fn save(&self, path: &Path) -> Result<(), LinkError> {
        secret_file::write(path, &self.to_bytes())
    }

    /// Reads a file written by [`save`](Self::save); refuses it if others can read it.
    pub fn load(path: &Path) -> Result<Self, LinkError> {
        Self::from_bytes(&secret_file::read(path, IDENTITY_BYTES_MAX)?)
    }

    /// Writes into the pipe whose read end a child inherits. It never blocks: a pipe holds 64 KiB.
    pub fn write_to(&self, mut writer: impl Write) -> Result<(), LinkError> {
        writer
            .write_all(&self.to_bytes())
            .and_then(|()| writer.flush())
            .map_err(|source| LinkError::HandOver { source })
    }

    /// Reads what a parent wrote, until the parent closes its end; at most
    /// [`IDENTITY_BYTES_MAX`] bytes.
    pub fn read_from(reader: impl Read) -> Result<Self, LinkError> {
        let bytes = secret_file::read_bounded(reader, IDENTITY_BYTES_MAX)
            .map_err(|source| LinkError::HandOver { source })?
            .ok_or_else(|| invalid("it is too large"))?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .field("key", &"redacted")
            .finish_non_exhaustive()
    }
}

fn invalid(detail: &str) -> LinkError {
    LinkError::IdentityInvalid {
        what: "identity".into(),
        detail: detail.to_owned(),
    }
}
