//! Receipts that the coordinator has not acknowledged.
//!
//! A session keeps what it is given, so a receipt is repeated in the next session only, after the
//! `Reconcile` that says the same in ranges. The acknowledgement tells the learner when it may
//! leave without the coordinator forgetting anything.

use std::collections::BTreeMap;

use volley_protocol::learner::{FromLearner, ReceiptEntry, Verdict};
use volley_protocol::limits::BATCH_ENTRIES_MAX;
use volley_protocol::{JobId, RolloutId};

use crate::effect::Effect;

/// Receipts kept for repetition. A coordinator that leases and never acknowledges does not make
/// the learner grow: older ones are left to the next `Reconcile`.
const UNACKED_MAX: usize = 16;

/// Receipts that the coordinator has not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// Not yet said. Bounded by the open rollouts: said at once while there is a session.
    due: BTreeMap<u64, Verdict>,
    /// Said in this session: sequence number → entries.
    unacked: BTreeMap<u64, Vec<ReceiptEntry>>,
    last_seq: u64,
}

impl Receipts {
    /// Is everything said and acknowledged?
    pub(crate) fn is_clear(&self) -> bool {
        self.due.is_empty() && self.unacked.is_empty()
    }

    /// A decision holds, or the coordinator seems not to know it.
    pub(crate) fn owe(&mut self, index: u64, verdict: Verdict) {
        let before = self.due.insert(index, verdict);
        debug_assert!(before.is_none_or(|v| v == verdict), "decided once");
    }

    /// A new session: everything that was not acknowledged is due again.
    pub(crate) fn new_session(&mut self) {
        self.last_seq = 0;
        for entry in std::mem::take(&mut self.unacked).into_values().flatten() {
            self.due.insert(entry.rollout.index, entry.verdict);
        }
        debug_assert!(self.unacked.is_empty());
    }

    /// The coordinator has these on its disk.
    pub(crate) fn acked(&mut self, upto: u64) {
        self.unacked.retain(|seq, _| *seq > upto);
        debug_assert!(self.unacked.keys().all(|seq| *seq <= self.last_seq));
    }

    /// Says what is due. Only with a session.
    pub(crate) fn say(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        let due = std::mem::take(&mut self.due);
        let entries = due.into_iter().map(|(index, verdict)| ReceiptEntry {
            rollout: RolloutId { job, index },
            verdict,
        });
        let entries: Vec<_> = entries.collect();
        for chunk in entries.chunks(BATCH_ENTRIES_MAX) {
            self.last_seq += 1;
            self.unacked.insert(self.last_seq, chunk.to_vec());
            effects.push(Effect::Send(FromLearner::Receipt {
                seq: self.last_seq,
                entries: chunk.to_vec(),
            }));
        }
        let mut kept: usize = self.unacked.values().map(Vec::len).sum();
        while kept > UNACKED_MAX * BATCH_ENTRIES_MAX {
            kept -= self.unacked.pop_first().map_or(kept, |(_, e)| e.len());
        }
        debug_assert!(self.due.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_acknowledged_is_due_in_the_next_session() {
        let (mut receipts, mut effects) = (Receipts::default(), Vec::new());
        receipts.owe(1, Verdict::Accepted);
        receipts.say(JobId(1), &mut effects);
        receipts.owe(2, Verdict::Failed);
        receipts.say(JobId(1), &mut effects);
        receipts.acked(1);
        assert!(!receipts.is_clear());
        receipts.new_session();
        effects.clear();
        receipts.say(JobId(1), &mut effects);
        let rollout = RolloutId {
            job: JobId(1),
            index: 2,
        };
        let verdict = Verdict::Failed;
        let entries = vec![ReceiptEntry { rollout, verdict }];
        let again = Effect::Send(FromLearner::Receipt { seq: 1, entries });
        assert_eq!(effects, [again]);
        receipts.acked(1);
        assert!(receipts.is_clear());
    }
}
