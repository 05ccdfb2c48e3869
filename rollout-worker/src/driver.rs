//! The worker's driver: the one actor that owns the core. Inputs come from the coordinator's
//! session, from sessions with learners and from the policy thread; effects go back to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use volley_link::{ControlSender, Session, close_code};
use volley_protocol::codec::Message;
use volley_protocol::delivery::{FromSink, ToSink};
use volley_protocol::worker::{FromWorker, SinkAddr, WorkerLoad};
use volley_protocol::{AdapterVersion, AttemptId, Digest, trajectory};
use volley_runtime::conversation;
use volley_runtime::host_adapters::{HostAdapters, Turn};

use crate::adapter_bytes::{self, AdapterBytes, Found};
use crate::core::{Effect, ExitReason, Input, Millis, SessionId, Worker};
use crate::dials::{DialId, Dials};
use crate::fetching::Fetching;
use crate::policy::{PolicyCommand, PolicyEvent, PolicyHandle};
use crate::sink_link;

/// The core is told the time this often; heartbeats and back-off count in seconds.
const TICK: Duration = Duration::from_millis(50);

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum DriverMessage {
    /// A session with the coordinator is open; what it needs to be spoken to.
    Connected { input: Input, line: Line },
    /// A session with a learner is open.
    SinkConnected {
        addr: SocketAddr,
        dial: DialId,
        line: Line,
    },
    /// A dial to a learner failed, or its session is over.
    SinkOver {
        addr: SocketAddr,
        dial: DialId,
        session: Option<SessionId>,
    },
    /// Something for the core. The permit bounds what one session may have in this mailbox.
    Input(Input, Option<OwnedSemaphorePermit>),
    /// A learner sent an adapter, or it was found on this host; its digest was checked.
    AdapterBytes { digest: Digest, bytes: AdapterBytes },
    /// This host does not have an adapter that was asked for in that session.
    AdapterAbsent {
        digest: Digest,
        session: SessionId,
        turn: Option<Turn>,
    },
    /// The policy thread reports.
    Policy(PolicyEvent),
    /// Time passes.
    Tick,
}

/// Whom a session is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeerKey {
    /// The coordinator.
    Coordinator,
    /// A learner.
    Learner(SocketAddr),
}

/// What is needed to speak in a session.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) id: SessionId,
    pub(crate) control: ControlSender,
    pub(crate) session: Session,
}

impl Line {
    fn say<M: Message>(&self, message: &M) {
        conversation::say(&self.session, &self.control, message);
    }
}

/// What the driver starts with.
#[derive(Debug)]
pub(crate) struct DriverArguments {
    pub(crate) core: Worker,
    pub(crate) policy: PolicyHandle,
    pub(crate) dialler: sink_link::Dialler,
    pub(crate) host_adapters: Option<HostAdapters>,
    pub(crate) on_exit: oneshot::Sender<ExitReason>,
}

/// The driver's state.
#[derive(Debug)]
pub(crate) struct DriverState {
    core: Worker,
    policy: PolicyHandle,
    dialler: sink_link::Dialler,
    started: Instant,
    lines: BTreeMap<PeerKey, Line>,
    dials: Dials,
    /// Encoded trajectories that no sink has acknowledged.
    records: BTreeMap<AttemptId, Arc<Vec<u8>>>,
    fetching: Fetching,
    host_adapters: Option<HostAdapters>,
    on_exit: Option<oneshot::Sender<ExitReason>>,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Driver;

impl Actor for Driver {
    type Msg = DriverMessage;
    type State = DriverState;
    type Arguments = DriverArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<DriverMessage>,
        arguments: DriverArguments,
    ) -> Result<DriverState, ActorProcessingErr> {
        myself.send_interval(TICK, || DriverMessage::Tick);
        Ok(DriverState::new(arguments))
    }

