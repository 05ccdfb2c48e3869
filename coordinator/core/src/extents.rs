//! Which instance and which payload an index plays: a job is one extent, a queue is many.
//!
//! Payloads stay as they came, one piece of bytes for each put, until every rollout of the put is
//! closed. A waiting rollout therefore costs the bytes of its payload and four more.

use std::collections::BTreeMap;

use volley_protocol::codec::Blob;
use volley_protocol::job::Extent;
use volley_protocol::limits::JOB_EXTENTS_MAX;
use volley_protocol::{JobSpec, Payloads};

/// What a put takes in memory beside its payloads: two map entries and an allocation, generously.
pub(crate) const EXTENT_BYTES: u64 = 256;

/// The payloads of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Load {
    /// It came without.
    None,
    /// Some of its rollouts are open.
    Kept(Payloads),
    /// They were, or are to be, deleted: all its rollouts were closed.
    Gone,
}

/// Consecutive indices that play consecutive instances.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    first_instance: u64,
    rollouts: u64,
    /// `None` for what the job's specification itself contains.
    put: Option<u128>,
    load: Load,
}

/// What is kept for rollouts that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) payloads: u64,
    /// With what every put costs.
    pub(crate) bytes: u64,
}

/// The extents of one job, by the index at which they start.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    group_size: u64,
    spans: BTreeMap<u64, Span>,
    /// `put` id → start, so that a repeated `put` adds nothing.
    puts: BTreeMap<u128, u64>,
    total: u64,
    payloads: u64,
    payload_bytes: u64,
    /// Some put came with payloads.
    ever_loaded: bool,
}

impl Extents {
    pub(crate) fn new(spec: &JobSpec) -> Self {
        debug_assert!(spec.group_size > 0);
        let span = Span {
            first_instance: spec.first_instance,
            rollouts: spec.rollouts,
            put: None,
            load: Load::None,
        };
        Self {
            group_size: u64::from(spec.group_size),
            spans: (spec.rollouts > 0)
                .then_some((0, span))
                .into_iter()
                .collect(),
            puts: BTreeMap::new(),
            total: spec.rollouts,
            payloads: 0,
            payload_bytes: 0,
            ever_loaded: false,
        }
    }

    /// Rollouts in all.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// What this job keeps.
    pub(crate) fn kept(&self) -> Kept {
        Kept {
            payloads: self.payloads,
            bytes: self.payload_bytes + self.puts.len() as u64 * EXTENT_BYTES,
        }
    }

    /// Do any open rollouts have payloads?
    pub(crate) const fn has_payloads(&self) -> bool {
        self.payloads > 0
    }

    /// Is this `put` known?
    pub(crate) fn knows(&self, put: u128) -> bool {
        self.puts.contains_key(&put)
    }

    /// Adds an extent behind the others; tells its first index.
    pub(crate) fn push(&mut self, extent: Extent, payloads: Option<Payloads>) -> u64 {
        let load = payloads.map_or(Load::None, Load::Kept);
        self.push_loaded(extent, load)
    }

    fn push_loaded(&mut self, extent: Extent, load: Load) -> u64 {
        debug_assert!(!self.knows(extent.put), "the caller has asked");
        let start = self.total;
        self.puts.insert(extent.put, start);
        self.ever_loaded |= load != Load::None;
        if let Load::Kept(payloads) = &load {
            self.payloads += payloads.count() as u64;
            self.payload_bytes += payloads.size_bytes() as u64;
        }
        if extent.rollouts > 0 {
            let span = Span {
                first_instance: extent.first_instance,
                rollouts: extent.rollouts,
                put: Some(extent.put),
                load,
            };
            self.spans.insert(start, span);
        }
        self.total += extent.rollouts;
        start
    }

    /// Are as many puts remembered as may be?
    pub(crate) fn is_full(&self) -> bool {
        self.puts.len() >= JOB_EXTENTS_MAX
    }

    /// Forgets the oldest extents that lie below `closed_upto`, until a further one has room.
    /// False when all of them are unfinished. (The ids of the last
    /// [`JOB_EXTENTS_MAX`] puts are remembered; a repeat of an older one would add again.)
    pub(crate) fn make_room(&mut self, closed_upto: u64) -> bool {
        while self.is_full() {
            let Some((&start, span)) = self.spans.first_key_value() else {
                self.puts.pop_first();
                continue;
            };
            if start + span.rollouts > closed_upto {
                return false;
            }
            debug_assert!(!matches!(span.load, Load::Kept(_)), "closed puts keep none");
            if let Some(put) = span.put {
                self.puts.remove(&put);
            }
            self.spans.remove(&start);
        }
        true
    }

