//! The relay's thread: files, sequence numbers, questions that wait.

use std::collections::BTreeMap;
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

/// A question that waits for news.
#[derive(Debug)]
struct Waiting {
    session: SessionId,
    id: u32,
    job: JobId,
    cursor: u64,
    until: Instant,
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
    accepted: Vec<RolloutId>,
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
                self.settle_one(rollout, Settled::Failed, &record, round)?;
            }
            RelayRequest::Complete(job) => {
                if let Some(results) = self.jobs.get_mut(&job) {
                    results.complete = true;
                }
            }
            RelayRequest::Expire(job) => {
                if let Some(results) = self.jobs.remove(&job) {
                    results.delete();
                }
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
                self.settle_one(attempt.rollout, Settled::Accepted, &record, round)?;
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

    /// Settles a rollout unless it is settled already. Only accepted results are told: a failure
    /// was the core's own word.
    fn settle_one(
        &mut self,
        rollout: RolloutId,
        how: Settled,
        record: &[u8],
        round: &mut Round,
    ) -> Result<(), Fault> {
        let Some(results) = self.jobs.get_mut(&rollout.job) else {
            return Ok(());
        };
        if results.settle(rollout.index, how, record)? == Settled::Accepted {
            round.accepted.push(rollout);
        }
        round.touched.push(rollout.job);
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

    fn open(&mut self, job: JobId, known: u64) -> Result<Input, Fault> {
        let results = JobResults::open(self.path(job), known)?;
        let (accepted, failed) = (results.accepted.clone(), results.failed.clone());
        self.jobs.insert(job, results);
        Ok(Input::RelayRestored {
            job,
            accepted,
            failed,
        })
    }
}
