//! The learner's state, and what each input does to it.

use volley_protocol::RolloutId;
use volley_protocol::learner::{FromLearner, ToLearner, Verdict};
use volley_protocol::run::RunState;
use volley_protocol::{Digest, ErrorCode, Fault};

use crate::chain::Chain;
use crate::config::{Config, Restored, WINDOW_ROLLOUTS_MAX};
use crate::counters::Counters;
use crate::deliveries::Deliveries;
use crate::effect::Effect;
use crate::groups::Groups;
use crate::input::{Input, Millis, SessionId};
use crate::ledger::Ledger;
use crate::receipts::Receipts;
use crate::restore::settled_by;

/// Ranges of one `Reconcile`: 16 bytes each, three quarters of a control frame.
pub(crate) const RECONCILE_RANGES_MAX: usize = 48 << 10;
// Below the first open rollout one range tells everything; above it is the window, in which each
// rollout is a range of its own at worst.
const _: () = assert!(WINDOW_ROLLOUTS_MAX < RECONCILE_RANGES_MAX as u64);

/// The learner.
///
/// ```text
/// waiting ──(batch)──► training ──(StepDone)──► waiting ─ ─► over: Finished
///    └───────────(StepFailed, refused, cancelled)──────────► over: Failed
///    └───────────(Stop, after the running step)────────────► over: Stopped ──► Exit
/// ```
///
/// When a run is over its learner stays, serves its versions and acknowledges late results, until
/// it is stopped.
#[derive(Debug)]
pub struct Learner {
    pub(crate) config: Config,
    pub(crate) session: Option<SessionId>,
    pub(crate) ledger: Ledger,
    pub(crate) groups: Groups,
    pub(crate) chain: Chain,
    pub(crate) receipts: Receipts,
    pub(crate) deliveries: Deliveries,
    pub(crate) counters: Counters,
    pub(crate) synced: u64,
    /// First rollout that may not be leased.
    pub(crate) admitted: u64,
    /// The step that is being made.
    pub(crate) training: Option<u64>,
    /// Since when there is nothing to train.
    pub(crate) idle_since: Option<Millis>,
    pub(crate) checkpointed: u64,
    pub(crate) trimmed: u64,
    /// How the run ends once the running step is made.
    pub(crate) ending: Option<RunState>,
    pub(crate) over: Option<RunState>,
    /// Since when the process is to end.
    pub(crate) leaving: Option<Millis>,
    pub(crate) exited: bool,
    /// Held bytes that turned out useless when the state was restored.
    pub(crate) useless: Vec<RolloutId>,
}

impl Learner {
    /// A learner as it starts, new or after a restart.
    ///
    /// # Errors
    /// `CONFIG_INVALID` or `INVALID_REQUEST` when the configuration makes no sense,
    /// `CHECKPOINT_INVALID` when what was restored contradicts itself or the configuration.
    pub fn new(config: Config, restored: Restored) -> Result<Self, Fault> {
        config.validate()?;
        let chain = Chain::restored(config.run.run, restored.versions)?;
        let size = u64::from(config.job.group_size);
        let accepted = settled_by(&restored.closed, size, &restored.failed);
        let ledger = Ledger::restored(accepted, restored.failed.clone(), restored.intake_next);
        let step = chain.head().version.step;
        let mut learner = Self {
            groups: Groups::new(&config, restored.closed),
            synced: ledger.last_write(),
            over: (step >= config.run.steps_total).then_some(RunState::Finished),
            checkpointed: step,
            trimmed: restored.intake_first,
            config,
            session: None,
            ledger,
            chain,
            receipts: Receipts::default(),
            deliveries: Deliveries::default(),
            counters: Counters::default(),
            admitted: 0,
            training: None,
            idle_since: None,
            ending: None,
            leaving: None,
            exited: false,
            useless: Vec::new(),
        };
        learner.check_restored(&restored.pending)?;
        learner.take_back(&restored.failed, &restored.pending, restored.intake_first);
        learner.admitted = learner.admissible();
        Ok(learner)
    }

    /// Takes what happened; appends what is to be done. `now` never goes back.
    pub fn apply(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        if self.exited {
            return;
        }
        if self.idle_since.is_none() {
            self.idle_since = Some(now);
            self.discard_useless(effects);
        }
        self.take_in(now, input, effects);
        self.deliveries.tell(self.synced, effects);
        if self.session.is_some() {
            self.receipts.say(self.config.job.job, effects);
        }
        self.go_on(now, effects);
        debug_assert!(self.training.is_none() || self.over.is_none());
    }

