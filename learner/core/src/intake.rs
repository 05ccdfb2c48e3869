//! Judging what workers deliver.

use volley_protocol::AdapterVersion;
use volley_protocol::learner::Verdict;

use crate::config::Schedule;
use crate::effect::{Effect, Keep};
use crate::input::{Arrival, SessionId};
use crate::learner::Learner;

enum Judgement {
    /// It settles nothing; a lease ends and the coordinator has it played again.
    Unusable,
    /// Settled before.
    Duplicate,
    /// Another version played than the one that was pinned, or the reward is no number.
    Failed,
    Accepted(AdapterVersion),
}

impl Learner {
    /// A batch: judges each record, writes down what is new, and notes when the batch counts as
    /// delivered.
    pub(crate) fn arrived(
        &mut self,
        session: SessionId,
        first_seq: u64,
        records: &[Result<Arrival, String>],
        effects: &mut Vec<Effect>,
    ) {
        if !self.deliveries.admits(session, first_seq) {
            return;
        }
        let number = self.ledger.next_write();
        let (mut keep, mut failed) = (Vec::new(), Vec::new());
        for (record, arrival) in records.iter().enumerate() {
            let Ok(arrival) = arrival else {
                self.counters.unusable += 1;
                continue;
            };
            let rollout = arrival.rollout();
            match self.judge(arrival) {
                Judgement::Unusable => self.counters.unusable += 1,
                Judgement::Duplicate => self.repeat(rollout.index),
                Judgement::Failed => {
                    self.ledger.decide(number, rollout.index, Verdict::Failed);
                    self.groups.decided(rollout.index, number, None);
                    self.counters.failed += 1;
                    failed.push(rollout);
                }
                Judgement::Accepted(version) => {
                    self.ledger.decide(number, rollout.index, Verdict::Accepted);
                    self.groups.decided(rollout.index, number, Some(version));
                    self.counters.accepted += 1;
                    let foreign = arrival.numerics != self.config.numerics;
                    self.counters.foreign_numerics += u64::from(foreign);
                    keep.push(Keep { record, rollout });
                }
            }
        }
        if !keep.is_empty() || !failed.is_empty() {
            debug_assert_eq!(number, self.ledger.last_write());
            effects.push(Effect::Intake {
                number,
                keep,
                failed,
            });
        }
        // A duplicate may be one of a result that is being written: it waits for all of that.
        let (count, last) = (records.len() as u64, self.ledger.last_write());
        self.deliveries.judged(session, first_seq, count, last);
    }

    fn judge(&mut self, arrival: &Arrival) -> Judgement {
        let rollout = arrival.rollout();
        let ours = rollout.job == self.config.job.job;
        if !ours || rollout.index >= self.admitted {
            return Judgement::Unusable;
        }
        if self.ledger.is_settled(rollout.index) {
            return Judgement::Duplicate;
        }
        debug_assert!(!self.groups.is_closed(self.groups.of(rollout.index)));
        match self.playable(arrival.version) {
            Some(version) if arrival.reward.is_finite() => Judgement::Accepted(version),
            Some(_) => Judgement::Failed,
            None => {
                self.counters.mismatched += 1;
                Judgement::Failed
            }
        }
    }

    /// The version, if a result played by it can be trained. In a synchronous run that is the
    /// head alone: every open rollout belongs to its step. A group's version is pinned by the
    /// coordinator, so any other is a lost pin (the coordinator was started again in between) or
    /// a defect: playing it once more could be as wrong, so it is settled as failed.
    pub(crate) fn playable(&self, version: Option<AdapterVersion>) -> Option<AdapterVersion> {
        let version = version?;
        let known = match self.config.schedule {
            Schedule::Sync => version == self.chain.head().version,
            Schedule::Async { .. } => self.chain.contains(&version),
        };
        debug_assert!(!known || version.run == self.config.run.run);
        known.then_some(version)
    }

    /// A result came again. Its receipt may have been lost with a coordinator, so it is repeated.
    fn repeat(&mut self, index: u64) {
        self.counters.duplicates += 1;
        debug_assert!(self.ledger.is_settled(index));
        if let Some(verdict) = self.ledger.verdict(index) {
            self.receipts.owe(index, verdict);
        }
    }
}
