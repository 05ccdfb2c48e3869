//! Client or monitor ↔ coordinator, on the control stream.
//!
//! ```text
//! client                                coordinator
//!    | -- ClientRequest{id, body} -------> |
//!    | <------------- ClientReply{id} ---- |   one for each request, in any order
//! ```
//!
//! Everything that flows is pulled: results by cursor, snapshots and run progress by long poll. A
//! slow reader therefore costs nobody anything, and a client that dies and comes back, or whose
//! coordinator was restarted, goes on where it was by repeating its last request.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::Trajectory;
use crate::adapter::AdapterEntry;
use crate::codec::{self, Blob, CodecError, FrameKind, Message};
use crate::dead::DeadLetter;
use crate::fault::Fault;
use crate::ids::{JobId, RunId};
use crate::job::{Extent, JobSpec};
use crate::run::{RunState, RunSummary, StepReport};
use crate::snapshot::{ClusterSnapshot, JobSummary};

/// A question, with the number that its answer will carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRequest {
    /// Chosen by the client, unique among its open requests.
    pub id: u32,
    /// What is asked.
    pub body: RequestBody,
}

/// What a client can ask. Monitors may not send what changes something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "requests are few and short-lived; a box would only be in the way of matching"
)]
pub enum RequestBody {
    /// Make a job durable. Answer: `Accepted`.
    Submit(JobSpec),
    /// Add to an open queue. Answer: `Accepted`.
    Put {
        /// Which queue.
        job: JobId,
        /// What to add.
        extent: Extent,
    },
    /// All jobs. Answer: `Jobs`.
    JobList,
    /// One job. Answer: `Jobs` with one entry.
    JobShow(JobId),
    /// Close what is open as failed. Answer: `Done`.
    JobCancel(JobId),
    /// Settled rollouts of a relay job, in the order in which they were settled. Answer: `Results`.
    Results {
        /// Which job.
        job: JobId,
        /// 0 at first, then `next_cursor` of the last answer.
        cursor: u64,
        /// Wait up to this long when there is nothing new.
        wait_ms: u64,
    },
    /// The cluster. Answer: `Snapshot`.
    Snapshot,
    /// All runs. Answer: `Runs`.
    RunList,
    /// Progress of a run. Answer: `Progress`.
    RunProgress {
        /// Which run.
        run: RunId,
        /// Reports with a larger step are wanted.
        after_step: u64,
        /// Wait up to this long when there is nothing new and the run trains.
        wait_ms: u64,
    },
    /// Versions of a run. Answer: `Adapters`.
    AdapterList(RunId),
    /// Forget a version and delete its bytes. Answer: `Done`.
    AdapterDelete {
        /// Which run.
        run: RunId,
        /// Which version.
        step: u64,
    },
    /// Rollouts of a job that were given up. Answer: `DeadLetters`.
    DeadLetters(JobId),
    /// Try dead letters of a relay job anew, in a job of their own. Answer: `Accepted`; repeated
    /// under the same id it adds nothing.
    JobRetry {
        /// Whose.
        job: JobId,
        /// The new job, chosen by the client.
        retry: JobId,
        /// Which rollouts, at most [`crate::limits::DEAD_LETTERS_PER_JOB_MAX`]; none: every dead
        /// letter that was not tried anew yet.
        indices: Vec<u64>,
    },
    /// Add to an open queue, with a payload for each group. Answer: `Accepted`.
    PutPayloads {
        /// Which queue.
        job: JobId,
        /// What to add.
        extent: Extent,
        /// One payload for each group of the extent ([`crate::Payloads`]).
        payloads: Blob,
    },
    /// As `Results`, for a client on the coordinator's own machine: where they stand in which
    /// file. Answer: `ResultsNear`, or `Results` where files are not shared.
    ResultsNear {
        /// Which job.
        job: JobId,
        /// 0 at first, then `upto` of the last answer.
        cursor: u64,
        /// Wait up to this long when there is nothing new.
        wait_ms: u64,
    },
}

