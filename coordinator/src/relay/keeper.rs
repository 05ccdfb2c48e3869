//! The relay's thread: files, sequence numbers, questions that wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use volley_coordinator_core::{Input, SessionId};
use volley_protocol::client::{ClientReply, ReplyBody, ResultPage, ResultRecord};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::limits::{BATCH_ENTRIES_MAX, POLL_WAIT_MS_MAX, RESULT_PAGE_BYTES_MAX};
use volley_protocol::trajectory;
use volley_protocol::worker::ToWorker;
use volley_protocol::{AttemptId, Epoch, JobId, RangeSet, RolloutId};
use volley_runtime::segment::{SEGMENT_START, SegmentError, SegmentReader, SegmentWriter};

use super::RelayRequest;
use crate::outbound::{Outbound, Outgoing};

/// Batches that share one sync.
const BATCHES_PER_SYNC_MAX: usize = 32;

/// A question that waits for news.
#[derive(Debug)]
struct Waiting {
    session: SessionId,
    id: u32,
    job: JobId,
    cursor: u64,
    until: Instant,
}

/// One job's results.
#[derive(Debug, Default)]
struct JobResults {
    writer: Option<SegmentWriter>,
    settled: RangeSet,
    /// Rollouts that were durable when this life began.
    known: u64,
    complete: bool,
}

pub(super) struct Keeper {
    directory: PathBuf,
    epoch: Epoch,
    jobs: BTreeMap<JobId, JobResults>,
    /// Sequence numbers each worker session has delivered.
    sessions: BTreeMap<SessionId, RangeSet>,
    waiting: Vec<Waiting>,
    outbound: Outbound,
}

/// What one round of requests changed.
#[derive(Default)]
struct Round {
    settled: Vec<RolloutId>,
    touched: Vec<JobId>,
    delivered: Vec<SessionId>,
    restored: Vec<Input>,
}

impl Keeper {
    pub(super) fn new(directory: &Path, epoch: Epoch, outbound: Outbound) -> Result<Self, Fault> {
        std::fs::create_dir_all(directory).map_err(|error| store_fault(directory, &error))?;
        let (jobs, sessions, waiting) = Default::default();
        Ok(Self {
            directory: directory.to_owned(),
            epoch,
            jobs,
            sessions,
            waiting,
            outbound,
        })
    }

