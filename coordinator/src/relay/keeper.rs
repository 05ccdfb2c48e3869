//! The relay's thread: files, sequence numbers, questions that wait.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use volley_coordinator_core::{Input, SessionId};
use volley_protocol::client::{ClientReply, ReplyBody, ResultPage, ResultRecord};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::limits::{BATCH_ENTRIES_MAX, POLL_WAIT_MS_MAX};
use volley_protocol::trajectory;
use volley_protocol::worker::ToWorker;
use volley_protocol::{AttemptId, Epoch, JobId, RangeSet, RolloutId};
use volley_runtime::segment::SegmentError;

use super::RelayRequest;
use super::results::{JobResults, Settled, store_fault};
use crate::outbound::{Outbound, Outgoing};

/// Batches that share one sync.
const BATCHES_PER_SYNC_MAX: usize = 32;

/// Questions of one session that may wait for news. A client waits for one answer per job that
/// it reads; each question costs a look at its job's file in every round.
const QUERIES_PER_SESSION_MAX: usize = 64;

/// Files that are open for writing. A coordinator may have 10,000 open jobs and keep as many
/// finished ones, but only 1,024 descriptors by the usual limit; an eighth of them leaves room for
/// everything else. The file that was written longest ago is closed first.
const WRITERS_OPEN_MAX: usize = 128;

/// Numbers of a worker's records above those that were delivered in order. A worker holds fewer
/// records than that; without the bound, gaps would let one session fill the memory.
const SEQ_AHEAD_MAX: u64 = 1 << 20;

/// A question that waits for news.
#[derive(Debug)]
struct Waiting {
    session: SessionId,
    id: u32,
    job: JobId,
    cursor: u64,
    until: Instant,
    near: bool,
}

pub(super) struct Keeper {
    directory: PathBuf,
    epoch: Epoch,
    jobs: BTreeMap<JobId, JobResults>,
    /// Jobs whose file is open for writing; the one written last is at the end.
    writers: VecDeque<JobId>,
    /// Sequence numbers each worker session has delivered.
    sessions: BTreeMap<SessionId, RangeSet>,
    waiting: Vec<Waiting>,
    outbound: Outbound,
}

/// What one round of requests changed.
#[derive(Default)]
struct Round {
    accepted: Vec<RolloutId>,
    touched: Vec<JobId>,
    delivered: Vec<SessionId>,
    restored: Vec<Input>,
}