    async fn handle(
        &self,
        myself: ActorRef<DriverMessage>,
        message: DriverMessage,
        state: &mut DriverState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DriverMessage::Connected { input, line } => {
                state.lines.insert(PeerKey::Coordinator, line);
                state.apply(&myself, input);
            }
            DriverMessage::SinkConnected { addr, dial, line } => {
                if let Some(input) = state.sink_connected(addr, dial, line) {
                    state.apply(&myself, input);
                }
            }
            DriverMessage::SinkOver {
                addr,
                dial,
                session,
            } => {
                if let Some(input) = state.sink_over(addr, dial, session) {
                    state.apply(&myself, input);
                }
            }
            DriverMessage::Input(input, permit) => {
                match &input {
                    Input::CoordinatorDown { session } => {
                        state.forget_line(PeerKey::Coordinator, *session);
                    }
                    Input::Sink {
                        message: FromSink::AdapterMissing { digest },
                        ..
                    } => drop(state.fetching.end(*digest)),
                    _ => {}
                }
                state.apply(&myself, input);
                drop(permit);
            }
            DriverMessage::AdapterBytes { digest, bytes } => {
                state.adapter_is_here(digest, bytes);
            }
            DriverMessage::AdapterAbsent {
                digest,
                session,
                turn,
            } => {
                if let Some(source) = state.fetching.absent(digest, session, turn) {
                    state.ask(source, session, digest);
                }
            }
            DriverMessage::Policy(event) => state.hear_policy(&myself, event),
            DriverMessage::Tick => state.apply(&myself, Input::Tick),
        }
        Ok(())
    }
}

impl DriverState {
    fn new(arguments: DriverArguments) -> Self {
        Self {
            core: arguments.core,
            policy: arguments.policy,
            dialler: arguments.dialler,
            started: Instant::now(),
            lines: BTreeMap::new(),
            dials: Dials::default(),
            records: BTreeMap::new(),
            fetching: Fetching::default(),
            host_adapters: arguments.host_adapters,
            on_exit: Some(arguments.on_exit),
        }
    }

    fn apply(&mut self, myself: &ActorRef<DriverMessage>, input: Input) {
        let now = Millis(self.started.elapsed().as_millis() as u64);
        let mut effects = Vec::new();
        self.core.apply(now, input, &mut effects);
        for effect in effects {
            self.perform(myself, effect);
        }
    }

    /// A learner's session is open: news, unless its dial was given up meanwhile.
    fn sink_connected(&mut self, addr: SocketAddr, dial: DialId, line: Line) -> Option<Input> {
        if !self.dials.is_current(addr, dial) {
            // Nobody reads it any more; the newer dial, if there is one, has its own.
            line.session.close(close_code::NORMAL, "nothing to say");
            return None;
        }
        let session = line.id;
        self.lines.insert(PeerKey::Learner(addr), line);
        Some(Input::SinkUp { addr, session })
    }

    /// A dial came to nothing, or the session that it opened is over.
    fn sink_over(
        &mut self,
        addr: SocketAddr,
        dial: DialId,
        session: Option<SessionId>,
    ) -> Option<Input> {
        let session = session.filter(|_| self.dials.is_current(addr, dial));
        self.dials.ended(addr, dial);
        self.forget_line(PeerKey::Learner(addr), session?);
        session.map(|session| Input::SinkDown { addr, session })
    }

    fn forget_line(&mut self, peer: PeerKey, session: SessionId) {
        if self.lines.get(&peer).is_some_and(|line| line.id == session) {
            self.lines.remove(&peer);
        }
        self.fetching.session_over(session);
    }

    /// Looks for an adapter on this host, or asks the learner that has it.
    fn fetch(
        &mut self,
        myself: &ActorRef<DriverMessage>,
        version: AdapterVersion,
        source: SocketAddr,
        session: SessionId,
    ) {
        let digest = version.digest;
        self.fetching.begin(version, source, session);
        let Some(host) = self.host_adapters.clone() else {
            return self.ask(source, session, digest);
        };
        let driver = myself.clone();
        tokio::spawn(async move {
            let found = match adapter_bytes::look(host, digest).await {
                Found::Here(bytes) => DriverMessage::AdapterBytes { digest, bytes },
                Found::Absent(turn) => DriverMessage::AdapterAbsent {
                    digest,
                    session,
                    turn,
                },
            };
            // The driver outlives its tasks, but for the moment of leaving.
            let _ = driver.cast(found);
        });
    }

    fn ask(&self, source: SocketAddr, session: SessionId, digest: Digest) {
        if let Some(line) = self.line(PeerKey::Learner(source), session) {
            line.say(&ToSink::Fetch { digest });
        }
    }

