//! Many payloads into a queue, fast and once: gathered into few requests, several of them under
//! way at a time.
//!
//! ```text
//! push* ──> gathered ──(64 KiB, or flush)──> under way ──(accepted)──> counted
//!                                               ▲   │ queue is full
//!                                               └───┘ after the coordinator's own wait
//! ```
//!
//! Every request has an id of its own under which the coordinator knows it again, so that a lost
//! session, a restarted coordinator or a full queue adds nothing twice.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use volley_protocol::client::RequestBody;
use volley_protocol::job::Extent;
use volley_protocol::limits::PAYLOAD_BYTES_MAX;
use volley_protocol::payload::PayloadWriter;
use volley_protocol::{ErrorCode, Fault, JobId};

use crate::client::Client;
use crate::driver::Answer;
use crate::requests::accepted;

/// Payloads are gathered up to this size before they leave. Larger requests are hardly faster and
/// make whoever shares the session wait.
const REQUEST_BYTES: usize = 64 << 10;

/// Requests under way: enough to keep a coordinator busy while its disk syncs the ones before.
const UNDER_WAY_MAX: usize = 32;

/// Puts payloads into a queue. What was pushed is durable when [`Putter::finish`] returns; one
/// that is dropped before leaves some of it behind.
#[derive(Debug)]
pub struct Putter {
    client: Client,
    job: JobId,
    group_size: u64,
    next_instance: u64,
    gathered: PayloadWriter,
    under_way: VecDeque<UnderWay>,
    accepted: u64,
}

/// A request without an answer.
#[derive(Debug)]
struct UnderWay {
    body: RequestBody,
    payloads: u64,
    answered: oneshot::Receiver<Answer>,
}

impl Putter {
    pub(crate) fn new(client: Client, job: JobId, group_size: u32) -> Self {
        Self {
            client,
            job,
            group_size: u64::from(group_size),
            next_instance: 0,
            gathered: PayloadWriter::default(),
            under_way: VecDeque::new(),
            accepted: 0,
        }
    }

    /// Adds a payload: one group of rollouts that get it. The groups' instances count from 0.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when it is longer than [`PAYLOAD_BYTES_MAX`]; what became of an earlier
    /// request: `QUEUE_FULL` when there was no room for too long, `JOB_CANCELLED`, …
    pub async fn push(&mut self, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            let message = format!(
                "a payload has {} bytes, at most {PAYLOAD_BYTES_MAX} are allowed",
                payload.len()
            );
            return Err(Fault::new(ErrorCode::InvalidRequest, message)
                .with_hint("put the path of a file instead of what is in it"));
        }
        if !self.gathered.push(payload) {
            self.flush().await?;
            let fits = self.gathered.push(payload);
            debug_assert!(fits, "an empty request takes any payload");
        }
        if self.gathered.size_bytes() >= REQUEST_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what was gathered, without waiting until it is durable.
    ///
    /// # Errors
    /// As [`Putter::push`].
    pub async fn flush(&mut self) -> Result<(), Fault> {
        let payloads = self.gathered.count() as u64;
        if payloads == 0 {
            return Ok(());
        }
        while self.under_way.len() >= UNDER_WAY_MAX {
            self.settle_oldest().await?;
        }
        let extent = Extent {
            put: rand::random(),
            first_instance: self.next_instance,
            rollouts: payloads * self.group_size,
        };
        self.next_instance += payloads;
        let body = RequestBody::PutPayloads {
            job: self.job,
            extent,
            payloads: self.gathered.take(),
        };
        let answered = self.client.begin(body.clone()).await;
        self.under_way.push_back(UnderWay {
            body,
            payloads,
            answered,
        });
        Ok(())
    }

    /// Sends the rest and waits until all of it is durable. Tells how many payloads were put.
    ///
    /// # Errors
    /// As [`Putter::push`].
    pub async fn finish(mut self) -> Result<u64, Fault> {
        self.flush().await?;
        while !self.under_way.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(self.accepted)
    }

    async fn settle_oldest(&mut self) -> Result<(), Fault> {
        let Some(mut oldest) = self.under_way.pop_front() else {
            return Ok(());
        };
        let answer = self.client.finish(&mut oldest.answered, 0).await?;
        accepted(self.client.be_patient(oldest.body, answer).await?)?;
        self.accepted += oldest.payloads;
        Ok(())
    }
}
