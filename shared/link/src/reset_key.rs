//! The key that lets a restarted process disown the connections of its predecessor.
//!
//! A stateless reset is believed only if it carries a token derived from this key and the
//! connection id. quinn's usual generator moreover recognises only connection ids made by the same
//! process and would ignore an old peer's packets in silence; [`RandomCids`] recognises all.

use std::{fmt, hint::black_box};

use quinn::{
    ConnectionId, ConnectionIdGenerator,
    crypto::{CryptoError, HmacKey},
};
use rustls::crypto::{
    ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    tls13::{Hkdf, OkmBlock},
};

use crate::error::LinkError;

/// Length of a reset key.
pub const RESET_KEY_BYTES: usize = 32;

/// Length of one HMAC-SHA256 tag.
const TAG_BYTES: usize = 32;

/// Connection ids are looked up, never guessed: 8 random bytes, as quinn uses.
const CID_BYTES: usize = 8;

/// Secret of one listener, kept across its restarts in a file of the caller's.
#[derive(Clone)]
pub struct ResetKey([u8; RESET_KEY_BYTES]);

impl ResetKey {
    /// A fresh random key.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The key kept by an earlier process.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LinkError> {
        let key = bytes.try_into().map_err(|_| LinkError::IdentityInvalid {
            what: "stateless reset key".into(),
            detail: format!("{} bytes instead of {RESET_KEY_BYTES}", bytes.len()),
        })?;
        Ok(Self(key))
    }

    /// The bytes to keep, in a file that only the owner reads.
    pub fn as_bytes(&self) -> &[u8; RESET_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(redacted)")
    }
}

impl Drop for ResetKey {
    fn drop(&mut self) {
        self.0.fill(0);
        black_box(&self.0);
    }
}

/// HMAC-SHA256 borrowed from the TLS provider, so that no second cryptography crate is needed.
fn hkdf() -> &'static dyn Hkdf {
    TLS13_AES_128_GCM_SHA256
        .tls13()
        .expect("the suite is a TLS 1.3 suite")
        .hkdf_provider
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let tag = hkdf().hmac_sign(&OkmBlock::new(&self.0), data);
        signature_out.copy_from_slice(tag.as_ref());
    }

    fn signature_len(&self) -> usize {
        TAG_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = hkdf().hmac_sign(&OkmBlock::new(&self.0), data);
        let expected = tag.as_ref();
        if signature.len() != expected.len() {
            return Err(CryptoError);
        }
        // Every byte is compared, whatever the first ones say.
        let difference = expected
            .iter()
            .zip(signature)
            .fold(0, |acc, (a, b)| acc | (a ^ b));
        if black_box(difference) == 0 {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Random connection ids, none of which is ever called impossible: see the module's head.
#[derive(Debug)]
pub(crate) struct RandomCids;

impl ConnectionIdGenerator for RandomCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_rfc_4231_says() {
        // Test case 1 uses a 20-byte key; HMAC pads keys with zeros, so 32 bytes give the same.
        let mut key = [0u8; RESET_KEY_BYTES];
        key[..20].fill(0x0b);
        let key = ResetKey::from_bytes(&key).unwrap();
        let mut tag = [0u8; TAG_BYTES];
        key.sign(b"Hi There", &mut tag);
        assert_eq!(tag[..4], [0xb0, 0x34, 0x4c, 0x61]);
        assert!(key.verify(b"Hi There", &tag).is_ok());
        tag[31] ^= 1;
        assert!(key.verify(b"Hi There", &tag).is_err());
        assert!(key.verify(b"Hi There", &tag[..16]).is_err());
    }

    #[test]
    fn refuses_another_length_and_never_prints_itself() {
        assert!(ResetKey::from_bytes(&[7; 31]).is_err());
        assert_eq!(
            format!("{:?}", ResetKey::from_bytes(&[7; 32]).unwrap()),
            "ResetKey(redacted)"
        );
    }
}