    fn adapter_is_here(&mut self, digest: Digest, bytes: AdapterBytes) {
        let Some((version, turn)) = self.fetching.end(digest) else {
            return;
        };
        if let (Some(turn), Some(host)) = (turn, self.host_adapters.clone()) {
            adapter_bytes::share(host, digest, bytes.clone(), turn);
        }
        self.policy
            .tell(PolicyCommand::AddAdapter { version, bytes });
    }

    fn hear_policy(&mut self, myself: &ActorRef<DriverMessage>, event: PolicyEvent) {
        let input = match event {
            PolicyEvent::Done(trajectory) => {
                let record = trajectory.encode();
                let attempt = trajectory.header.attempt;
                let sampled = trajectory.sampled.iter().filter(|s| **s == 1).count() as u64;
                let record_bytes = record.len() as u64;
                self.records.insert(attempt, Arc::new(record));
                Input::EpisodeDone {
                    attempt,
                    record_bytes,
                    tokens: sampled,
                    prefill_tokens: trajectory.tokens.len() as u64 - sampled,
                }
            }
            PolicyEvent::Failed { attempt, fault } => Input::EpisodeFailed {
                attempt,
                fault: fault.fault,
                retryable: fault.retryable,
            },
            PolicyEvent::AdapterReady(version) => Input::AdapterReady { version },
            PolicyEvent::AdapterFailed { version, fault } => Input::AdapterFailed {
                digest: version.digest,
                fault,
            },
        };
        self.apply(myself, input);
    }

    fn perform(&mut self, myself: &ActorRef<DriverMessage>, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(message),
            Effect::StartEpisode { lease, spec } => {
                self.policy.tell(PolicyCommand::Start { lease, spec });
            }
            Effect::CancelEpisode { attempt } => self.policy.tell(PolicyCommand::Cancel(attempt)),
            Effect::FetchAdapter {
                version,
                source,
                session,
            } => {
                self.fetch(myself, version, source, session);
            }
            Effect::DropAdapters(digests) => {
                self.policy.tell(PolicyCommand::DropAdapters(digests));
            }
            Effect::DialSink { addr } => {
                let dialler = &self.dialler;
                self.dials
                    .begin(addr, |dial| dialler.dial(addr, dial, myself.clone()));
            }
            Effect::HangUpSink { addr } => {
                self.dials.hang_up(addr);
                if let Some(line) = self.lines.remove(&PeerKey::Learner(addr)) {
                    line.session
                        .close(close_code::NORMAL, "nothing left to say");
                }
            }
            Effect::Deliver {
                sink,
                session,
                first_seq,
                attempts,
            } => {
                self.deliver(sink, session, first_seq, &attempts);
            }
            Effect::Free { attempts } => {
                attempts
                    .iter()
                    .for_each(|attempt| drop(self.records.remove(attempt)));
            }
            Effect::Exit { reason } => self.exit(myself, reason),
        }
    }

    fn send(&self, message: FromWorker) {
        // The core counts episodes and bytes; what only the policy thread knows is added here.
        let message = match message {
            FromWorker::Heartbeat { held, load } => {
                let counters = &self.policy.counters;
                let load = WorkerLoad {
                    tokens_total: counters.tokens.load(Ordering::Relaxed),
                    prefill_tokens_total: counters.prefill_tokens.load(Ordering::Relaxed),
                    ..load
                };
                FromWorker::Heartbeat { held, load }
            }
            other => other,
        };
        if let Some(line) = self.lines.get(&PeerKey::Coordinator) {
            line.say(&message);
        }
    }

    fn line(&self, peer: PeerKey, session: SessionId) -> Option<&Line> {
        self.lines.get(&peer).filter(|line| line.id == session)
    }

    fn deliver(&self, sink: SinkAddr, session: SessionId, first_seq: u64, attempts: &[AttemptId]) {
        let peer = match sink {
            SinkAddr::Relay => PeerKey::Coordinator,
            SinkAddr::Learner(addr) => PeerKey::Learner(addr),
        };
        let Some(line) = self.line(peer, session) else {
            return;
        };
        let records: Vec<_> = attempts
            .iter()
            .filter_map(|a| self.records.get(a))
            .collect();
        debug_assert_eq!(
            records.len(),
            attempts.len(),
            "undelivered records are held"
        );
        let records: Vec<&[u8]> = records
            .into_iter()
            .map(|record| record.as_slice())
            .collect();
        let batch = trajectory::encode_batch(first_seq, &records);
        let session = line.session.clone();
        tokio::spawn(async move {
            if let Err(error) = sink_link::send_bulk(&session, batch).await {
                tracing::debug!(%error, "a batch did not reach its sink");
                // Its numbers are missing there; the core sends everything again in the next.
                session.close(close_code::NORMAL, "a batch could not be sent");
            }
        });
    }

    fn exit(&mut self, myself: &ActorRef<DriverMessage>, reason: ExitReason) {
        self.policy.tell(PolicyCommand::Stop);
        if let Some(on_exit) = self.on_exit.take() {
            // Nobody listens when the process is leaving already.
            let _ = on_exit.send(reason);
        }
        myself.stop(None);
    }
}

