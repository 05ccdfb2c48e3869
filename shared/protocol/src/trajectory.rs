//! The bulk bytes of finished episodes.
//!
//! ```text
//! batch  = [u8 kind = 1][u64 first sequence number][u32 count] record*
//! record = [u32 header length][header][u32 n][n × u32 token][n × f32 log-prob][n × u8 sampled]
//! ```
//!
//! All little-endian. The header is a [`TrajectoryHeader`] in [`crate::codec`]; the arrays are raw,
//! because element-by-element decoding is what makes trajectories expensive elsewhere. Log-probs of
//! tokens that the policy did not sample are 0 and their `sampled` byte is 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterVersion;
use crate::codec::{self, CodecError};
use crate::delivery::BulkKind;
use crate::ids::{AttemptId, WorkerId};
use crate::limits::{
    TRAJECTORY_BATCH_BYTES_MAX, TRAJECTORY_HEADER_BYTES_MAX, TRAJECTORY_TOKENS_MAX,
};

/// Everything about an episode but its token arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrajectoryHeader {
    /// Which attempt produced it.
    pub attempt: AttemptId,
    /// Which worker.
    pub worker: WorkerId,
    /// Instance of the environment that was played.
    pub instance: u64,
    /// Adapter that sampled every token; `None` is the base model.
    /// (An episode keeps the version it pinned, so one value is enough for all its spans.)
    pub version: Option<AdapterVersion>,
    /// Arithmetic that the log-probs come from.
    pub numerics: String,
    /// Total reward.
    pub reward: f64,
    /// Metrics of the environment.
    pub metrics: BTreeMap<String, f64>,
    /// Turns of the policy.
    pub turns: u32,
    /// An answer was cut off at its token limit.
    pub truncated: bool,
    /// What was said, for people: (role, text).
    pub transcript: Vec<(String, String)>,
    /// Time in the slot.
    pub episode_ms: u64,
}

/// A finished episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// Everything but the arrays.
    pub header: TrajectoryHeader,
    /// Prompt and answers, in order.
    pub tokens: Vec<u32>,
    /// Log-probability of each sampled token under the policy (temperature 1, unfiltered).
    pub logprobs: Vec<f32>,
    /// 1 where the policy sampled the token.
    pub sampled: Vec<u8>,
}

impl Trajectory {
    /// Appends the record.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        debug_assert_eq!(self.tokens.len(), self.logprobs.len());
        debug_assert_eq!(self.tokens.len(), self.sampled.len());
        let at = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        codec::encode_into(&self.header, bytes);
        let header_len = (bytes.len() - at - 4) as u32;
        bytes[at..at + 4].copy_from_slice(&header_len.to_le_bytes());
        bytes.extend_from_slice(&(self.tokens.len() as u32).to_le_bytes());
        bytes.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        bytes.extend(
            self.logprobs
                .iter()
                .flat_map(|logprob| logprob.to_le_bytes()),
        );
        bytes.extend_from_slice(&self.sampled);
    }

    /// The record as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + self.tokens.len() * 9);
        self.encode_into(&mut bytes);
        bytes
    }

    /// Decodes the first record of `bytes`; also tells how many bytes it took.
    ///
    /// # Errors
    /// [`CodecError`] when a length is over its bound or bytes are missing.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), CodecError> {
        let view = RecordView::parse(bytes)?;
        let used = view.bytes.len();
        Ok((view.into_trajectory(), used))
    }
}

/// A record where it lies: its header is decoded, its arrays are not copied.
#[derive(Debug)]
pub struct RecordView<'a> {
    /// Everything but the arrays.
    pub header: TrajectoryHeader,
    /// The whole record.
    pub bytes: &'a [u8],
    tokens: &'a [u8],
    logprobs: &'a [u8],
    sampled: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The first record of `bytes`.
    ///
    /// # Errors
    /// [`CodecError`] when a length is over its bound or bytes are missing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut reader = Reader { bytes, at: 0 };
        let header_len = reader.bounded_u32("trajectory header", TRAJECTORY_HEADER_BYTES_MAX)?;
        let header = codec::decode(reader.take(header_len)?)?;
        let n = reader.bounded_u32("trajectory", TRAJECTORY_TOKENS_MAX)?;
        let tokens = reader.take(n * 4)?;
        let logprobs = reader.take(n * 4)?;
        let sampled = reader.take(n)?;
        Ok(Self {
            header,
            bytes: &bytes[..reader.at],
            tokens,
            logprobs,
            sampled,
        })
    }

    /// The trajectory, with arrays of its own.
    #[must_use]
    pub fn into_trajectory(self) -> Trajectory {
        let logprobs = self.logprobs.chunks_exact(4).map(le_u32);
        Trajectory {
            header: self.header,
            tokens: self.tokens.chunks_exact(4).map(le_u32).collect(),
            logprobs: logprobs.map(f32::from_bits).collect(),
            sampled: self.sampled.to_vec(),
        }
    }
}

