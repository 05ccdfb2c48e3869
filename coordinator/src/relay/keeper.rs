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
mod tests {
    use tempfile::TempDir;
    use volley_link::{
        CloseReason, Connected, ControlReceiver, Frame, Peer, Role, close_code, memory_pair,
    };
    use volley_protocol::trajectory::TrajectoryHeader;
    use volley_protocol::{PeerId, Trajectory, codec};

    use super::*;

    const JOB: JobId = JobId(1);

    struct Bench {
        keeper: Keeper,
        directory: TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            let keeper = Keeper::new(directory.path(), Epoch(1), Outbound::default());
            Self {
                keeper: keeper.expect("a new keeper"),
                directory,
            }
        }

        /// A session of that role; what the peer hears, for as long as it is kept.
        fn connect(&self, session: SessionId, role: Role) -> Connected {
            let peer = |role| Peer::new(role, "x", "c").expect("a valid peer");
            let (here, there) = memory_pair(peer(Role::Coordinator), peer(role));
            self.keeper.outbound.add(session, here.sender, here.session);
            there
        }

        /// A job whose commit is synced.
        fn open(&mut self, job: JobId, rollouts: u64) {
            let durable = RelayRequest::Durable { job, rollouts };
            self.round([open(job, rollouts), durable]);
        }