impl Keeper {
    pub(super) fn new(directory: &Path, epoch: Epoch, outbound: Outbound) -> Result<Self, Fault> {
        std::fs::create_dir_all(directory).map_err(|error| store_fault(directory, &error))?;
        let (jobs, writers, sessions, waiting) = Default::default();
        Ok(Self {
            directory: directory.to_owned(),
            epoch,
            jobs,
            writers,
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
            RelayRequest::Open {
                job,
                known,
                rollouts,
            } => round.restored.push(self.open(job, known, rollouts)?),
            RelayRequest::Grew { job, rollouts } => {
                if let Some(results) = self.jobs.get_mut(&job) {
                    results.rollouts = results.rollouts.max(rollouts);
                }
            }
            RelayRequest::Durable { job, rollouts } => {
                if let Some(results) = self.jobs.get_mut(&job) {
                    results.made_durable(rollouts);
                }
            }
            RelayRequest::Store { session, batch } => self.store(session, &batch, round)?,
            RelayRequest::Failed { rollout, fault } => {
                let record = ResultRecord::Failed {
                    index: rollout.index,
                    fault,
                }
                .encode();
                self.settle_one(rollout, Settled::Failed, &[&record], round)?;
            }
            RelayRequest::Complete(job) => {
                if let Some(results) = self.jobs.get_mut(&job) {
                    results.finish()?;
                }
                self.writers.retain(|other| *other != job);
            }
            RelayRequest::Expire(job) => {
                if let Some(results) = self.jobs.remove(&job) {
                    results.delete();
                }
                self.writers.retain(|other| *other != job);
            }
            RelayRequest::Query {
                session,
                id,
                job,
                cursor,
                wait_ms,
                near,
            } => {
                let wait = Duration::from_millis(wait_ms.min(POLL_WAIT_MS_MAX));
                let until = Instant::now() + wait;
                self.wait(Waiting {
                    session,
                    id,
                    job,
                    cursor,
                    until,
                    near,
                });
            }
            RelayRequest::SessionGone(session) => {
                self.sessions.remove(&session);
                self.waiting.retain(|waiting| waiting.session != session);
            }
        }
        Ok(())
    }

    /// Keeps a question until the end of the round, or until there is news.
    fn wait(&mut self, question: Waiting) {
        let session = question.session;
        let open = self.waiting.iter().filter(|w| w.session == session);
        if open.count() < QUERIES_PER_SESSION_MAX {
            self.waiting.push(question);
            return;
        }
        let why = format!("{QUERIES_PER_SESSION_MAX} questions of this session wait already");
        let fault = Fault::new(ErrorCode::QueueFull, why)
            .with_hint("wait for an answer before asking for more results");
        let (id, body) = (question.id, ReplyBody::Fault(fault));
        self.outbound
            .send(&Outgoing::client(session, &ClientReply { id, body }));
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
        let upto = self.sessions.get(&session).map_or(1, |d| d.first_gap(1));
        if decoded.first_seq > upto + SEQ_AHEAD_MAX {
            let why = format!(
                "record {} comes where {upto} is the first missing",
                decoded.first_seq
            );
            let fault = Fault::new(ErrorCode::InvalidRequest, why);
            self.outbound.close(session, &fault);
            return Ok(());
        }
        for view in decoded.records {
            let attempt = view.header.attempt;
            if !self.is_known(attempt) {
                // Of an extent that a crash took back before it was synced, or of no job at all:
                // acknowledged, so that the worker frees it, but not kept.
                continue;
            }
            if let Err(fault) = self.check_index(attempt.rollout) {
                self.outbound.close(session, &fault);
                continue;
            }
            if view.header.reward.is_finite() {
                let record: [&[u8]; 2] = [&[ResultRecord::FINISHED], view.bytes];
                self.settle_one(attempt.rollout, Settled::Accepted, &record, round)?;
            } else {
                // A worker checks rewards; one that lets this through is not to be believed.
                let fault = Fault::new(ErrorCode::RewardInvalid, "a reward is not finite");
                self.outbound.close(session, &fault);
            }
        }
        if !self.outbound.is_open(session) {
            // Its end was told before this batch: nobody waits for a word, and nothing would ever
            // take its numbers away again.
            return Ok(());
        }
        let delivered = self.sessions.entry(session).or_default();
        delivered.insert_range(decoded.first_seq, decoded.first_seq.saturating_add(count));
        round.delivered.push(session);
        Ok(())
    }

    /// Settles a rollout unless it is settled already. Only accepted results are told: a failure
    /// was the core's own word.
    fn settle_one(
        &mut self,
        rollout: RolloutId,
        how: Settled,
        record: &[&[u8]],
        round: &mut Round,
    ) -> Result<(), Fault> {
        let Some(results) = self.jobs.get_mut(&rollout.job) else {
            return Ok(());
        };
        if results.settle(rollout.index, how, record)? == Settled::Accepted {
            round.accepted.push(rollout);
        }
        round.touched.push(rollout.job);
        self.written(rollout.job)
    }

    /// Notes that a job's file was written, and closes another one when too many are open.
    fn written(&mut self, job: JobId) -> Result<(), Fault> {
        let open = self.jobs.get(&job).is_some_and(JobResults::is_open);
        if self.writers.back() == Some(&job) || !open {
            return Ok(());
        }
        self.writers.retain(|other| *other != job);
        self.writers.push_back(job);
        if self.writers.len() > WRITERS_OPEN_MAX
            && let Some(oldest) = self.writers.pop_front()
            && let Some(results) = self.jobs.get_mut(&oldest)
        {
            results.close()?;
        }
        debug_assert!(self.writers.len() <= WRITERS_OPEN_MAX);
        Ok(())
    }

    /// Syncs what the round wrote, and only then tells anybody.
    fn settle(&mut self, mut round: Round, to_core: &impl Fn(Input)) -> Result<(), Fault> {
        round.touched.sort_unstable();
        round.touched.dedup();
        for job in round.touched {
            if let Some(results) = self.jobs.get_mut(&job) {
                results.sync()?;
            }
        }
        for entries in round.accepted.chunks(BATCH_ENTRIES_MAX) {
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
            if now < waiting.until && !self.has_news(&waiting) {
                still.push(waiting);
                continue;
            }
            let (job, cursor) = (waiting.job, waiting.cursor);
            let place = self.place(job, cursor).filter(|_| waiting.near);
            let page = || self.page(job, cursor).map(ReplyBody::Results);
            let body = match place.map_or_else(page, Ok) {
                Ok(body) => body,
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

    /// Would an answer say more than that there is nothing yet?
    fn has_news(&self, question: &Waiting) -> bool {
        let results = self.jobs.get(&question.job);
        results
            .is_some_and(|results| results.is_complete() || results.shown_end() > question.cursor)
    }

    /// Where the results from a cursor on stand; `None` when that cannot be said in a text.
    fn place(&self, job: JobId, cursor: u64) -> Option<ReplyBody> {
        let path = std::path::absolute(self.path(job)).ok()?;
        let results = self.jobs.get(&job);
        Some(ReplyBody::ResultsNear {
            path: path.into_os_string().into_string().ok()?,
            upto: results.map_or(0, JobResults::shown_end).max(cursor),
            complete: results.is_some_and(JobResults::is_complete),
        })
    }

    fn page(&self, job: JobId, cursor: u64) -> Result<ResultPage, SegmentError> {
        match self.jobs.get(&job) {
            Some(results) => results.page(cursor),
            None => Ok(ResultPage {
                next_cursor: cursor,
                ..ResultPage::default()
            }),
        }
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.directory.join(format!("{job}.results"))
    }

    /// A result counts when its lease was given in this life, or in the one before for a rollout
    /// that was durable.
    fn is_known(&self, attempt: AttemptId) -> bool {
        self.jobs.get(&attempt.rollout.job).is_some_and(|results| {
            let before = attempt.epoch.0 + 1 == self.epoch.0;
            attempt.epoch == self.epoch || (before && attempt.rollout.index < results.known)
        })
    }

    /// Nobody leased what lies beyond the job: a worker that plays it is not to be believed.
    fn check_index(&self, rollout: RolloutId) -> Result<(), Fault> {
        let rollouts = self.jobs.get(&rollout.job).map_or(0, |job| job.rollouts);
        if rollout.index < rollouts {
            return Ok(());
        }
        let message = format!("a result of rollout {rollout}, of a job with {rollouts}");
        Err(Fault::new(ErrorCode::InvalidRequest, message))
    }

    fn open(&mut self, job: JobId, known: u64, rollouts: u64) -> Result<Input, Fault> {
        let mut results = JobResults::open(self.path(job), known)?;
        results.rollouts = rollouts;
        let (accepted, failed) = (results.accepted.clone(), results.failed.clone());
        self.jobs.insert(job, results);
        Ok(Input::RelayRestored {
            job,
            accepted,
            failed,
        })
    }
}

#[cfg(test)]
mod tests;
