//! Results of a job, pulled page by page.
//!
//! While the caller works on one page the next is already asked for. The cursor belongs to the
//! coordinator's files, so a page that was under way when the coordinator died is asked for again
//! and brings the same records: each rollout comes exactly once.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use tokio::sync::oneshot;
use volley_protocol::client::{ReplyBody, RequestBody, ResultPage, ResultRecord};
use volley_protocol::{ErrorCode, Fault, JobId, RangeSet};

use crate::client::Client;
use crate::driver::Answer;
use crate::faults;
use crate::near::NearFile;

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
    /// Results are asked for where they are, rather than over the network.
    near: bool,
    /// Where there are some.
    file: Option<NearFile>,
    /// Nothing follows the file.
    last: bool,
    /// Finished rollouts that are still wanted; `None` when all are.
    wanted: Option<u64>,
    ended: bool,
}

impl ResultStream {
    pub(crate) fn new(client: Client, job: JobId, wait_ms: u64) -> Self {
        Self {
            near: client.near,
            file: None,
            last: false,
            client,
            job,
            cursor: 0,
            wait_ms,
            ready: VecDeque::new(),
            asked: None,
            seen: RangeSet::new(),
            wanted: None,
            ended: false,
        }
    }

    /// Ends after this many finished rollouts, in the order in which they were settled; 0 is no
    /// bound. A job that takes a few may have a few more, which were delivered in the same moment.
    #[must_use]
    pub fn first(mut self, finished: u64) -> Self {
        self.wanted = (finished > 0).then_some(finished);
        self
    }

    /// Which job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Is a result at hand, so that [`ResultStream::next`] will not wait?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty() && self.wanted != Some(0)
    }

    /// The next result; `None` when every rollout of the job has come. Cancel-safe.
    ///
    /// # Errors
    /// `NOT_FOUND`, `COORDINATOR_UNREACHABLE`, or `INTERNAL` when a rollout came twice. After an
    /// error the same page is asked for again.
    pub async fn next(&mut self) -> Result<Option<ResultRecord>, Fault> {
        loop {
            if self.wanted == Some(0) {
                return Ok(None);
            }
            if let Some(record) = self.ready.pop_front() {
                if let (Some(wanted), ResultRecord::Finished(_)) = (&mut self.wanted, &record) {
                    *wanted -= 1;
                }
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    async fn turn_page(&mut self) -> Result<(), Fault> {
        if let Some(file) = &mut self.file {
            match file.next_page() {
                Ok(records) => return self.take_near(records),
                Err(fault) => {
                    // What follows is asked for over the network, from where this page began.
                    tracing::warn!(%fault, "results cannot be read from their file");
                    self.cursor = file.at();
                    (self.file, self.near, self.asked, self.last) = (None, false, None, false);
                }
            }
        }
        if self.asked.is_none() {
            self.ask().await;
        }
        let Some(asked) = &mut self.asked else {
            return Ok(());
        };
        let answer = self.client.finish(asked, self.wait_ms).await;
        self.asked = None;
        match answer? {
            ReplyBody::Results(page) => self.take_page(&page).await,
            ReplyBody::ResultsNear {
                path,
                upto,
                complete,
            } => self.take_place(&path, upto, complete).await,
            _ => Err(faults::unexpected("page of results")),
        }
    }

    async fn take_page(&mut self, page: &ResultPage) -> Result<(), Fault> {
        let records = page
            .decode_records()
            .map_err(|error| faults::decode(&error))?;
        let waits = self.wait_ms > 0;
        self.ended = page.complete || (!waits && records.is_empty());
        self.cursor = page.next_cursor;
        self.make_ready(records)?;
        if !self.ended {
            self.ask().await;
        }
        Ok(())
    }

    /// The results up to `upto` are in a file of this machine.
    async fn take_place(&mut self, path: &str, upto: u64, complete: bool) -> Result<(), Fault> {
        let waits = self.wait_ms > 0;
        if upto <= self.cursor {
            self.ended = complete || !waits;
        } else {
            match NearFile::open(Path::new(path), self.cursor, upto) {
                Ok(file) => {
                    (self.file, self.cursor, self.last) = (Some(file), upto, complete);
                }
                Err(error) => {
                    // Another container or another user: it still comes over the network.
                    tracing::debug!(%error, "results are not read from their file");
                    self.near = false;
                }
            }
        }
        if !self.ended && !self.last {
            self.ask().await;
        }
        Ok(())
    }

    fn take_near(&mut self, records: Vec<ResultRecord>) -> Result<(), Fault> {
        if self.file.as_ref().is_some_and(NearFile::is_read) {
            self.file = None;
            self.ended = self.last;
        }
        self.make_ready(records)
    }

    fn make_ready(&mut self, records: Vec<ResultRecord>) -> Result<(), Fault> {
        for index in records.iter().map(ResultRecord::index) {
            if !self.seen.insert(index) {
                let message = format!("rollout {index} of job {} came twice", self.job);
                return Err(Fault::new(ErrorCode::Internal, message));
            }
        }
        self.ready = records.into();
        Ok(())
    }

    /// Asks for what follows the cursor; the answer may come while this page is worked on.
    async fn ask(&mut self) {
        let (job, cursor, wait_ms) = (self.job, self.cursor, self.wait_ms);
        let body = if self.near {
            RequestBody::ResultsNear {
                job,
                cursor,
                wait_ms,
            }
        } else {
            RequestBody::Results {
                job,
                cursor,
                wait_ms,
            }
        };
        self.asked = Some(self.client.begin(body).await);
    }
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
pub(crate) fn size_of_record(record: &ResultRecord) -> usize {
    match record {
        ResultRecord::Finished(trajectory) => {
            let texts = trajectory.header.transcript.iter();
            let said: usize = texts.map(|(role, text)| role.len() + text.len()).sum();
            512 + said + trajectory.tokens.len() * 9
        }
        ResultRecord::Failed { fault, .. } => 128 + fault.message.len() + fault.hint.len(),
    }
}