    fn take_in(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::CoordinatorUp { session } => self.introduce(session, effects),
            Input::CoordinatorDown { session } => {
                if self.session == Some(session) {
                    self.session = None;
                }
            }
            Input::Coordinator { session, message } => {
                if self.session == Some(session) {
                    self.hear(now, message, effects);
                }
            }
            Input::Arrived {
                session,
                first_seq,
                records,
            } => self.arrived(session, first_seq, &records, effects),
            Input::Synced { upto } => self.synced(upto),
            Input::WorkerGone { session } => self.deliveries.gone(session),
            Input::StepDone { report, entry } => {
                self.step_done(now, *report, entry, effects);
            }
            Input::StepFailed { fault } => {
                assert!(self.training.take().is_some(), "a step was asked for");
                self.groups.abandoned();
                self.end(RunState::Failed(fault));
            }
            Input::Stop => self.stop(now),
            Input::Tick => {}
        }
    }

    /// First words of a session with the coordinator.
    fn introduce(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        self.session = Some(session);
        self.receipts.new_session();
        let job = self.config.job.job;
        let (accepted, failed) = self.ledger.reconcile(RECONCILE_RANGES_MAX);
        debug_assert!(accepted.len() + failed.len() <= RECONCILE_RANGES_MAX);
        effects.extend(
            [
                FromLearner::Register {
                    info: self.config.run.clone(),
                    sink: self.config.sink_addr,
                    versions: self.chain.newest(),
                    state: self.state(),
                },
                FromLearner::Submit(self.config.job.clone()),
                FromLearner::Reconcile {
                    job,
                    accepted,
                    failed,
                },
            ]
            .map(Effect::Send),
        );
        if self.over.is_none() {
            let upto = self.admitted;
            effects.push(Effect::Send(FromLearner::Admit { job, upto }));
        }
    }

    fn hear(&mut self, now: Millis, message: ToLearner, effects: &mut Vec<Effect>) {
        debug_assert!(self.session.is_some());
        match message {
            ToLearner::Submitted { job, refused } => {
                if let (true, Some(fault)) = (job == self.config.job.job, refused) {
                    self.end(RunState::Failed(fault));
                }
            }
            ToLearner::ReceiptAck { upto } => self.receipts.acked(upto),
            ToLearner::RolloutFailed { rollout, fault } => {
                self.rollout_failed(rollout, fault, effects);
            }
            ToLearner::Collect(digests) => self.collect(&digests, effects),
            ToLearner::Stop => self.stop(now),
        }
    }

    fn rollout_failed(&mut self, rollout: RolloutId, fault: Fault, effects: &mut Vec<Effect>) {
        let index = rollout.index;
        if rollout.job != self.config.job.job || index >= self.config.job.rollouts {
            return;
        }
        if let Some(verdict) = self.ledger.verdict(index) {
            self.receipts.owe(index, verdict);
        } else if !self.ledger.is_settled(index) {
            let number = self.ledger.next_write();
            self.ledger.decide(number, index, Verdict::Failed);
            self.groups.decided(index, number, None);
            self.counters.failed += 1;
            effects.push(Effect::Intake {
                number,
                keep: Vec::new(),
                failed: vec![rollout],
            });
        }
        debug_assert!(self.ledger.is_settled(index));
        // The job was cancelled: every rollout of it will fail like this one.
        if fault.code == ErrorCode::JobCancelled {
            self.end(RunState::Failed(fault));
        }
    }

    fn collect(&mut self, digests: &[Digest], effects: &mut Vec<Effect>) {
        let (deleted, gone) = self.chain.collect(digests);
        debug_assert!(deleted.iter().all(|digest| gone.contains(digest)));
        if !deleted.is_empty() {
            effects.push(Effect::DeleteAdapters(deleted));
        }
        if !gone.is_empty() {
            effects.push(Effect::Send(FromLearner::Collected(gone)));
        }
    }

    fn synced(&mut self, upto: u64) {
        debug_assert!(
            upto <= self.ledger.last_write(),
            "synced what was not written"
        );
        self.synced = self.synced.max(upto);
        for (index, verdict) in self.ledger.synced(upto) {
            self.receipts.owe(index, verdict);
            self.groups.settled(index, &self.ledger);
        }
    }

    /// Panics when the state contradicts itself: for tests and simulations, after every event.
    pub fn check_invariants(&self) {
        self.ledger.check();
        self.groups.check(&self.ledger);
        self.chain.check();
        let late = self.ledger.last_write();
        assert!(self.synced <= late, "synced {}, wrote {late}", self.synced);
        assert!(
            self.admitted <= self.config.job.rollouts,
            "admitted too many"
        );
        let (head, total) = (self.chain.head().version.step, self.config.run.steps_total);
        assert!(
            head <= total.max(self.config.first_step),
            "step {head} of {total}"
        );
        assert_eq!(
            self.training.is_some(),
            self.groups.in_training(),
            "one batch for one step"
        );
    }

    /// Where the run stands.
    #[must_use]
    pub fn state(&self) -> RunState {
        self.over.clone().unwrap_or(RunState::Training)
    }

    /// What became of results, since the process began.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        Counters {
            groups: self.groups.counters,
            ..self.counters
        }
    }
}