impl RequestBody {
    /// Does it only read? A monitor's certificate allows nothing else.
    #[must_use]
    pub const fn reads_only(&self) -> bool {
        !matches!(
            self,
            Self::Submit(_)
                | Self::Put { .. }
                | Self::PutPayloads { .. }
                | Self::JobCancel(_)
                | Self::AdapterDelete { .. }
                | Self::JobRetry { .. }
        )
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientReply {
    /// Number of the question.
    pub id: u32,
    /// The answer.
    pub body: ReplyBody,
}

/// What a coordinator can answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ReplyBody {
    /// The job or extent is durable.
    Accepted {
        /// Which job.
        job: JobId,
        /// It was known already.
        existed: bool,
    },
    /// Jobs.
    Jobs(Vec<JobSummary>),
    /// It is done.
    Done,
    /// A page of results.
    Results(ResultPage),
    /// The cluster.
    Snapshot(Box<ClusterSnapshot>),
    /// Runs.
    Runs(Vec<RunSummary>),
    /// Progress of a run.
    Progress {
        /// Reports, oldest first; at most 200, and as many as
        /// [`crate::limits::PAGED_REPLY_BYTES_MAX`] holds.
        reports: Vec<StepReport>,
        /// Where the run stands.
        state: RunState,
    },
    /// Versions, oldest first.
    Adapters {
        /// Versions.
        entries: Vec<AdapterEntry>,
        /// The learner that has them, when it is connected.
        source: Option<SocketAddr>,
    },
    /// It did not happen.
    Fault(Fault),
    /// Rollouts that were given up: the newest of them, oldest first.
    DeadLetters(Vec<DeadLetter>),
    /// It did not happen because a bound is reached; after a while it may.
    Busy {
        /// Which bound.
        fault: Fault,
        /// Asking again before then is of no use.
        retry_after_ms: u64,
    },
    /// Results are in a segment file of this machine, durable from the cursor to here.
    ResultsNear {
        /// The file; who may read it, may have the results.
        path: String,
        /// Where to go on; equal to the cursor when there is nothing new.
        upto: u64,
        /// The job is closed and nothing follows.
        complete: bool,
    },
}

/// Settled rollouts of a relay job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultPage {
    /// Records ([`ResultRecord`]), each behind a u32 length; at most
    /// [`crate::limits::RESULT_PAGE_BYTES_MAX`] bytes.
    pub records: Blob,
    /// Where to go on.
    pub next_cursor: u64,
    /// The job is closed and nothing follows this page.
    pub complete: bool,
}

/// One settled rollout, as the relay keeps it.
///
/// ```text
/// record = [u8 tag = 0][trajectory record]   or   [u8 tag = 1][u64 index, Fault]
/// page   = ([u32 record length][record])*
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum ResultRecord {
    /// It produced a trajectory.
    Finished(Box<Trajectory>),
    /// It failed for good.
    Failed {
        /// Which one.
        index: u64,
        /// Why.
        fault: Fault,
    },
}

impl ResultRecord {
    /// Tag of a finished rollout; the bytes of its trajectory follow as the worker wrote them.
    pub const FINISHED: u8 = 0;

    /// Tag of a failed rollout.
    pub const FAILED: u8 = 1;

    /// Which rollout of its job it settles.
    #[must_use]
    pub fn index(&self) -> u64 {
        match self {
            Self::Finished(trajectory) => trajectory.header.attempt.rollout.index,
            Self::Failed { index, .. } => *index,
        }
    }

    /// The record as bytes, without the length that precedes it in a page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Finished(trajectory) => {
                bytes.push(Self::FINISHED);
                trajectory.encode_into(&mut bytes);
            }
            Self::Failed { index, fault } => {
                bytes.push(Self::FAILED);
                codec::encode_into(&(index, fault), &mut bytes);
            }
        }
        bytes
    }

    /// Decodes exactly one record.
    ///
    /// # Errors
    /// [`CodecError`] when the tag is unknown, the rest is malformed or bytes are left over.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let (tag, rest) = bytes
            .split_first()
            .ok_or_else(|| malformed(bytes, "it is empty"))?;
        match *tag {
            Self::FINISHED => {
                let (trajectory, used) = Trajectory::decode(rest)?;
                if used == rest.len() {
                    Ok(Self::Finished(Box::new(trajectory)))
                } else {
                    Err(malformed(rest, "bytes follow its end"))
                }
            }
            Self::FAILED => {
                let (index, fault) = codec::decode(rest)?;
                Ok(Self::Failed { index, fault })
            }
            _ => Err(malformed(bytes, "its tag is unknown")),
        }
    }
}

impl ResultPage {
    /// Appends an encoded record to the bytes of a page.
    pub fn push_record(records: &mut Vec<u8>, record: &[u8]) {
        records.extend_from_slice(&(record.len() as u32).to_le_bytes());
        records.extend_from_slice(record);
    }

