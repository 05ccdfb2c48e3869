//! Payloads that are put into a queue: as one piece of bytes on the wire, in memory and on disk.
//!
//! ```text
//! payloads = [u32 end]* [bytes]*      one of each per payload, little endian
//! ```
//!
//! `end` is where the payload's bytes end, counted from the first payload's first byte. So any
//! payload is found by its number, and a million of them cost four bytes each beside their own.

use std::sync::Arc;

use crate::codec::Blob;
use crate::fault::{ErrorCode, Fault};
use crate::limits::{PAYLOAD_BYTES_MAX, PUT_BYTES_MAX, PUT_PAYLOADS_MAX};

/// Bytes of an end.
const END_BYTES: usize = 4;

/// Payloads that were checked; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payloads {
    count: usize,
    bytes: Arc<Vec<u8>>,
}

impl Payloads {
    /// Payloads as a peer wrote them.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when they are not `count`, or exceed a bound.
    pub fn parse(count: u64, blob: Blob) -> Result<Self, Fault> {
        let bytes = blob.0;
        let bad = |what: String| Err(Fault::new(ErrorCode::InvalidRequest, what));
        let Some(count) = usize::try_from(count)
            .ok()
            .filter(|count| (1..=PUT_PAYLOADS_MAX).contains(count))
        else {
            return bad(format!(
                "{count} payloads in one put; allowed are 1 to {PUT_PAYLOADS_MAX}"
            ));
        };
        if bytes.len() > PUT_BYTES_MAX {
            return bad(format!(
                "payloads of {} bytes in one put, at most {PUT_BYTES_MAX} are allowed",
                bytes.len()
            ));
        }
        let Some((ends, payloads)) = bytes.split_at_checked(count * END_BYTES) else {
            return bad(format!("{} bytes are no {count} payloads", bytes.len()));
        };
        let mut start = 0;
        for (number, end) in ends.chunks_exact(END_BYTES).map(word).enumerate() {
            if end < start || end > payloads.len() {
                return bad(format!("payload {number} ends outside its bytes"));
            }
            if end - start > PAYLOAD_BYTES_MAX {
                return bad(format!(
                    "payload {number} has {} bytes, at most {PAYLOAD_BYTES_MAX} are allowed",
                    end - start
                ));
            }
            start = end;
        }
        if start != payloads.len() {
            let left = payloads.len() - start;
            return bad(format!("{left} bytes follow the last payload"));
        }
        let bytes = Arc::new(bytes);
        Ok(Self { count, bytes })
    }

    /// How many.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// What they take in memory and on disk.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All of them, as they travel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The payload of that number; empty when there is none.
    #[must_use]
    pub fn get(&self, number: usize) -> &[u8] {
        debug_assert!(number < self.count);
        let (ends, payloads) = self.bytes.split_at(self.count * END_BYTES);
        let end = |number: usize| {
            let at = number * END_BYTES;
            ends.get(at..at + END_BYTES).map(word)
        };
        let start = number.checked_sub(1).map_or(Some(0), end);
        let span = start.zip(end(number));
        span.and_then(|(start, end)| payloads.get(start..end))
            .unwrap_or_default()
    }
}

fn word(bytes: &[u8]) -> usize {
    bytes
        .first_chunk::<END_BYTES>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

/// Gathers payloads for one put.
#[derive(Clone, Debug, Default)]
pub struct PayloadWriter {
    ends: Vec<u8>,
    payloads: Vec<u8>,
}

impl PayloadWriter {
    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.ends.len() / END_BYTES
    }

    /// What they take, with their ends.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.ends.len() + self.payloads.len()
    }

    /// Adds a payload; false when it does not fit this put any more (or, as the first one, any).
    #[must_use]
    pub fn push(&mut self, payload: &[u8]) -> bool {
        let end = self.payloads.len() + payload.len();
        let bytes = self.ends.len() + END_BYTES + end;
        let fits = self.count() < PUT_PAYLOADS_MAX
            && bytes <= PUT_BYTES_MAX
            && payload.len() <= PAYLOAD_BYTES_MAX;
        if fits {
            self.payloads.extend_from_slice(payload);
            self.ends.extend_from_slice(&(end as u32).to_le_bytes());
        }
        fits
    }

    /// The bytes of all, and a writer without any.
    #[must_use]
    pub fn take(&mut self) -> Blob {
        let mut bytes = std::mem::take(&mut self.ends);
        bytes.reserve_exact(self.payloads.len());
        bytes.append(&mut self.payloads);
        Blob(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(payloads: &[Vec<u8>]) -> Blob {
        let mut writer = PayloadWriter::default();
        assert!(payloads.iter().all(|payload| writer.push(payload)));
        assert_eq!(writer.count(), payloads.len());
        writer.take()
    }

    fn refused(count: u64, bytes: Vec<u8>) -> String {
        let fault = Payloads::parse(count, Blob(bytes)).expect_err("malformed");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        fault.message
    }

    #[test]
    fn bytes_are_frozen() {
        let bytes = blob(&[b"ab".to_vec(), Vec::new(), b"c".to_vec()]).0;
        assert_eq!(bytes, b"\x02\0\0\0\x02\0\0\0\x03\0\0\0abc");
    }

    #[test]
    fn whatever_is_out_of_bounds_is_refused_by_name() {
        let one = |len: usize| [(len as u32).to_le_bytes().to_vec(), vec![7; len]].concat();
        assert!(Payloads::parse(1, Blob(one(PAYLOAD_BYTES_MAX))).is_ok());
        for (count, bytes, why) in [
            (0, vec![], "0 payloads"),
            (PUT_PAYLOADS_MAX as u64 + 1, vec![], "65537 payloads"),
            (u64::MAX, vec![], "1 to 65536"),
            (1, vec![0; 3], "3 bytes are no 1 payloads"),
            (1, one(PAYLOAD_BYTES_MAX + 1), "payload 0 has 65537 bytes"),
            (1, vec![0; PUT_BYTES_MAX + 1], "at most 921600"),
            (1, [one(2), vec![0]].concat(), "1 bytes follow"),
            (1, vec![9, 0, 0, 0, 1], "payload 0 ends outside"),
            (2, vec![1, 0, 0, 0, 0, 0, 0, 0, 1], "payload 1 ends outside"),
        ] {
            let message = refused(count, bytes);
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn a_writer_is_full_before_a_frame_is() {
        let mut writer = PayloadWriter::default();
        let payload = [1; 60];
        while writer.push(&payload) {}
        assert_eq!(writer.count(), PUT_BYTES_MAX / 64);
        let count = writer.count() as u64;
        let bytes = writer.take();
        assert!(Payloads::parse(count, bytes).is_ok());
        assert!(writer.push(&payload), "it begins anew");
        assert!(!PayloadWriter::default().push(&[0; PAYLOAD_BYTES_MAX + 1]));
    }

    proptest! {
        #[test]
        fn payloads_come_back(payloads in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..40), 1..30)) {
            let parsed = Payloads::parse(payloads.len() as u64, blob(&payloads)).expect("own");
            prop_assert_eq!(parsed.count(), payloads.len());
            for (number, payload) in payloads.iter().enumerate() {
                prop_assert_eq!(parsed.get(number), payload.as_slice());
            }
        }

        #[test]
        fn noise_never_panics(count in 0u64..20, bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            if let Ok(parsed) = Payloads::parse(count, Blob(bytes)) {
                let sum: usize = (0..parsed.count()).map(|n| parsed.get(n).len()).sum();
                prop_assert_eq!(sum, parsed.size_bytes() - 4 * parsed.count());
            }
        }
    }
}