    /// The job has ended: only how many rollouts it had is remembered. Tells which puts had
    /// payloads left.
    pub(crate) fn collapse(&mut self) -> Vec<u64> {
        let kept = self.kept_puts();
        self.spans.retain(|_, span| span.put.is_none());
        self.puts.clear();
        (self.payloads, self.payload_bytes) = (0, 0);
        kept.into_iter().map(|(start, _)| start).collect()
    }

    /// The instance that `index` plays; all members of a group play the same.
    pub(crate) fn instance_of(&self, index: u64) -> u64 {
        debug_assert!(index < self.total);
        self.span_of(index).map_or(0, |(start, span)| {
            span.first_instance + (index - start) / self.group_size
        })
    }

    /// The payload that `index` plays; empty when its put came without, `None` when it was deleted.
    pub(crate) fn payload_of(&self, index: u64) -> Option<Blob> {
        let Some((start, span)) = self.span_of(index) else {
            // Its put is forgotten: nobody knows any more whether it had one.
            return (!self.ever_loaded).then(Blob::default);
        };
        match &span.load {
            Load::None => Some(Blob::default()),
            Load::Kept(payloads) => {
                let number = (index - start) / self.group_size;
                Some(Blob(payloads.get(number as usize).to_vec()))
            }
            Load::Gone => None,
        }
    }

    fn span_of(&self, index: u64) -> Option<(u64, &Span)> {
        let (start, span) = self.spans.range(..=index).next_back()?;
        (index < start + span.rollouts).then_some((*start, span))
    }

    /// The put that `index` belongs to, if its payloads are kept: where it starts and ends.
    pub(crate) fn kept_put_of(&self, index: u64) -> Option<(u64, u64)> {
        let (start, span) = self.span_of(index)?;
        matches!(span.load, Load::Kept(_)).then_some((start, start + span.rollouts))
    }

    /// Puts whose payloads are kept: where they start and end.
    pub(crate) fn kept_puts(&self) -> Vec<(u64, u64)> {
        self.puts_where(|load| matches!(load, Load::Kept(_)))
    }

    /// Puts whose payloads were deleted: where they start and end.
    pub(crate) fn lost_puts(&self) -> Vec<(u64, u64)> {
        self.puts_where(|load| *load == Load::Gone)
    }

    fn puts_where(&self, is_it: impl Fn(&Load) -> bool) -> Vec<(u64, u64)> {
        let spans = self.spans.iter().filter(|(_, span)| is_it(&span.load));
        spans
            .map(|(start, span)| (*start, start + span.rollouts))
            .collect()
    }

    /// Every rollout of the put that starts there is closed.
    pub(crate) fn drop_payloads(&mut self, start: u64) {
        let Some(span) = self.spans.get_mut(&start) else {
            return;
        };
        if let Load::Kept(payloads) = std::mem::replace(&mut span.load, Load::Gone) {
            self.payloads -= payloads.count() as u64;
            self.payload_bytes -= payloads.size_bytes() as u64;
        }
    }

