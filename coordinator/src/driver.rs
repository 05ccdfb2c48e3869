//! The coordinator's driver: the one actor that owns the core.
//!
//! It hands every input to the core, and does what the core decided: frames to sessions, records
//! to the committer, results to the relay, processes to the provisioner. It supervises the
//! session actors; a session that ends, however it ends, becomes one input.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::OwnedSemaphorePermit;
use volley_coordinator_core::{Coordinator, Effect, Input, Millis, Record, SessionId};
use volley_link::Role;
use volley_protocol::Fault;
use volley_protocol::worker::ToWorker;
use volley_runtime::mailbox::Mailbox;
use volley_runtime::store::{Batch, PayloadKey};

use crate::committer::{Commit, Committer};
use crate::outbound::{Outbound, Outgoing};
use crate::provisioner::Provisioner;
use crate::relay::{Relay, RelayRequest};
use crate::session::{NewSession, PeerSession};

/// How often the core is told the time. Leases and heartbeats count in seconds; a tenth of one is
/// fine enough for back-off and cheap.
const TICK: Duration = Duration::from_millis(50);

/// Records appended since the last compaction that make another one worth its write.
const COMPACT_AFTER_RECORDS: usize = 200_000;

/// A coordinator that was told to end waits this long for its workers: time for a usual episode to
/// end and for its result to be synced. What is not delivered by then is played again in the next
/// life. Well below the 30 s after which a launcher ends the coordinator itself.
const WORKERS_LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// What the driver is told.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every message is an input; boxing them would cost an allocation each"
)]
pub(crate) enum DriverMessage {
    /// A peer is connected and said who it is.
    Connected(Box<NewSession>),
    /// Something for the core. The permit bounds what one session may have in this mailbox.
    Input(Input, Option<OwnedSemaphorePermit>),
    /// Time passes.
    Tick,
    /// Store or relay cannot be trusted any more: no word after this.
    StoreFailed(Fault),
    /// Tell workers to finish and deliver, then leave.
    Shutdown,
}

/// What the driver starts with.
pub(crate) struct DriverArguments {
    pub(crate) core: Coordinator,
    /// Opened before the first input, whose answers may come at once.
    pub(crate) mailbox: Mailbox<DriverMessage>,
    pub(crate) outbound: Outbound,
    pub(crate) committer: Committer,
    pub(crate) relay: Relay,
    pub(crate) provisioner: Box<dyn Provisioner>,
    pub(crate) on_exit: tokio::sync::oneshot::Sender<Result<(), Fault>>,
}

/// The driver's state.
pub(crate) struct DriverState {
    core: Coordinator,
    started: Instant,
    started_unix_ms: u64,
    outbound: Outbound,
    committer: Committer,
    relay: Relay,
    provisioner: Box<dyn Provisioner>,
    sessions: BTreeMap<ActorId, (SessionId, Role)>,
    /// It was told to end, and does so at the latest then.
    leave_by: Option<Instant>,
    records_since_compaction: usize,
    on_exit: Option<tokio::sync::oneshot::Sender<Result<(), Fault>>>,
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
        arguments.mailbox.open(myself.clone());
        let mut state = DriverState {
            core: arguments.core,
            started: Instant::now(),
            started_unix_ms: crate::unix_ms(),
            outbound: arguments.outbound,
            committer: arguments.committer,
            relay: arguments.relay,
            provisioner: arguments.provisioner,
            sessions: BTreeMap::new(),
            leave_by: None,
            records_since_compaction: COMPACT_AFTER_RECORDS,
            on_exit: Some(arguments.on_exit),
        };
        state.apply(Input::Start);
        myself.send_interval(TICK, || DriverMessage::Tick);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<DriverMessage>,
        message: DriverMessage,
        state: &mut DriverState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DriverMessage::Connected(new) => state.connect(&myself, *new).await?,
            DriverMessage::Input(input, permit) => {
                state.apply(input);
                drop(permit);
            }
            DriverMessage::Tick => {
                state.apply(Input::Tick);
                state.compact_if_due();
                state.leave_if_done(&myself);
            }
            DriverMessage::StoreFailed(fault) => {
                state.outbound.close_all(&fault.to_string());
                state.exit(&myself, Err(fault));
            }
            DriverMessage::Shutdown => {
                state.provisioner.shut_down();
                let leave_by = Instant::now() + WORKERS_LEAVE_WITHIN;
                state.leave_by.get_or_insert(leave_by);
                state.leave_if_done(&myself);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<DriverMessage>,
        event: SupervisionEvent,
        state: &mut DriverState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(actor, _, _) => state.disconnect(actor.get_id()),
            SupervisionEvent::ActorFailed(actor, error) => {
                tracing::error!(%error, "a session actor failed; its peer has to come back");
                state.disconnect(actor.get_id());
            }
            _ => {}
        }
        Ok(())
    }
}