    /// The records of this page, in the order in which they were settled.
    ///
    /// # Errors
    /// [`CodecError`] when a length or a record is malformed.
    pub fn decode_records(&self) -> Result<Vec<ResultRecord>, CodecError> {
        let mut rest = self.records.0.as_slice();
        let mut records = Vec::new();
        while !rest.is_empty() {
            let cut = rest
                .split_first_chunk::<4>()
                .and_then(|(len, tail)| tail.split_at_checked(u32::from_le_bytes(*len) as usize));
            let (record, tail) = cut.ok_or_else(|| malformed(rest, "it is cut short"))?;
            records.push(ResultRecord::decode(record)?);
            rest = tail;
        }
        Ok(records)
    }
}

fn malformed(bytes: &[u8], reason: &str) -> CodecError {
    CodecError::Malformed {
        what: "result record",
        len: bytes.len(),
        reason: reason.to_owned(),
    }
}

impl Message for ClientRequest {
    const KIND: FrameKind = FrameKind::ClientRequest;
}

impl Message for ClientReply {
    const KIND: FrameKind = FrameKind::ClientReply;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fault::ErrorCode;
    use crate::ids::{AttemptId, Epoch, PeerId, RolloutId};
    use crate::trajectory::TrajectoryHeader;

    fn finished(index: u64) -> ResultRecord {
        let job = JobId(5);
        let attempt = AttemptId {
            rollout: RolloutId { job, index },
            epoch: Epoch(1),
            number: 1,
        };
        let header = TrajectoryHeader {
            attempt,
            worker: PeerId(3),
            instance: index,
            version: None,
            numerics: "cpu-f32-1".into(),
            reward: 0.5,
            metrics: [("format_ok".to_owned(), 1.0)].into(),
            turns: 1,
            truncated: false,
            transcript: vec![("user".into(), "1+1=".into())],
            episode_ms: 12,
        };
        ResultRecord::Finished(Box::new(Trajectory {
            header,
            tokens: vec![1, 2],
            logprobs: vec![0.0, -0.5],
            sampled: vec![0, 1],
        }))
    }

    fn failed(index: u64) -> ResultRecord {
        let fault = Fault::new(ErrorCode::EnvPanic, "divided by zero").with_hint("do not");
        ResultRecord::Failed { index, fault }
    }

    fn page(records: &[ResultRecord]) -> ResultPage {
        let mut bytes = Vec::new();
        for record in records {
            ResultPage::push_record(&mut bytes, &record.encode());
        }
        ResultPage {
            records: Blob(bytes),
            ..ResultPage::default()
        }
    }

    #[test]
    fn records_of_a_page_round_trip_and_every_cut_is_an_error() {
        let records = [finished(7), failed(8)];
        let whole = page(&records);
        assert_eq!(whole.decode_records().expect("own bytes"), records);
        assert_eq!(records.each_ref().map(ResultRecord::index), [7, 8]);
        let first = 4 + records[0].encode().len();
        for cut in (1..whole.records.0.len()).filter(|cut| *cut != first) {
            let records = Blob(whole.records.0[..cut].to_vec());
            let short = ResultPage {
                records,
                ..ResultPage::default()
            };
            assert!(short.decode_records().is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn tags_are_frozen_and_what_follows_a_record_is_refused() {
        assert_eq!(finished(0).encode()[0], 0);
        let bytes = failed(0x0102).encode();
        assert_eq!(bytes[..9], [1, 2, 1, 0, 0, 0, 0, 0, 0]);
        for record in [finished(1), failed(1)] {
            let longer = [record.encode(), vec![0]].concat();
            assert!(ResultRecord::decode(&longer).is_err());
        }
        assert!(ResultRecord::decode(&[]).is_err());
        assert!(ResultRecord::decode(&[2, 0]).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ResultRecord::decode(&bytes);
            let records = Blob(bytes);
            let _ = ResultPage { records, ..ResultPage::default() }.decode_records();
        }

        #[test]
        fn flipped_bits_never_panic(at in 0usize..400, bit in 0u8..8) {
            let mut page = page(&[finished(1), failed(2)]);
            let at = at % page.records.0.len();
            page.records.0[at] ^= 1 << bit;
            let _ = page.decode_records();
        }
    }
}
