//! The relay's thread, request by request.

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