impl DriverState {
    fn now(&self) -> Millis {
        // Monotonic from here on, whatever the wall clock does.
        Millis(self.started_unix_ms + self.started.elapsed().as_millis() as u64)
    }

    async fn connect(
        &mut self,
        myself: &ActorRef<DriverMessage>,
        new: NewSession,
    ) -> Result<(), ActorProcessingErr> {
        let (id, role) = (new.id, new.role);
        let up = new.up_input();
        self.outbound
            .add(id, new.control.clone(), new.session.clone());
        if let Some(up) = up {
            self.apply(up);
        }
        let arguments = (new, myself.clone(), self.relay.clone());
        let (actor, _) =
            Actor::spawn_linked(None, PeerSession, arguments, myself.get_cell()).await?;
        self.sessions.insert(actor.get_id(), (id, role));
        Ok(())
    }

    fn disconnect(&mut self, actor: ActorId) {
        let Some((session, role)) = self.sessions.remove(&actor) else {
            return;
        };
        self.outbound.remove(session);
        match role {
            Role::Worker => {
                self.relay.ask(RelayRequest::SessionGone(session));
                self.apply(Input::WorkerDown {
                    session,
                    process_dead: false,
                });
            }
            Role::Learner => self.apply(Input::LearnerDown { session }),
            Role::Client | Role::Monitor | Role::Coordinator => {
                self.relay.ask(RelayRequest::SessionGone(session));
                self.apply(Input::ClientDown { session });
            }
        }
    }

    /// One input through the core, and everything it decided done.
    fn apply(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.apply(self.now(), input, &mut effects);
        let mut commit = Commit::default();
        for effect in effects {
            self.perform(effect, &mut commit);
        }
        if !commit.is_empty() {
            self.records_since_compaction += commit.batch.records.len();
            self.committer.submit(commit);
        }
    }

    fn perform(&mut self, effect: Effect, commit: &mut Commit) {
        match effect {
            Effect::Persist(record) => write_down(record, &mut commit.batch),
            Effect::PayloadsDone { job, start } => {
                commit.batch.done.push(PayloadKey { job, start });
            }
            // What is not leased yet is the next life's; this one waits for what is under way.
            Effect::ToWorker {
                message: ToWorker::Lease { .. },
                ..
            } if self.leave_by.is_some() => {}
            Effect::ToWorker {
                session,
                message,
                after_commit,
            } => {
                self.say(Outgoing::worker(session, &message), after_commit, commit);
            }
            Effect::ToLearner {
                session,
                message,
                after_commit,
            } => {
                self.say(Outgoing::learner(session, &message), after_commit, commit);
            }
            Effect::Reply {
                session,
                reply,
                after_commit,
            } => {
                self.say(Outgoing::client(session, &reply), after_commit, commit);
            }
            effect @ (Effect::RelayOpen { .. }
            | Effect::RelayGrew { .. }
            | Effect::RelayFailed { .. }
            | Effect::RelayComplete { .. }
            | Effect::RelayExpire { .. }
            | Effect::ResultsQuery { .. }) => self.tell_relay(effect, commit),
            Effect::StartWorker { .. } if self.leave_by.is_some() => {
                tracing::debug!("no worker is started any more");
            }
            Effect::StartWorker { provision } => self.provisioner.start(provision),
            Effect::KillWorker { pid, provision } => self.provisioner.kill(provision, pid),
            Effect::CloseSession { session, fault } => self.outbound.close(session, &fault),
            Effect::Report { fault } => tracing::warn!("{fault}"),
        }
    }

