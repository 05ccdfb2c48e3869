//! What became of every rollout. The first decision stands.
//!
//! ```text
//! open ──(decided)──► writing ──(synced)──► accepted | failed
//! ```
//!
//! Nobody is told of a decision before it is on the disk; but from the moment it is made, a
//! further result of the same rollout is a duplicate.

use std::collections::BTreeMap;

use volley_protocol::RangeSet;
use volley_protocol::learner::Verdict;

/// Half-open ranges, ascending.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// What became of every rollout of the job.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accepted: RangeSet,
    failed: RangeSet,
    writing: BTreeMap<u64, Verdict>,
    /// Intake writes under way: number → rollouts.
    writes: BTreeMap<u64, Vec<u64>>,
    last_write: u64,
}

impl Ledger {
    /// The ledger after a restart: all of it is on the disk. `next_write` is at least 1.
    pub(crate) fn restored(accepted: RangeSet, failed: RangeSet, next_write: u64) -> Self {
        debug_assert!(next_write > 0, "writes are numbered from 1");
        Self {
            accepted,
            failed,
            last_write: next_write.saturating_sub(1),
            ..Self::default()
        }
    }

    /// Is it decided, synced or not?
    pub(crate) fn is_settled(&self, index: u64) -> bool {
        self.verdict(index).is_some() || self.writing.contains_key(&index)
    }

    /// The decision, once it is on the disk.
    pub(crate) fn verdict(&self, index: u64) -> Option<Verdict> {
        if self.accepted.contains(index) {
            return Some(Verdict::Accepted);
        }
        self.failed.contains(index).then_some(Verdict::Failed)
    }

    /// Are all of `from..to` decided and on the disk?
    pub(crate) fn all_settled(&self, from: u64, to: u64) -> bool {
        self.accepted.count_in(from, to) + self.failed.count_in(from, to) == to - from
    }

    /// Those of `from..to` that failed.
    pub(crate) fn failed_in(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        (from..to).filter(|index| self.failed.contains(*index))
    }

    /// Number of the last intake write.
    pub(crate) const fn last_write(&self) -> u64 {
        self.last_write
    }

    /// Is everything written on the disk?
    pub(crate) fn is_synced(&self) -> bool {
        self.writes.is_empty()
    }

    /// Number of the intake write that is made up now.
    pub(crate) const fn next_write(&self) -> u64 {
        self.last_write + 1
    }

    /// Notes a decision that intake write `number` will hold: the last one or a further one.
    pub(crate) fn decide(&mut self, number: u64, index: u64, verdict: Verdict) {
        assert!(!self.is_settled(index), "{index} is decided once");
        assert!(number == self.last_write || number == self.next_write());
        self.last_write = number;
        self.writing.insert(index, verdict);
        self.writes.entry(number).or_default().push(index);
    }

    /// A record of the intake that was read back: it is decided and on the disk.
    pub(crate) fn read_back(&mut self, index: u64) {
        debug_assert!(!self.is_settled(index), "duplicates were left out");
        self.accepted.insert(index);
    }

    /// The disk has everything up to this write. Gives the decisions that now hold.
    pub(crate) fn synced(&mut self, upto: u64) -> Vec<(u64, Verdict)> {
        let rest = self.writes.split_off(&upto.saturating_add(1));
        let done = std::mem::replace(&mut self.writes, rest);
        let mut settled = Vec::new();
        for index in done.into_values().flatten() {
            let verdict = self.writing.remove(&index);
            debug_assert!(verdict.is_some(), "a write names what is being written");
            let Some(verdict) = verdict else { continue };
            match verdict {
                Verdict::Accepted => self.accepted.insert(index),
                Verdict::Failed => self.failed.insert(index),
            };
            settled.push((index, verdict));
        }
        settled
    }

    /// Everything that is settled, as a `Reconcile` tells it in at most `ranges_max` ranges.
    /// A long run with many failures has more: what lies below the first open rollout is then
    /// told as accepted, for there the coordinator only needs to know that it is settled.
    pub(crate) fn reconcile(&self, ranges_max: usize) -> (Ranges, Ranges) {
        let (accepted, failed) = (&self.accepted, &self.failed);
        if accepted.ranges().count() + failed.ranges().count() <= ranges_max {
            return (accepted.ranges().collect(), failed.ranges().collect());
        }
        let mut all = accepted.clone();
        failed
            .ranges()
            .for_each(|(from, to)| all.insert_range(from, to));
        let open = all.watermark();
        debug_assert!(
            open > 0,
            "more ranges than the window of open rollouts allows"
        );
        let above = |set: &RangeSet| -> Ranges {
            let cut = set.ranges().map(|(from, to)| (from.max(open), to));
            cut.filter(|(from, to)| from < to).collect()
        };
        let mut accepted = above(accepted);
        accepted.insert(0, (0, open));
        (accepted, above(failed))
    }

    /// No rollout has two decisions; every write under way names what is being written.
    pub(crate) fn check(&self) {
        for (from, to) in self.failed.ranges() {
            let both = self.accepted.count_in(from, to);
            assert_eq!(both, 0, "accepted and failed in {from}..{to}");
        }
        let named = self.writes.values().map(Vec::len).sum::<usize>();
        assert_eq!(named, self.writing.len(), "writes name what is written");
        for index in self.writing.keys() {
            assert!(self.verdict(*index).is_none(), "{index} was decided twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use volley_protocol::learner::FromLearner;
    use volley_protocol::limits::CONTROL_FRAME_BYTES_MAX;
    use volley_protocol::{JobId, codec};

    use super::*;
    use crate::learner::RECONCILE_RANGES_MAX;

    #[test]
    fn a_decision_holds_once_it_is_synced() {
        let mut ledger = Ledger::restored(RangeSet::new(), RangeSet::new(), 1);
        ledger.decide(1, 3, Verdict::Accepted);
        ledger.decide(2, 4, Verdict::Failed);
        assert!(ledger.is_settled(3) && ledger.verdict(3).is_none());
        assert_eq!(ledger.synced(1), [(3, Verdict::Accepted)]);
        assert_eq!(ledger.verdict(3), Some(Verdict::Accepted));
        assert!(!ledger.is_synced());
        assert_eq!(ledger.synced(9), [(4, Verdict::Failed)]);
        ledger.check();
    }

    #[test]
    fn the_most_ranges_fit_a_frame() {
        let ranges: Ranges = (0..RECONCILE_RANGES_MAX as u64)
            .map(|at| (2 * at, 2 * at + 1))
            .collect();
        for (accepted, failed) in [(ranges.clone(), Vec::new()), (Vec::new(), ranges)] {
            let job = JobId(1);
            let message = FromLearner::Reconcile {
                job,
                accepted,
                failed,
            };
            let bytes = codec::encode(&message).len();
            assert!(bytes <= CONTROL_FRAME_BYTES_MAX, "{bytes}");
        }
    }

    #[test]
    fn too_many_ranges_are_told_coarsely_below_the_first_open_rollout() {
        let accepted = [(0, 3), (4, 6), (8, 9)].into_iter().collect();
        let failed = [(3, 4)].into_iter().collect();
        let ledger = Ledger::restored(accepted, failed, 1);
        assert_eq!(ledger.reconcile(9).1, [(3, 4)]);
        assert_eq!(ledger.reconcile(3), (vec![(0, 6), (8, 9)], vec![]));
    }
}