/// Why a worker ended, as a sentence.
pub(crate) fn describe(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Drained => "drained by the coordinator",
        ExitReason::Alone => "no coordinator for too long",
        ExitReason::Signal => "asked to end",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use volley_link::{
        ClusterCa, Connected, Endpoint, LinkConfig, LinkRuntime, Peer, Role, memory_pair,
    };
    use volley_protocol::PeerId;
    use volley_protocol::version::{Hello, PROTOCOL_VERSION};

    use super::*;
    use crate::core::Config;
    use crate::policy::PolicyCounters;
    use crate::sink_link::{Dialler, next_session};

    fn state() -> DriverState {
        let ca = ClusterCa::create("c").expect("an authority");
        let identity = ca.issue(Role::Worker, "w").expect("an identity");
        let link = LinkRuntime::start().expect("a network thread");
        let endpoint = Endpoint::client(&link, &identity, LinkConfig::default()).expect("a socket");
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            peer: PeerId(1),
            name: "w".into(),
            pid: 1,
        };
        DriverState::new(DriverArguments {
            core: Worker::new(Config::new(1, "n", Digest::default())),
            policy: PolicyHandle::new(mpsc::channel().0, Arc::new(PolicyCounters::default())),
            dialler: Dialler { endpoint, hello },
            host_adapters: None,
            on_exit: oneshot::channel().0,
        })
    }

    fn line() -> (Line, Connected) {
        let peer = |role| Peer::new(role, "x", "c").expect("a valid peer");
        let (here, there) = memory_pair(peer(Role::Worker), peer(Role::Learner));
        let line = Line {
            id: next_session(),
            control: here.sender,
            session: here.session,
        };
        (line, there)
    }

    fn begin(state: &mut DriverState, addr: SocketAddr) -> DialId {
        let mut number = None;
        state.dials.begin(addr, |id| {
            number = Some(id);
            tokio::spawn(std::future::pending())
        });
        number.expect("no dial is under way")
    }

    #[tokio::test]
    async fn a_session_of_a_dial_that_was_given_up_is_closed_and_not_spoken_to() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut state = state();
        let old = begin(&mut state, addr);
        // The dial succeeds, and is given up before the driver hears of it.
        let (deaf, mut its_peer) = line();
        let deaf_id = deaf.id;
        state.dials.hang_up(addr);
        let new = begin(&mut state, addr);
        assert!(state.sink_connected(addr, old, deaf).is_none());
        assert!(state.line(PeerKey::Learner(addr), deaf_id).is_none());
        assert!(!matches!(its_peer.receiver.recv().await, Ok(Some(_))));

        let (open, _its_peer) = line();
        let id = open.id;
        let up = state.sink_connected(addr, new, open);
        assert!(matches!(up, Some(Input::SinkUp { session, .. }) if session == id));
        // The older one's end is no news, and the newer dial stays the current one.
        assert!(state.sink_over(addr, old, Some(deaf_id)).is_none());
        assert!(state.line(PeerKey::Learner(addr), id).is_some());
        assert!(state.dials.is_current(addr, new));
        let down = state.sink_over(addr, new, Some(id));
        assert!(matches!(down, Some(Input::SinkDown { session, .. }) if session == id));
        assert!(state.lines.is_empty() && !state.dials.is_current(addr, new));
    }
}
