//! When a step begins, what follows it, and how a run ends.

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::learner::FromLearner;
use volley_protocol::run::{RunState, StepReport};

use crate::config::Schedule;
use crate::effect::{Batch, Effect};
use crate::input::Millis;
use crate::learner::Learner;

/// A learner that is stopped waits this long for the coordinator to acknowledge receipts. What is
/// not acknowledged by then is told by the next start's `Reconcile`.
const LEAVE_LINGER_MS: u64 = 2_000;

impl Learner {
    /// What can be done now, whatever happened.
    pub(crate) fn go_on(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let head = self.chain.head().version.step;
        if self.over.is_none() {
            self.groups.drop_unfit(head, effects);
        }
        if self.training.is_none() {
            if let Some(state) = self.ending.take() {
                self.conclude(now, state, effects);
            } else if self.over.is_none() {
                self.begin_step(now, effects);
            }
        }
        if self.over.is_none() && self.ending.is_none() {
            self.admit(effects);
        }
        self.leave(now, effects);
        debug_assert!(self.over.is_none() || self.training.is_none());
    }

    /// First rollout that may not be leased. A synchronous run opens the groups of the next step
    /// alone. Otherwise the window moves on with every closed group: with those that were
    /// dropped too, so that a run with losses still fills its batches.
    pub(crate) fn admissible(&self) -> u64 {
        let groups = match self.config.schedule {
            Schedule::Sync => {
                let made = self.chain.head().version.step - self.config.first_step;
                (made + 1).saturating_mul(self.config.groups_per_step)
            }
            Schedule::Async { .. } => self.groups.closed_count() + self.config.window_groups(),
        };
        groups.min(self.groups.total()) * u64::from(self.config.job.group_size)
    }

    fn admit(&mut self, effects: &mut Vec<Effect>) {
        let upto = self.admissible();
        debug_assert!(upto >= self.admitted, "never falls");
        if upto > self.admitted {
            self.admitted = upto;
            let job = self.config.job.job;
            effects.push(Effect::Send(FromLearner::Admit { job, upto }));
        }
    }

    fn begin_step(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let parent = self.chain.head().version;
        let count = self.config.groups_per_step;
        let (from, to, is_ready) = match self.config.schedule {
            Schedule::Sync => {
                let from = (parent.step - self.config.first_step) * count;
                let mut groups = from..from + count;
                let whole = |g| self.groups.is_complete(g) || self.groups.is_closed(g);
                (from, from + count, groups.all(whole))
            }
            // At the end of the job a batch takes what is left, if only nothing.
            Schedule::Async { .. } => {
                let enough = self.groups.complete_count() >= count;
                (0, u64::MAX, enough || self.groups.all_done())
            }
        };
        if !is_ready {
            return;
        }
        debug_assert!(parent.step < self.config.run.steps_total);
        let groups = self.groups.select(from, to, count);
        let (dropped, failed) = self.groups.record(&self.ledger);
        let step = parent.step + 1;
        self.training = Some(step);
        effects.push(Effect::Step(Batch {
            step,
            parent,
            groups,
            dropped,
            failed,
            wait_ms: now.0.saturating_sub(self.idle_since.unwrap_or(now).0),
        }));
    }

    pub(crate) fn step_done(
        &mut self,
        now: Millis,
        report: StepReport,
        entry: AdapterEntry,
        effects: &mut Vec<Effect>,
    ) {
        let step = entry.version.step;
        assert_eq!(self.training.take(), Some(step), "that step was asked for");
        self.chain.push(entry);
        self.idle_since = Some(now);
        effects.push(Effect::Send(FromLearner::Published(entry)));
        effects.push(Effect::Send(FromLearner::Progress(report)));
        self.groups.trained(effects);
        if step >= self.config.run.steps_total {
            self.end(RunState::Finished);
        } else if step.is_multiple_of(self.config.checkpoint_every) {
            self.checkpoint(effects);
        }
    }

    /// A checkpoint of the head. Steps behind it are never made again, so what their groups
    /// wrote to the intake is not needed any more.
    fn checkpoint(&mut self, effects: &mut Vec<Effect>) {
        let step = self.chain.head().version.step;
        debug_assert!(step >= self.checkpointed);
        self.checkpointed = step;
        effects.push(Effect::Checkpoint { step });
        let below = self.groups.oldest_write(self.ledger.next_write());
        if below > self.trimmed {
            self.trimmed = below;
            effects.push(Effect::TrimIntake { below });
        }
    }

    /// The run ends this way once the running step is made. A wish to stop gives way to every
    /// other reason.
    pub(crate) fn end(&mut self, state: RunState) {
        debug_assert_ne!(state, RunState::Training);
        let undecided = matches!(self.ending, None | Some(RunState::Stopped));
        if self.over.is_none() && undecided {
            self.ending = Some(state);
        }
    }

    pub(crate) fn stop(&mut self, now: Millis) {
        self.leaving.get_or_insert(now);
        self.end_if_running();
        debug_assert!(self.over.is_some() || self.ending.is_some());
    }

    fn end_if_running(&mut self) {
        if self.ending.is_none() {
            self.end(RunState::Stopped);
        }
    }

    fn conclude(&mut self, now: Millis, state: RunState, effects: &mut Vec<Effect>) {
        debug_assert!(self.training.is_none() && self.over.is_none());
        if self.chain.head().version.step > self.checkpointed {
            self.checkpoint(effects);
        }
        effects.push(Effect::Send(FromLearner::State(state.clone())));
        self.over = Some(state);
        // The wait for acknowledgements begins now, not when the last step began.
        self.leaving = self.leaving.map(|_| now);
    }

    fn leave(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let (Some(since), Some(state)) = (self.leaving, &self.over) else {
            return;
        };
        let told = self.receipts.is_clear() && self.ledger.is_synced();
        let waited = now.0 >= since.0.saturating_add(LEAVE_LINGER_MS);
        if told || waited || self.session.is_none() {
            debug_assert!(self.training.is_none());
            effects.push(Effect::Exit(state.clone()));
            self.exited = true;
        }
    }
}