/// Puts encoded records behind a batch header.
#[must_use]
pub fn encode_batch<R: AsRef<[u8]>>(first_seq: u64, records: &[R]) -> Vec<u8> {
    let total: usize = records.iter().map(|record| record.as_ref().len()).sum();
    let mut bytes = Vec::with_capacity(13 + total);
    bytes.push(BulkKind::Trajectories as u8);
    bytes.extend_from_slice(&first_seq.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
    records
        .iter()
        .for_each(|record| bytes.extend_from_slice(record.as_ref()));
    bytes
}

/// A received batch: the sequence number of its first record, and the records.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Sequence number of the first record.
    pub first_seq: u64,
    /// In the order of their numbers.
    pub records: Vec<RecordView<'a>>,
}

/// Decodes a whole batch stream, its kind byte included.
///
/// # Errors
/// [`CodecError`] when anything is out of bounds, missing or left over.
pub fn decode_batch(bytes: &[u8]) -> Result<Batch<'_>, CodecError> {
    let mut reader = Reader { bytes, at: 0 };
    if bytes.len() > TRAJECTORY_BATCH_BYTES_MAX {
        return Err(CodecError::TooLarge {
            what: "trajectory batch",
            got: bytes.len() as u64,
            max: TRAJECTORY_BATCH_BYTES_MAX as u64,
        });
    }
    let kind = reader.take(1)?[0];
    if kind != BulkKind::Trajectories as u8 {
        return Err(reader.malformed(format!("bulk kind {kind}")));
    }
    let first_seq = u64::from(le_u32(reader.take(4)?)) | (u64::from(le_u32(reader.take(4)?)) << 32);
    let count = reader.bounded_u32("trajectory batch", TRAJECTORY_BATCH_BYTES_MAX)?;
    let mut records = Vec::new();
    for _ in 0..count {
        let view = RecordView::parse(&bytes[reader.at..])?;
        reader.at += view.bytes.len();
        records.push(view);
    }
    if reader.at == bytes.len() {
        Ok(Batch { first_seq, records })
    } else {
        Err(CodecError::Trailing {
            what: "trajectory batch",
            used: reader.at,
            len: bytes.len(),
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let end = self
            .at
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed(format!("{len} bytes due at {}", self.at)))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn bounded_u32(&mut self, what: &'static str, max: usize) -> Result<usize, CodecError> {
        let got = le_u32(self.take(4)?) as usize;
        if got <= max {
            Ok(got)
        } else {
            Err(CodecError::TooLarge {
                what,
                got: got as u64,
                max: max as u64,
            })
        }
    }

    fn malformed(&self, reason: String) -> CodecError {
        CodecError::Malformed {
            what: "trajectory",
            len: self.bytes.len(),
            reason,
        }
    }
}

/// Of exactly four bytes, as `chunks_exact(4)` and `take(4)` give them.
fn le_u32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{Epoch, JobId, PeerId, RolloutId};

    fn sample(n: usize) -> Trajectory {
        let rollout = RolloutId {
            job: JobId(9),
            index: 4,
        };
        Trajectory {
            header: TrajectoryHeader {
                attempt: AttemptId {
                    rollout,
                    epoch: Epoch(2),
                    number: 1,
                },
                worker: PeerId(3),
                instance: 4,
                version: None,
                numerics: "cpu-f32-1".into(),
                reward: 0.5,
                metrics: BTreeMap::from([("format_ok".into(), 1.0)]),
                turns: 1,
                truncated: false,
                transcript: vec![("user".into(), "1+1=".into())],
                episode_ms: 12,
            },
            tokens: (0..n as u32).collect(),
            logprobs: (0..n).map(|i| -(i as f32)).collect(),
            sampled: vec![1; n],
        }
    }

    #[test]
    fn batches_round_trip_and_every_cut_is_an_error() {
        let records = [sample(0), sample(5)];
        let encoded: Vec<_> = records.iter().map(Trajectory::encode).collect();
        let bytes = encode_batch(77, &encoded);
        let batch = decode_batch(&bytes).expect("own bytes");
        assert_eq!(batch.first_seq, 77);
        let whole: Vec<&[u8]> = batch.records.iter().map(|view| view.bytes).collect();
        assert_eq!(whole, encoded);
        let decoded = batch.records.into_iter().map(RecordView::into_trajectory);
        assert!(decoded.eq(records));
        for cut in 0..bytes.len() {
            assert!(decode_batch(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_batch(&bytes);
            let _ = Trajectory::decode(&bytes);
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0usize..300, bit in 0u8..8) {
            let mut bytes = encode_batch(1, &[sample(7).encode()]);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = decode_batch(&bytes);
        }
    }
}
