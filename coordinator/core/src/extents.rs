//! Which instance an index plays: a job is one extent, a queue is many.

use std::collections::BTreeMap;

use volley_protocol::JobSpec;
use volley_protocol::job::Extent;
use volley_protocol::limits::JOB_EXTENTS_MAX;

/// Consecutive indices that play consecutive instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first_instance: u64,
    rollouts: u64,
    /// `None` for what the job's specification itself contains.
    put: Option<u128>,
}

/// The extents of one job, by the index at which they start.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    group_size: u64,
    spans: BTreeMap<u64, Span>,
    /// `put` id → start, so that a repeated `put` adds nothing.
    puts: BTreeMap<u128, u64>,
    total: u64,
}

impl Extents {
    pub(crate) fn new(spec: &JobSpec) -> Self {
        debug_assert!(spec.group_size > 0);
        let span = Span {
            first_instance: spec.first_instance,
            rollouts: spec.rollouts,
            put: None,
        };
        Self {
            group_size: u64::from(spec.group_size),
            spans: (spec.rollouts > 0)
                .then_some((0, span))
                .into_iter()
                .collect(),
            puts: BTreeMap::new(),
            total: spec.rollouts,
        }
    }

    /// Rollouts in all.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Is this `put` known?
    pub(crate) fn knows(&self, put: u128) -> bool {
        self.puts.contains_key(&put)
    }

    /// Adds an extent behind the others; tells its first index.
    pub(crate) fn push(&mut self, extent: Extent) -> u64 {
        debug_assert!(!self.knows(extent.put), "the caller has asked");
        let start = self.total;
        self.puts.insert(extent.put, start);
        if extent.rollouts > 0 {
            let span = Span {
                first_instance: extent.first_instance,
                rollouts: extent.rollouts,
                put: Some(extent.put),
            };
            self.spans.insert(start, span);
        }
        self.total += extent.rollouts;
        start
    }

    /// Forgets the oldest extents that lie below `closed_upto`, until a further one has room.
    /// False when all of them are unfinished. (The ids of the last
    /// [`JOB_EXTENTS_MAX`] puts are remembered; a repeat of an older one would add again.)
    pub(crate) fn make_room(&mut self, closed_upto: u64) -> bool {
        while self.puts.len() >= JOB_EXTENTS_MAX {
            let Some((&start, &span)) = self.spans.first_key_value() else {
                self.puts.pop_first();
                continue;
            };
            if start + span.rollouts > closed_upto {
                return false;
            }
            self.spans.remove(&start);
            if let Some(put) = span.put {
                self.puts.remove(&put);
            }
        }
        true
    }

    /// The instance that `index` plays; all members of a group play the same.
    pub(crate) fn instance_of(&self, index: u64) -> u64 {
        debug_assert!(index < self.total);
        let span = self.spans.range(..=index).next_back();
        span.map_or(0, |(start, span)| {
            span.first_instance + (index - start) / self.group_size
        })
    }

    /// What was put, with start indices, for the records.
    pub(crate) fn puts(&self) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let mut puts: Vec<_> = self
            .puts
            .iter()
            .map(|(put, start)| (*start, *put))
            .collect();
        puts.sort_unstable();
        puts.into_iter().map(|(start, put)| {
            let span = self.spans.get(&start).filter(|span| span.put == Some(put));
            let (first_instance, rollouts) =
                span.map_or((0, 0), |s| (s.first_instance, s.rollouts));
            let extent = Extent {
                put,
                first_instance,
                rollouts,
            };
            (start, extent)
        })
    }

    /// Replays a recorded extent. Its start may lie beyond the total when older ones were
    /// forgotten.
    pub(crate) fn restore(&mut self, start: u64, extent: Extent) {
        self.total = self.total.max(start);
        if !self.knows(extent.put) && start == self.total {
            self.push(extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::spec;

    #[test]
    fn instances_follow_extents_and_groups() {
        let mut job = spec(1, 4);
        (job.group_size, job.first_instance) = (2, 100);
        let mut extents = Extents::new(&job);
        let extent = Extent {
            put: 9,
            first_instance: 7,
            rollouts: 2,
        };
        assert_eq!(extents.push(extent), 4);
        let instances: Vec<u64> = (0..6).map(|i| extents.instance_of(i)).collect();
        assert_eq!(instances, [100, 100, 101, 101, 7, 7]);
        assert!(extents.knows(9) && !extents.knows(8));
        let mut again = Extents::new(&job);
        for (start, extent) in extents.puts() {
            again.restore(start, extent);
        }
        assert_eq!(again.total(), 6);
        assert_eq!(again.instance_of(5), 7);
    }

    #[test]
    fn room_is_made_by_forgetting_what_is_closed() {
        let mut extents = Extents::new(&spec(1, 0));
        for put in 0..JOB_EXTENTS_MAX as u128 {
            extents.push(Extent {
                put,
                first_instance: 0,
                rollouts: 1,
            });
        }
        assert!(!extents.make_room(0), "everything is unfinished");
        assert!(extents.make_room(3));
        assert!(!extents.knows(0) && extents.knows(1));
    }
}