        fn round(&mut self, requests: impl IntoIterator<Item = RelayRequest>) -> Vec<Input> {
            let told = std::cell::RefCell::new(Vec::new());
            let mut round = Round::default();
            for request in requests {
                self.keeper.take(request, &mut round).expect("taken");
            }
            let to_core = |input| told.borrow_mut().push(input);
            self.keeper.settle(round, &to_core).expect("settled");
            self.keeper.answer_waiting();
            told.into_inner()
        }
    }

    fn open(job: JobId, rollouts: u64) -> RelayRequest {
        RelayRequest::Open {
            job,
            known: 0,
            rollouts,
        }
    }

    /// A worker's batch with one result.
    fn delivery(session: SessionId, first_seq: u64, index: u64) -> RelayRequest {
        let rollout = RolloutId { job: JOB, index };
        let header = TrajectoryHeader {
            attempt: AttemptId {
                rollout,
                epoch: Epoch(1),
                number: 1,
            },
            worker: PeerId(1),
            instance: index,
            version: None,
            numerics: "n".into(),
            reward: 1.0,
            metrics: BTreeMap::new(),
            turns: 1,
            truncated: false,
            transcript: Vec::new(),
            episode_ms: 1,
        };
        let trajectory = Trajectory {
            header,
            tokens: vec![1],
            logprobs: vec![0.0],
            sampled: vec![0],
        };
        let batch = trajectory::encode_batch(first_seq, &[&trajectory.encode()]);
        RelayRequest::Store { session, batch }
    }

    fn query(session: SessionId, id: u32) -> RelayRequest {
        RelayRequest::Query {
            session,
            id,
            job: JOB,
            cursor: 0,
            wait_ms: POLL_WAIT_MS_MAX,
            near: false,
        }
    }

    async fn reply(receiver: &mut ControlReceiver) -> ClientReply {
        let frame: Frame = receiver.recv().await.expect("open").expect("a frame");
        codec::decode_frame(frame.kind, &frame.payload).expect("a reply")
    }

    #[tokio::test]
    async fn a_result_beyond_the_job_is_not_kept_and_ends_the_session() {
        let mut bench = Bench::new();
        let worker = SessionId(1);
        let peer = bench.connect(worker, Role::Worker);
        bench.open(JOB, 1);
        assert!(bench.round([delivery(worker, 1, 1)]).is_empty());
        let reason = peer.session.closed().await;
        let CloseReason::Peer { code, reason } = reason else {
            panic!("closed by the relay: {reason:?}");
        };
        let due = close_code::APPLICATION_MIN + ErrorCode::InvalidRequest as u32;
        assert_eq!(code, due, "{reason}");
        assert!(bench.keeper.jobs[&JOB].accepted.is_empty());
        // The same rollout of a queue that has grown is an ordinary one.
        let other = SessionId(2);
        let _peer = bench.connect(other, Role::Worker);
        let grew = RelayRequest::Grew {
            job: JOB,
            rollouts: 2,
        };
        assert_eq!(bench.round([grew, delivery(other, 1, 1)]).len(), 1);
        assert!(bench.keeper.jobs[&JOB].accepted.contains(1));
    }

    #[test]
    fn files_that_are_not_written_are_not_kept_open() {
        let mut bench = Bench::new();
        // Few more than may be open: each costs some syncs.
        let jobs: Vec<JobId> = (0..WRITERS_OPEN_MAX as u128 + 2).map(JobId).collect();
        let writers = |bench: &Bench| {
            let jobs = bench.keeper.jobs.values();
            jobs.filter(|results| results.is_open()).count()
        };
        let failed = |job, index| RelayRequest::Failed {
            rollout: RolloutId { job, index },
            fault: Fault::new(ErrorCode::EnvFailed, "x"),
        };
        jobs.iter().for_each(|job| bench.open(*job, 2));
        bench.round(jobs.iter().map(|job| failed(*job, 0)));
        assert_eq!(writers(&bench), WRITERS_OPEN_MAX);
        // The first two were closed for the last two, and are opened again.
        bench.round(jobs.iter().take(2).map(|job| failed(*job, 1)));
        assert_eq!(writers(&bench), WRITERS_OPEN_MAX);
        bench.round(jobs.iter().map(|job| RelayRequest::Complete(*job)));
        assert_eq!((writers(&bench), bench.keeper.writers.len()), (0, 0));
        for (at, job) in jobs.into_iter().enumerate() {
            let page = bench.keeper.page(job, 0).expect("a page");
            let records = page.decode_records().expect("own").len();
            assert_eq!(records, if at < 2 { 2 } else { 1 });
            assert!(page.complete);
        }
    }

    #[tokio::test]
    async fn questions_of_a_session_that_wait_are_bounded() {
        let mut bench = Bench::new();
        let (greedy, other) = (SessionId(1), SessionId(2));
        let mut greedy_peer = bench.connect(greedy, Role::Client);
        let _other_peer = bench.connect(other, Role::Client);
        bench.open(JOB, 1);
        bench.round((0..QUERIES_PER_SESSION_MAX as u32).map(|id| query(greedy, id)));
        bench.round([query(greedy, 1_000), query(other, 0)]);
        assert_eq!(bench.keeper.waiting.len(), QUERIES_PER_SESSION_MAX + 1);
        let refused = reply(&mut greedy_peer.receiver).await;
        let ReplyBody::Fault(fault) = refused.body else {
            panic!("refused: {refused:?}");
        };
        assert_eq!((refused.id, fault.code), (1_000, ErrorCode::QueueFull));
        // What waits is still answered, and makes room.
        bench.round([RelayRequest::Complete(JOB)]);
        assert!(bench.keeper.waiting.is_empty());
        assert!(matches!(
            reply(&mut greedy_peer.receiver).await.body,
            ReplyBody::Results(page) if page.complete
        ));
        drop(bench.directory);
    }

    #[tokio::test]
    async fn numbers_far_ahead_and_batches_of_the_dead_leave_nothing_behind() {
        let mut bench = Bench::new();
        let (worker, dead) = (SessionId(1), SessionId(2));
        let peer = bench.connect(worker, Role::Worker);
        bench.open(JOB, 9);
        bench.round([delivery(worker, SEQ_AHEAD_MAX + 2, 0)]);
        let reason = peer.session.closed().await;
        assert!(matches!(reason, CloseReason::Peer { .. }), "{reason:?}");
        assert!(bench.keeper.jobs[&JOB].accepted.is_empty());
        // The result counts, though its session is gone.
        assert_eq!(bench.round([delivery(dead, 1, 3)]).len(), 1);
        assert!(!bench.keeper.sessions.contains_key(&dead));
    }

    #[tokio::test]
    async fn a_client_that_never_reads_loses_its_session_and_holds_up_nobody() {
        let mut bench = Bench::new();
        let (worker, deaf) = (SessionId(1), SessionId(2));
        let _peer = bench.connect(worker, Role::Worker);
        let client = bench.connect(deaf, Role::Client);
        bench.open(JOB, 1_000);
        // Every page is one result longer than the one before.
        for index in 0..1_000 {
            let question = query(deaf, index as u32);
            let settled = bench.round([delivery(worker, index + 1, index), question]);
            assert_eq!(settled.len(), 1, "settled while the client is deaf");
        }
        let reason = client.session.closed().await;
        let CloseReason::Peer { reason, .. } = reason else {
            panic!("closed by the coordinator: {reason:?}");
        };
        assert!(reason.contains("send queue is full"), "{reason}");
        assert_eq!(bench.keeper.jobs[&JOB].accepted.count(), 1_000);
    }
}