    /// Hands on what is the relay's, and notes what it is told once this is synced.
    fn tell_relay(&self, effect: Effect, commit: &mut Commit) {
        match effect {
            Effect::RelayOpen { spec, known } => {
                commit.grown.push((spec.job, spec.rollouts.max(known)));
                self.relay.ask(RelayRequest::Open {
                    job: spec.job,
                    known,
                    rollouts: spec.rollouts.max(known),
                });
            }
            Effect::RelayGrew { job, rollouts } => {
                commit.grown.push((job, rollouts));
                self.relay.ask(RelayRequest::Grew { job, rollouts });
            }
            Effect::RelayFailed { rollout, fault } => {
                self.relay.ask(RelayRequest::Failed { rollout, fault });
            }
            Effect::RelayComplete { job } => self.relay.ask(RelayRequest::Complete(job)),
            Effect::RelayExpire { job } => self.relay.ask(RelayRequest::Expire(job)),
            Effect::ResultsQuery {
                session,
                id,
                job,
                cursor,
                wait_ms,
                near,
            } => {
                self.relay.ask(RelayRequest::Query {
                    session,
                    id,
                    job,
                    cursor,
                    wait_ms,
                    near,
                });
            }
            other => debug_assert!(false, "{other:?} is not the relay's"),
        }
    }

    fn say(&self, outgoing: Outgoing, after_commit: bool, commit: &mut Commit) {
        if after_commit {
            commit.after.push(outgoing);
        } else {
            self.outbound.send(&outgoing);
        }
    }

    fn compact_if_due(&mut self) {
        if self.records_since_compaction < COMPACT_AFTER_RECORDS {
            return;
        }
        self.records_since_compaction = 0;
        let records = self.core.compacted().iter().filter_map(to_json).collect();
        self.committer.submit(Commit {
            batch: Batch {
                records,
                ..Batch::default()
            },
            compaction: true,
            ..Commit::default()
        });
    }

    /// Ends when it was told to and no worker has anything left to deliver, or takes too long.
    fn leave_if_done(&mut self, myself: &ActorRef<DriverMessage>) {
        let Some(leave_by) = self.leave_by else {
            return;
        };
        let running = self.provisioner.running();
        if running > 0 && Instant::now() < leave_by {
            return;
        }
        if running > 0 {
            tracing::warn!(running, "workers that are not done yet are ended");
        }
        self.outbound.close_all("the coordinator was told to stop");
        self.exit(myself, Ok(()));
    }

    fn exit(&mut self, myself: &ActorRef<DriverMessage>, outcome: Result<(), Fault>) {
        if let Some(on_exit) = self.on_exit.take() {
            // Nobody listens when the process is leaving already.
            let _ = on_exit.send(outcome);
        }
        myself.stop(None);
    }
}

/// The text of a record, and the payloads that belong to it.
fn write_down(record: Record, batch: &mut Batch) {
    batch.records.extend(to_json(&record));
    if let Record::Put {
        job,
        start,
        payloads: Some(payloads),
        ..
    } = record
    {
        batch.payloads.push((PayloadKey { job, start }, payloads));
    }
}

/// Records are plain data: they always have a JSON form.
fn to_json(record: &Record) -> Option<String> {
    serde_json::to_string(record)
        .inspect_err(|error| tracing::error!(%error, ?record, "a record has no JSON form"))
        .ok()
}
