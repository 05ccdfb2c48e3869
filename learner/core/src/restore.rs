//! Taking up a run where its disk says it stands.

use volley_protocol::{ErrorCode, Fault, RangeSet};

use crate::config::Schedule;
use crate::effect::Effect;
use crate::input::Arrival;
use crate::learner::Learner;

/// Accepted rollouts of closed groups: all of them but those that failed.
pub(crate) fn settled_by(closed: &RangeSet, group_size: u64, failed: &RangeSet) -> RangeSet {
    let mut accepted = RangeSet::new();
    for (from, to) in closed.ranges() {
        let (mut at, end) = (from * group_size, to * group_size);
        for (bad, bad_end) in failed.ranges() {
            if bad < end && bad_end > at {
                accepted.insert_range(at, bad);
                at = bad_end;
            }
        }
        accepted.insert_range(at, end);
    }
    debug_assert!(failed.ranges().all(|(a, b)| accepted.count_in(a, b) == 0));
    accepted
}

impl Learner {
    /// Does what was found on the disk fit the configuration?
    pub(crate) fn check_restored(&self, pending: &[Arrival]) -> Result<(), Fault> {
        let invalid = |what: String| Err(Fault::new(ErrorCode::CheckpointInvalid, what));
        let (step, first) = (self.chain.head().version.step, self.config.first_step);
        if step < first {
            return invalid(format!(
                "version {step} is older than the job's first, {first}"
            ));
        }
        let steps = step - first;
        let closed = self.groups.closed_count();
        let due = steps.saturating_mul(self.config.groups_per_step);
        let in_order = closed == due && self.groups.all_closed(due);
        if self.config.schedule == Schedule::Sync && !in_order {
            return invalid(format!(
                "{steps} steps of {} groups were made, but {closed} groups are closed",
                self.config.groups_per_step
            ));
        }
        let (job, rollouts) = (self.config.job.job, self.config.job.rollouts);
        let ours = |a: &&Arrival| a.rollout().job == job && a.rollout().index < rollouts;
        match pending.iter().find(|arrival| !ours(arrival)) {
            None => Ok(()),
            Some(other) => invalid(format!("{} is no rollout of this job", other.rollout())),
        }
    }

    /// Takes records of the intake back. A record whose version is not on the chain any more
    /// (the lineage has risen) stays accepted, but its group goes without it.
    pub(crate) fn take_back(&mut self, failed: &RangeSet, pending: &[Arrival], write: u64) {
        let mut open = Vec::new();
        for index in failed.iter() {
            if !self.groups.is_closed(self.groups.of(index)) {
                self.groups.decided(index, write, None);
                open.push(index);
            }
        }
        for arrival in pending {
            let rollout = arrival.rollout();
            if self.groups.is_closed(self.groups.of(rollout.index)) {
                self.useless.push(rollout);
            } else if !self.ledger.is_settled(rollout.index) {
                self.ledger.read_back(rollout.index);
                let version = self.playable(arrival.version);
                self.groups.decided(rollout.index, write, version);
                if version.is_none() {
                    self.useless.push(rollout);
                }
                open.push(rollout.index);
            }
        }
        for index in open {
            self.groups.settled(index, &self.ledger);
        }
        debug_assert!(self.ledger.is_synced(), "all of it was read from the disk");
    }

    /// First thing after a restart: the shell may drop what cannot be trained.
    pub(crate) fn discard_useless(&mut self, effects: &mut Vec<Effect>) {
        debug_assert!(!self.exited);
        if !self.useless.is_empty() {
            effects.push(Effect::Discard(std::mem::take(&mut self.useless)));
        }
    }
}
