//! Results of a job, pulled page by page.
//!
//! While the caller works on one page the next is already asked for. The cursor belongs to the
//! coordinator's files, so a page that was under way when the coordinator died is asked for again
//! and brings the same records: each rollout comes exactly once.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;
use volley_protocol::client::{ReplyBody, RequestBody, ResultRecord};
use volley_protocol::{ErrorCode, Fault, JobId, RangeSet};

use crate::client::Client;
use crate::driver::Answer;
use crate::faults;

/// Bytes of results that [`OrderedResults`] holds back for an earlier one.
pub const REORDER_BYTES_MAX: usize = 1 << 30;

/// Results in the order in which they were settled.
#[derive(Debug)]
pub struct ResultStream {
    client: Client,
    job: JobId,
    cursor: u64,
    wait_ms: u64,
    ready: VecDeque<ResultRecord>,
    asked: Option<oneshot::Receiver<Answer>>,
    seen: RangeSet,
    ended: bool,
}

impl ResultStream {
    pub(crate) fn new(client: Client, job: JobId, wait_ms: u64) -> Self {
        Self {
            client,
            job,
            cursor: 0,
            wait_ms,
            ready: VecDeque::new(),
            asked: None,
            seen: RangeSet::new(),
            ended: false,
        }
    }

    /// Which job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Is a result at hand, so that [`ResultStream::next`] will not wait?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next result; `None` when every rollout of the job has come. Cancel-safe.
    ///
    /// # Errors
    /// `NOT_FOUND`, `COORDINATOR_UNREACHABLE`, or `INTERNAL` when a rollout came twice. After an
    /// error the same page is asked for again.
    pub async fn next(&mut self) -> Result<Option<ResultRecord>, Fault> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    async fn turn_page(&mut self) -> Result<(), Fault> {
        let asked = match &mut self.asked {
            Some(asked) => asked,
            none => none.insert(ask(&self.client, self.job, self.cursor, self.wait_ms).await),
        };
        let answer = self.client.finish(asked, self.wait_ms).await;
        self.asked = None;
        let ReplyBody::Results(page) = answer? else {
            return Err(faults::unexpected("page of results"));
        };
        let records = page
            .decode_records()
            .map_err(|error| faults::decode(&error))?;
        for index in records.iter().map(ResultRecord::index) {
            if !self.seen.insert(index) {
                let message = format!("rollout {index} of job {} came twice", self.job);
                return Err(Fault::new(ErrorCode::Internal, message));
            }
        }
        let waits = self.wait_ms > 0;
        self.ended = page.complete || (!waits && records.is_empty());
        self.cursor = page.next_cursor;
        self.ready = records.into();
        if !self.ended {
            self.asked = Some(ask(&self.client, self.job, self.cursor, self.wait_ms).await);
        }
        Ok(())
    }
}

async fn ask(client: &Client, job: JobId, cursor: u64, wait_ms: u64) -> oneshot::Receiver<Answer> {
    let body = RequestBody::Results {
        job,
        cursor,
        wait_ms,
    };
    client.begin(body).await
}

/// Results by index. One that comes early is held until those before it have come.
#[derive(Debug)]
pub struct OrderedResults {
    stream: ResultStream,
    held: BTreeMap<u64, ResultRecord>,
    held_bytes: usize,
    next_index: u64,
    drained: bool,
}

impl OrderedResults {
    /// Puts the rest of a stream into order; nothing may have been taken from it.
    #[must_use]
    pub fn new(stream: ResultStream) -> Self {
        Self {
            stream,
            held: BTreeMap::new(),
            held_bytes: 0,
            next_index: 0,
            drained: false,
        }
    }

    /// Is the next result at hand?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let due = self.held.first_key_value().map(|(index, _)| *index);
        due.is_some_and(|index| self.drained || index == self.next_index)
    }

    /// The result with the next index. A cancelled job has gaps; they are passed over at its end.
    ///
    /// # Errors
    /// As [`ResultStream::next`], and `QUEUE_FULL` when more than [`REORDER_BYTES_MAX`] wait.
    pub async fn next(&mut self) -> Result<Option<ResultRecord>, Fault> {
        loop {
            if self.is_ready() {
                return Ok(self.take_first());
            }
            if self.drained {
                return Ok(None);
            }
            match self.stream.next().await? {
                Some(record) => self.hold(record)?,
                None => self.drained = true,
            }
        }
    }

    fn hold(&mut self, record: ResultRecord) -> Result<(), Fault> {
        self.held_bytes += size_of_record(&record);
        self.held.insert(record.index(), record);
        if self.held_bytes <= REORDER_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "{} results wait for rollout {}, more than {} MiB",
            self.held.len(),
            self.next_index,
            REORDER_BYTES_MAX >> 20
        );
        Err(Fault::new(ErrorCode::QueueFull, message)
            .with_hint("take results as they complete: leave out --ordered"))
    }

    fn take_first(&mut self) -> Option<ResultRecord> {
        let (index, record) = self.held.pop_first()?;
        self.held_bytes -= size_of_record(&record);
        self.next_index = index + 1;
        Some(record)
    }
}

/// What a record roughly takes in memory.
fn size_of_record(record: &ResultRecord) -> usize {
    match record {
        ResultRecord::Finished(trajectory) => {
            let texts = trajectory.header.transcript.iter();
            let said: usize = texts.map(|(role, text)| role.len() + text.len()).sum();
            512 + said + trajectory.tokens.len() * 9
        }
        ResultRecord::Failed { fault, .. } => 128 + fault.message.len() + fault.hint.len(),
    }
}