    pub(super) fn run(
        &mut self,
        requests: &mpsc::Receiver<RelayRequest>,
        to_core: &impl Fn(Input),
    ) -> Result<(), Fault> {
        loop {
            let first = match requests.recv_timeout(self.patience()) {
                Ok(request) => Some(request),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut round = Round::default();
            for request in first
                .into_iter()
                .chain(requests.try_iter().take(BATCHES_PER_SYNC_MAX))
            {
                self.take(request, &mut round)?;
            }
            round.restored.drain(..).for_each(to_core);
            self.settle(round, to_core)?;
            self.answer_waiting();
        }
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let soonest = self
            .waiting
            .iter()
            .map(|w| w.until.saturating_duration_since(now))
            .min();
        soonest.unwrap_or(Duration::from_secs(60))
    }

    fn take(&mut self, request: RelayRequest, round: &mut Round) -> Result<(), Fault> {
        match request {
            RelayRequest::Open { job, known } => round.restored.push(self.open(job, known)?),
            RelayRequest::Store { session, batch } => self.store(session, &batch, round)?,
            RelayRequest::Failed { rollout, fault } => {
                let record = ResultRecord::Failed {
                    index: rollout.index,
                    fault,
                }
                .encode();
                self.append(rollout, &record, round)?;
            }
            RelayRequest::Complete(job) => {
                if let Some(results) = self.jobs.get_mut(&job) {
                    results.complete = true;
                }
            }
            RelayRequest::Expire(job) => {
                self.jobs.remove(&job);
                let _ = std::fs::remove_file(self.path(job));
            }
            RelayRequest::Query {
                session,
                id,
                job,
                cursor,
                wait_ms,
            } => {
                let wait = Duration::from_millis(wait_ms.min(POLL_WAIT_MS_MAX));
                let until = Instant::now() + wait;
                self.waiting.push(Waiting {
                    session,
                    id,
                    job,
                    cursor,
                    until,
                });
            }
            RelayRequest::SessionGone(session) => {
                self.sessions.remove(&session);
                self.waiting.retain(|waiting| waiting.session != session);
            }
        }
        Ok(())
    }

    fn store(&mut self, session: SessionId, batch: &[u8], round: &mut Round) -> Result<(), Fault> {
        let decoded = match trajectory::decode_batch(batch) {
            Ok(decoded) => decoded,
            Err(error) => {
                let fault = Fault::new(ErrorCode::DecodeError, error.to_string());
                self.outbound.close(session, &fault);
                return Ok(());
            }
        };
        let count = decoded.records.len() as u64;
        for (trajectory, bytes) in decoded.records {
            let attempt = trajectory.header.attempt;
            if !self.is_known(attempt) {
                // Of an extent that a crash took back before it was synced, or of no job at all:
                // acknowledged, so that the worker frees it, but not kept.
                continue;
            }
            if trajectory.header.reward.is_finite() {
                let mut record = Vec::with_capacity(bytes.len() + 1);
                record.push(ResultRecord::FINISHED);
                record.extend_from_slice(bytes);
                self.append(attempt.rollout, &record, round)?;
            } else {
                // A worker checks rewards; one that lets this through is not to be believed.
                let fault = Fault::new(ErrorCode::RewardInvalid, "a reward is not finite");
                self.outbound.close(session, &fault);
            }
        }
        let delivered = self.sessions.entry(session).or_default();
        delivered.insert_range(decoded.first_seq, decoded.first_seq.saturating_add(count));
        round.delivered.push(session);
        Ok(())
    }

    /// Appends a record unless its rollout is settled already.
    fn append(
        &mut self,
        rollout: RolloutId,
        record: &[u8],
        round: &mut Round,
    ) -> Result<(), Fault> {
        let path = self.path(rollout.job);
        let Some(results) = self.jobs.get_mut(&rollout.job) else {
            return Ok(());
        };
        if results.settled.insert(rollout.index) {
            let writer = match &mut results.writer {
                Some(writer) => writer,
                empty => empty.insert(open(&path)?),
            };
            writer
                .append(record)
                .map_err(|error| store_fault(&path, &error))?;
            round.touched.push(rollout.job);
        }
        round.settled.push(rollout);
        Ok(())
    }

    /// Syncs what the round wrote, and only then tells anybody.
    fn settle(&mut self, mut round: Round, to_core: &impl Fn(Input)) -> Result<(), Fault> {
        round.touched.sort_unstable();
        round.touched.dedup();
        for job in round.touched {
            let path = self.path(job);
            if let Some(writer) = self.jobs.get_mut(&job).and_then(|r| r.writer.as_mut()) {
                writer.sync().map_err(|error| store_fault(&path, &error))?;
            }
        }
        for entries in round.settled.chunks(BATCH_ENTRIES_MAX) {
            to_core(Input::RelaySettled {
                entries: entries.to_vec(),
            });
        }
        round.delivered.sort_unstable();
        round.delivered.dedup();
        for session in round.delivered {
            if let Some(delivered) = self.sessions.get(&session) {
                // Sequence numbers begin at 1; bulk streams may finish out of order.
                let upto = delivered.first_gap(1) - 1;
                self.outbound
                    .send(&Outgoing::worker(session, &ToWorker::Delivered { upto }));
            }
        }
        Ok(())
    }

    fn answer_waiting(&mut self) {
        let now = Instant::now();
        let mut still = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let body = match self.page(waiting.job, waiting.cursor) {
                Ok(page) if page.records.0.is_empty() && !page.complete && now < waiting.until => {
                    still.push(waiting);
                    continue;
                }
                Ok(page) => ReplyBody::Results(page),
                // A cursor that points nowhere is the client's mistake; the file is as it was.
                Err(error) => {
                    let message = format!("cursor {}: {error}", waiting.cursor);
                    ReplyBody::Fault(Fault::new(ErrorCode::InvalidRequest, message))
                }
            };
            let reply = ClientReply {
                id: waiting.id,
                body,
            };
            self.outbound
                .send(&Outgoing::client(waiting.session, &reply));
        }
        self.waiting = still;
    }

