//! The learner's driver: the one actor that owns the core. Trajectories stay here, by rollout,
//! until the step that consumes them is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use volley_learner_core::{Arrival, Batch, Effect, Input, Learner, Millis, SessionId};
use volley_link::{ControlSender, Session};
use volley_protocol::delivery::FromSink;
use volley_protocol::fault::Fault;
use volley_protocol::run::RunState;
use volley_protocol::{RolloutId, Trajectory};
use volley_runtime::conversation;

use crate::intake::{Intake, Write};
use crate::step::PlayedGroup;
use crate::trainer::{TrainerHandle, TrainerOrder};
use crate::versions::Versions;

/// The core is told the time this often.
const TICK: Duration = Duration::from_millis(50);

/// One batch from a worker.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) session: SessionId,
    pub(crate) first_seq: u64,
    pub(crate) records: Vec<Result<Arc<Trajectory>, String>>,
}

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum DriverMessage {
    /// The session with the coordinator is open.
    CoordinatorUp(SessionId, Session, ControlSender),
    /// A worker's session is open.
    WorkerUp(SessionId, Session, ControlSender),
    /// It is over.
    WorkerGone(SessionId),
    /// Trajectories. The permit bounds what one session may have in this mailbox.
    Arrived(Delivery, OwnedSemaphorePermit),
    /// Something for the core.
    Input(Input, Option<OwnedSemaphorePermit>),
    /// The disk cannot be trusted any more.
    DiskFailed(Fault),
    /// Time passes.
    Tick,
}

/// What the driver starts with.
pub(crate) struct DriverArguments {
    pub(crate) core: Learner,
    pub(crate) intake: Intake,
    pub(crate) trainer: TrainerHandle,
    pub(crate) versions: Versions,
    /// Trajectories that were read back, of groups that are not closed.
    pub(crate) held: BTreeMap<RolloutId, Arc<Trajectory>>,
    pub(crate) on_exit: oneshot::Sender<Result<RunState, Fault>>,
}

/// The driver's state.
pub(crate) struct DriverState {
    core: Learner,
    started: Instant,
    intake: Intake,
    trainer: TrainerHandle,
    versions: Versions,
    held: BTreeMap<RolloutId, Arc<Trajectory>>,
    coordinator: Option<(SessionId, Session, ControlSender)>,
    workers: BTreeMap<SessionId, (Session, ControlSender)>,
    /// Writes below this belong to closed groups; they go with the next checkpoint.
    trim_below: u64,
    on_exit: Option<oneshot::Sender<Result<RunState, Fault>>>,
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
        Ok(DriverState {
            core: arguments.core,
            started: Instant::now(),
            intake: arguments.intake,
            trainer: arguments.trainer,
            versions: arguments.versions,
            held: arguments.held,
            coordinator: None,
            workers: BTreeMap::new(),
            trim_below: 0,
            on_exit: Some(arguments.on_exit),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DriverMessage>,
        message: DriverMessage,
        state: &mut DriverState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DriverMessage::CoordinatorUp(id, session, sender) => {
                state.coordinator = Some((id, session, sender));
                state.apply(&myself, Input::CoordinatorUp { session: id });
            }
            DriverMessage::WorkerUp(id, session, sender) => {
                state.workers.insert(id, (session, sender));
            }
            DriverMessage::WorkerGone(id) => {
                state.workers.remove(&id);
                state.apply(&myself, Input::WorkerGone { session: id });
            }
            DriverMessage::Arrived(delivery, permit) => {
                state.take_in(&myself, delivery);
                drop(permit);
            }
            DriverMessage::Input(input, permit) => {
                if matches!(input, Input::CoordinatorDown { .. }) {
                    state.coordinator = None;
                }
                state.apply(&myself, input);
                drop(permit);
            }
            DriverMessage::DiskFailed(fault) => state.exit(&myself, Err(fault)),
            DriverMessage::Tick => state.apply(&myself, Input::Tick),
        }
        Ok(())
    }
}

