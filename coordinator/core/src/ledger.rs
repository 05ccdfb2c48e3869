//! One job's ledger of what is closed: its sink's word, cancellation, and replay.

use volley_protocol::job::Extent;
use volley_protocol::learner::Verdict;
use volley_protocol::{Payloads, RangeSet};

use crate::place::{Open, Place, Settled};
use crate::queue::Job;
use crate::ranges::{self, Ranges};

impl Job {
    /// The sink has decided. The first decision stands, except that `Accepted` overrules what was
    /// only recorded as failed.
    pub(crate) fn settle(&mut self, index: u64, verdict: Verdict) -> Settled {
        if index >= self.total() || self.accepted.contains(index) {
            return Settled::Known;
        }
        if self.failed.contains(index) {
            if verdict == Verdict::Failed {
                return Settled::Known;
            }
            self.failed = ranges::without(&self.failed, index);
            if self.cancelled.contains(index) {
                self.cancelled = ranges::without(&self.cancelled, index);
            }
            self.accepted.insert(index);
            (self.failed_count, self.accepted_count) =
                (self.failed_count - 1, self.accepted_count + 1);
            return Settled::Corrected;
        }
        let open = self.close_open(index);
        if open.is_none() {
            self.leave_fresh(index);
        }
        let (set, count) = match verdict {
            Verdict::Accepted => (&mut self.accepted, &mut self.accepted_count),
            Verdict::Failed => (&mut self.failed, &mut self.failed_count),
        };
        let new = set.insert(index);
        assert!(new, "a rollout closes once");
        *count += 1;
        Settled::First(open)
    }

    /// Replaces what is closed by what the sink says. Gives back the open rollouts that are closed
    /// thereby, and the ranges that are open again.
    pub(crate) fn reconcile(
        &mut self,
        accepted: &RangeSet,
        failed: &RangeSet,
    ) -> (Vec<Open>, Ranges) {
        let end = self.total();
        let nothing = RangeSet::new();
        let accepted: RangeSet = ranges::difference(accepted, &nothing, end)
            .into_iter()
            .collect();
        let failed: RangeSet = ranges::difference(failed, &accepted, end)
            .into_iter()
            .collect();
        let both: RangeSet = accepted.ranges().chain(failed.ranges()).collect();
        let mut reopened = ranges::difference(&self.accepted, &both, end);
        reopened.extend(ranges::difference(&self.failed, &both, end));
        let ended: Vec<u64> = self
            .open
            .keys()
            .copied()
            .filter(|i| both.contains(*i))
            .collect();
        let ended = ended
            .into_iter()
            .filter_map(|index| self.close_open(index))
            .collect();
        (self.accepted, self.failed) = (accepted, failed);
        let lowest = reopened.iter().map(|(start, _)| *start).min();
        self.cursor = self.cursor.min(lowest.unwrap_or(self.cursor));
        self.recount();
        (ended, reopened)
    }

    /// Closes everything that is open as failed; gives back what was under way.
    pub(crate) fn cancel(&mut self) -> Vec<(u64, Open)> {
        let under_way = std::mem::take(&mut self.open);
        let mut dead = self.failed.clone();
        for (index, open) in &under_way {
            if matches!(open.place, Place::Failing(_)) {
                dead.insert(*index);
            }
        }
        self.ready.clear();
        (self.leased, self.failing) = (0, 0);
        let everything = RangeSet::from_iter([(0, self.total())]);
        let rest = ranges::difference(&everything, &self.accepted, self.total());
        self.failed = rest.into_iter().collect();
        self.cancelled = ranges::difference(&self.failed, &dead, self.total())
            .into_iter()
            .collect();
        self.cursor = self.total();
        self.recount();
        debug_assert!(self.is_exhausted());
        under_way.into_iter().collect()
    }

    /// Replays a `Closed` record: what is named moves to where it is named.
    pub(crate) fn replay_closed(&mut self, accepted: &[(u64, u64)], failed: &[(u64, u64)]) {
        let named_accepted: RangeSet = accepted.iter().copied().collect();
        let named_failed: RangeSet = failed.iter().copied().collect();
        let cut = |set: &RangeSet, by: &RangeSet| ranges::difference(set, by, u64::MAX);
        // Of a job that had ended when a last result came.
        let cancelled = cut(&self.cancelled, &named_accepted);
        self.cancelled = cancelled.into_iter().collect();
        let kept_failed = cut(&self.failed, &named_accepted);
        let kept_accepted = cut(&self.accepted, &named_failed);
        self.accepted = kept_accepted
            .into_iter()
            .chain(accepted.iter().copied())
            .collect();
        self.failed = kept_failed
            .into_iter()
            .chain(failed.iter().copied())
            .collect();
        self.recount();
        self.drop_closed_pins();
    }

    /// Replays a `Reopened` record.
    pub(crate) fn replay_reopened(&mut self, ranges: &[(u64, u64)]) {
        let open: RangeSet = ranges.iter().copied().collect();
        self.accepted = ranges::difference(&self.accepted, &open, u64::MAX)
            .into_iter()
            .collect();
        self.failed = ranges::difference(&self.failed, &open, u64::MAX)
            .into_iter()
            .collect();
        self.recount();
    }

    /// Replays an `Extended` record.
    pub(crate) fn replay_extended(&mut self, start: u64, extent: Extent) {
        self.extents.restore(start, extent);
        self.recount();
    }

    /// Replays a `Put` record.
    pub(crate) fn replay_put(&mut self, start: u64, extent: Extent, payloads: Option<Payloads>) {
        self.extents.restore_put(start, extent, payloads);
        self.recount();
    }

    /// Frees the payloads of puts that one of these rollouts belongs to and that are closed by
    /// now. Tells where those puts start.
    pub(crate) fn drop_closed_payloads(&mut self, indices: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut dropped = Vec::new();
        let mut looked_at = None;
        for index in indices {
            let put = self.extents.kept_put_of(index);
            // Neighbours are settled together: most ask for the put that was just looked at.
            if put == looked_at {
                continue;
            }
            looked_at = put;
            if let Some((start, end)) = put
                && self.closed_in(start, end) == end - start
            {
                self.extents.drop_payloads(start);
                dropped.push(start);
            }
        }
        dropped
    }

    /// Open rollouts whose payloads were deleted: their sink lost what it had said to keep.
    pub(crate) fn without_payload(&self) -> Vec<u64> {
        let lost = self.extents.lost_puts().into_iter();
        lost.filter(|(start, end)| self.closed_in(*start, *end) < end - start)
            .flat_map(|(start, end)| start..end)
            .filter(|index| !self.is_closed(*index))
            .collect()
    }

    fn closed_in(&self, start: u64, end: u64) -> u64 {
        self.accepted.count_in(start, end) + self.failed.count_in(start, end)
    }
}