    fn page(&self, job: JobId, cursor: u64) -> Result<ResultPage, SegmentError> {
        let mut answer = ResultPage {
            next_cursor: cursor,
            ..ResultPage::default()
        };
        let Some(results) = self.jobs.get(&job) else {
            return Ok(answer);
        };
        let Some(writer) = &results.writer else {
            answer.complete = results.complete;
            return Ok(answer);
        };
        let reader = SegmentReader::open(&self.path(job))?;
        let page = reader.read_page(cursor.max(SEGMENT_START), RESULT_PAGE_BYTES_MAX)?;
        for record in &page.records {
            answer
                .records
                .0
                .extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
            answer.records.0.extend_from_slice(&record.payload);
        }
        answer.next_cursor = page.next_offset;
        let at_end = page.records.is_empty() || page.next_offset >= writer.end();
        answer.complete = results.complete && at_end;
        Ok(answer)
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.directory.join(format!("{job}.results"))
    }

    /// A result counts when its lease was given in this life, or in an earlier one for a rollout
    /// that was durable.
    fn is_known(&self, attempt: AttemptId) -> bool {
        self.jobs
            .get(&attempt.rollout.job)
            .is_some_and(|r| attempt.epoch == self.epoch || attempt.rollout.index < r.known)
    }

    fn open(&mut self, job: JobId, known: u64) -> Result<Input, Fault> {
        let path = self.path(job);
        let (mut accepted, mut failed, mut writer) = Default::default();
        if path.exists() {
            writer = Some(open(&path)?);
            (accepted, failed) = read_back(&path)?;
        }
        let mut settled = accepted.clone();
        failed
            .ranges()
            .for_each(|(start, end)| settled.insert_range(start, end));
        self.jobs.insert(
            job,
            JobResults {
                writer,
                settled,
                known,
                complete: false,
            },
        );
        Ok(Input::RelayRestored {
            job,
            accepted,
            failed,
        })
    }
}

/// Which rollouts a job's file settles, and how.
fn read_back(path: &Path) -> Result<(RangeSet, RangeSet), Fault> {
    let (mut accepted, mut failed) = (RangeSet::new(), RangeSet::new());
    let reader = SegmentReader::open(path).map_err(|error| store_fault(path, &error))?;
    for record in reader.records(SEGMENT_START) {
        let record = record.map_err(|error| store_fault(path, &error))?;
        match ResultRecord::decode(&record.payload).map_err(|error| store_fault(path, &error))? {
            ResultRecord::Finished(trajectory) => {
                accepted.insert(trajectory.header.attempt.rollout.index);
            }
            ResultRecord::Failed { index, .. } => {
                failed.insert(index);
            }
        }
    }
    Ok((accepted, failed))
}

fn open(path: &Path) -> Result<SegmentWriter, Fault> {
    let (writer, recovery) =
        SegmentWriter::open(path).map_err(|error| store_fault(path, &error))?;
    if recovery.lost_bytes > 0 {
        let (path, bytes) = (path.display(), recovery.lost_bytes);
        tracing::warn!(%path, bytes, "a tail that was never acknowledged was cut off");
    }
    Ok(writer)
}

fn store_fault(path: &Path, error: &impl std::fmt::Display) -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        format!("{}: {error}", path.display()),
    )
    .with_hint("nothing acknowledged is lost; free the disk and start again")
}