impl DriverState {
    fn apply(&mut self, myself: &ActorRef<DriverMessage>, input: Input) {
        self.apply_with(myself, input, &[]);
    }

    /// A batch: the core sees what decisions need; what it keeps is taken from `records`.
    fn take_in(&mut self, myself: &ActorRef<DriverMessage>, delivery: Delivery) {
        let Delivery {
            session,
            first_seq,
            records,
        } = delivery;
        let arrivals = records.iter().map(|record| record.as_deref().map(arrival));
        let arrivals = arrivals
            .map(|arrival| arrival.map_err(Clone::clone))
            .collect();
        let input = Input::Arrived {
            session,
            first_seq,
            records: arrivals,
        };
        self.apply_with(myself, input, &records);
    }

    fn apply_with(
        &mut self,
        myself: &ActorRef<DriverMessage>,
        input: Input,
        records: &[Result<Arc<Trajectory>, String>],
    ) {
        let now = Millis(self.started.elapsed().as_millis() as u64);
        let mut effects = Vec::new();
        self.core.apply(now, input, &mut effects);
        for effect in effects {
            self.perform(myself, effect, records);
        }
    }

    fn perform(
        &mut self,
        myself: &ActorRef<DriverMessage>,
        effect: Effect,
        records: &[Result<Arc<Trajectory>, String>],
    ) {
        match effect {
            Effect::Send(message) => {
                if let Some((_, session, sender)) = &self.coordinator {
                    conversation::say(session, sender, &message);
                }
            }
            Effect::Intake {
                number,
                keep,
                failed,
            } => {
                let mut kept = Vec::with_capacity(keep.len());
                for keep in keep {
                    if let Some(Ok(trajectory)) = records.get(keep.record) {
                        self.held.insert(keep.rollout, Arc::clone(trajectory));
                        kept.push(Arc::clone(trajectory));
                    }
                }
                let failed = failed.iter().map(|rollout| rollout.index).collect();
                self.intake.append(Write {
                    number,
                    failed,
                    kept,
                });
            }
            Effect::Discard(rollouts) => {
                rollouts
                    .iter()
                    .for_each(|rollout| drop(self.held.remove(rollout)));
            }
            Effect::TrimIntake { below } => self.trim_below = below,
            Effect::Delivered { session, upto } => {
                if let Some((session, sender)) = self.workers.get(&session) {
                    conversation::say(session, sender, &FromSink::Delivered { upto });
                }
            }
            Effect::Step(batch) => self.step(batch),
            Effect::Checkpoint { step } => {
                let (intake, below) = (self.intake.clone(), self.trim_below);
                let durable = Box::new(move || intake.rotate(below));
                self.trainer
                    .order(TrainerOrder::Checkpoint { step, durable });
            }
            Effect::DeleteAdapters(digests) => self.versions.delete(&digests),
            Effect::Exit(state) => self.exit(myself, Ok(state)),
        }
    }

    fn step(&self, batch: Batch) {
        let groups = batch.groups.iter().map(|group| PlayedGroup {
            degraded: group.degraded,
            members: group
                .members
                .iter()
                .filter_map(|r| self.held.get(r))
                .cloned()
                .collect(),
        });
        let groups = groups.collect();
        self.trainer.order(TrainerOrder::Step { batch, groups });
    }

    fn exit(&mut self, myself: &ActorRef<DriverMessage>, outcome: Result<RunState, Fault>) {
        if let Some(on_exit) = self.on_exit.take() {
            // Nobody listens when the process is leaving already.
            let leave = move || drop(on_exit.send(outcome));
            // The last checkpoint may still be on its way to the disk.
            self.trainer.order(TrainerOrder::Finish(Box::new(leave)));
        }
        myself.stop(None);
    }
}

/// What the core needs to know of a trajectory.
pub(crate) fn arrival(trajectory: &Trajectory) -> Arrival {
    let header = &trajectory.header;
    Arrival {
        attempt: header.attempt,
        version: header.version,
        numerics: header.numerics.clone(),
        reward: header.reward,
    }
}