    /// What was put, with start indices and payloads, for the records. The first value of the
    /// pair says whether there ever were payloads.
    pub(crate) fn puts(&self) -> impl Iterator<Item = (u64, Extent, bool, Option<Payloads>)> + '_ {
        let mut puts: Vec<_> = self
            .puts
            .iter()
            .map(|(put, start)| (*start, *put))
            .collect();
        puts.sort_unstable();
        let listed = self.spans.values().map(|span| span.rollouts);
        if puts.is_empty() && listed.sum::<u64>() < self.total {
            // An ended queue: an extent of nothing says how many rollouts it had.
            puts.push((self.total, 0));
        }
        puts.into_iter().map(|(start, put)| {
            let span = self.spans.get(&start).filter(|span| span.put == Some(put));
            let (first_instance, rollouts) =
                span.map_or((0, 0), |s| (s.first_instance, s.rollouts));
            let extent = Extent {
                put,
                first_instance,
                rollouts,
            };
            let forgotten = if self.ever_loaded {
                &Load::Gone
            } else {
                &Load::None
            };
            let load = span.map_or(forgotten, |span| &span.load);
            let payloads = match load {
                Load::Kept(payloads) => Some(payloads.clone()),
                Load::None | Load::Gone => None,
            };
            (start, extent, *load != Load::None, payloads)
        })
    }

    /// Replays a recorded extent. Its start may lie beyond the total when older ones were
    /// forgotten.
    pub(crate) fn restore(&mut self, start: u64, extent: Extent) {
        self.restore_loaded(start, extent, Load::None);
    }

    /// Replays a recorded extent that came with payloads; they may have been deleted since.
    pub(crate) fn restore_put(&mut self, start: u64, extent: Extent, payloads: Option<Payloads>) {
        self.restore_loaded(start, extent, payloads.map_or(Load::Gone, Load::Kept));
    }

    fn restore_loaded(&mut self, start: u64, extent: Extent, load: Load) {
        self.total = self.total.max(start);
        if !self.knows(extent.put) && start == self.total {
            self.push_loaded(extent, load);
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
        assert_eq!(extents.push(extent, None), 4);
        let instances: Vec<u64> = (0..6).map(|i| extents.instance_of(i)).collect();
        assert_eq!(instances, [100, 100, 101, 101, 7, 7]);
        assert!(extents.knows(9) && !extents.knows(8));
        let mut again = Extents::new(&job);
        for (start, extent, loaded, _) in extents.puts() {
            assert!(!loaded);
            again.restore(start, extent);
        }
        assert_eq!(again.total(), 6);
        assert_eq!(again.instance_of(5), 7);
    }

    #[test]
    fn room_is_made_by_forgetting_what_is_closed() {
        let mut extents = Extents::new(&spec(1, 0));
        for put in 0..JOB_EXTENTS_MAX as u128 {
            let extent = Extent {
                put,
                first_instance: 0,
                rollouts: 1,
            };
            extents.push(extent, None);
        }
        assert!(!extents.make_room(0), "everything is unfinished");
        assert!(extents.make_room(3));
        assert!(!extents.knows(0) && extents.knows(1));
    }

    fn payloads(texts: &[&str]) -> Payloads {
        let mut writer = volley_protocol::payload::PayloadWriter::default();
        assert!(texts.iter().all(|text| writer.push(text.as_bytes())));
        Payloads::parse(texts.len() as u64, writer.take()).expect("own bytes")
    }

    fn put(put: u128, rollouts: u64) -> Extent {
        Extent {
            put,
            first_instance: 0,
            rollouts,
        }
    }

    #[test]
    fn payloads_follow_groups_and_leave_with_their_put() {
        let mut job = spec(1, 0);
        job.group_size = 2;
        let mut extents = Extents::new(&job);
        extents.push(put(1, 2), None);
        let texts = payloads(&["a", "bc"]);
        let bytes = texts.size_bytes() as u64;
        assert_eq!(extents.push(put(2, 4), Some(texts)), 2);
        let of = |extents: &Extents, index| extents.payload_of(index).map(|blob| blob.0);
        let told: Vec<_> = (0..6)
            .map(|i| of(&extents, i).unwrap_or_default())
            .collect();
        assert_eq!(told, [&b""[..], b"", b"a", b"a", b"bc", b"bc"]);
        assert_eq!(
            (extents.kept_put_of(1), extents.kept_put_of(5)),
            (None, Some((2, 6)))
        );
        assert_eq!(extents.kept().bytes, bytes + 2 * EXTENT_BYTES);
        extents.drop_payloads(2);
        assert_eq!(
            (extents.kept().payloads, extents.has_payloads()),
            (0, false)
        );
        assert_eq!((of(&extents, 1), of(&extents, 5)), (Some(vec![]), None));
        assert_eq!(extents.lost_puts(), [(2, 6)]);
    }

    #[test]
    fn an_ended_queue_remembers_how_many_rollouts_it_had_and_that_payloads_are_gone() {
        let of = |payloads: Option<Payloads>| {
            let mut extents = Extents::new(&spec(1, 0));
            extents.push(put(1, 3), payloads);
            extents.push(put(2, 3), None);
            let dropped = extents.collapse();
            assert_eq!(extents.kept(), Kept::default());
            let mut again = Extents::new(&spec(1, 0));
            for (start, extent, loaded, _) in extents.puts() {
                if loaded {
                    again.restore_put(start, extent, None);
                } else {
                    again.restore(start, extent);
                }
            }
            assert_eq!(again.total(), 6);
            let payload = |extents: &Extents| extents.payload_of(1).map(|blob| blob.0);
            assert_eq!(payload(&extents), payload(&again));
            (dropped, payload(&again))
        };
        assert_eq!(of(Some(payloads(&["a", "b", "c"]))), (vec![0], None));
        assert_eq!(of(None), (vec![], Some(vec![])), "there never were any");
    }

    /// Figures of `kept` are what a queue of small payloads is bounded by: they have to be honest.
    #[test]
    fn a_waiting_rollout_costs_its_payload_and_little_more() {
        let mut extents = Extents::new(&spec(1, 0));
        let text = "x".repeat(64);
        let texts = vec![text.as_str(); 512];
        for id in 0..100 {
            extents.push(put(id, 512), Some(payloads(&texts)));
        }
        let kept = extents.kept();
        assert_eq!(kept.payloads, 51_200);
        assert!(kept.bytes / kept.payloads < 70, "{kept:?}");
    }
}
