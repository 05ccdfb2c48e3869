//! One job: where each of its rollouts is.
//!
//! ```text
//!           take                    settle (sink)
//!  fresh ─────────► Leased ───────────────────────► closed: accepted | failed
//!                    │  ▲                              ▲
//!        lost/failed ▼  │ take                         │ settle
//!              Backoff ─► Ready                        │
//!                    │ budget used up                  │
//!                    └──────────────► Failing ─────────┘
//! ```
//!
//! Fresh rollouts are a cursor, closed ones range sets, so a job of a billion costs nothing. Only
//! what is under way has an entry in `open`.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::job::{Extent, JobState};
use volley_protocol::{
    AdapterVersion, AttemptId, ErrorCode, GroupIndex, JobSpec, Payloads, RangeSet, SinkRef,
    WorkerId,
};

use crate::extents::{Extents, Kept};
use crate::input::Millis;
use crate::place::{Blocked, Open, Place};
use crate::timeouts::{Waves, is_timed};

/// One job and its rollouts.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) spec: JobSpec,
    pub(crate) state: JobState,
    pub(crate) at: Millis,
    pub(crate) extents: Extents,
    /// Rollouts that were durable when this life began.
    pub(crate) known: u64,
    /// The relay has told what its segments hold (true for new jobs).
    pub(crate) relay_ready: bool,
    pub(crate) gate: Result<(), Blocked>,
    /// Share of this job in the sum over all jobs; kept by `Jobs::refresh`.
    pub(crate) dispatchable_shown: u64,
    /// The same for what is kept for waiting rollouts.
    pub(crate) kept_shown: Kept,
    pub(crate) pins: BTreeMap<GroupIndex, AdapterVersion>,
    pub(crate) retries: u64,
    pub(crate) last_failure: Option<(ErrorCode, String)>,
    pub(crate) accepted: RangeSet,
    pub(crate) failed: RangeSet,
    /// What nobody wanted any more when the job ended; part of `failed`.
    pub(crate) cancelled: RangeSet,
    /// When its rollouts were scheduled, if it has time-outs that count from then.
    pub(crate) waves: Waves,
    pub(crate) open: BTreeMap<u64, Open>,
    pub(crate) ready: BTreeSet<u64>,
    admitted: u64,
    pub(crate) cursor: u64,
    fresh_allowed: u64,
    pub(crate) leased: u64,
    pub(crate) failing: u64,
    pub(crate) accepted_count: u64,
    pub(crate) failed_count: u64,
}

impl Job {
    pub(crate) fn new(spec: JobSpec, at: Millis) -> Self {
        let extents = Extents::new(&spec);
        let mut job = Self {
            extents,
            spec,
            state: JobState::Open,
            at,
            known: 0,
            relay_ready: true,
            gate: Err(Blocked::Restoring),
            dispatchable_shown: 0,
            kept_shown: Kept::default(),
            pins: BTreeMap::new(),
            retries: 0,
            last_failure: None,
            accepted: RangeSet::new(),
            failed: RangeSet::new(),
            cancelled: RangeSet::new(),
            waves: Waves::default(),
            open: BTreeMap::new(),
            ready: BTreeSet::new(),
            admitted: 0,
            cursor: 0,
            fresh_allowed: 0,
            leased: 0,
            failing: 0,
            accepted_count: 0,
            failed_count: 0,
        };
        if is_timed(&job.spec.retry) && job.limit() > 0 {
            job.waves.add(0, at);
        }
        job.recount();
        job
    }

    pub(crate) const fn total(&self) -> u64 {
        self.extents.total()
    }

    pub(crate) const fn admitted(&self) -> u64 {
        self.admitted
    }

    pub(crate) const fn leased(&self) -> u64 {
        self.leased
    }

    pub(crate) const fn failing(&self) -> u64 {
        self.failing
    }

    pub(crate) const fn accepted_count(&self) -> u64 {
        self.accepted_count
    }

    pub(crate) const fn failed_count(&self) -> u64 {
        self.failed_count
    }

    pub(crate) const fn closed_count(&self) -> u64 {
        self.accepted_count + self.failed_count
    }

    /// Waiting, whether allowed to be leased or not.
    pub(crate) const fn queued(&self) -> u64 {
        self.total() - self.closed_count() - self.leased - self.failing
    }

    /// First fresh index that may not be leased.
    pub(crate) fn limit(&self) -> u64 {
        match self.spec.sink {
            SinkRef::Relay => self.total(),
            SinkRef::Learner(_) => self.total().min(self.admitted),
        }
    }

    /// What could be leased now if the job's gate is open.
    pub(crate) fn takeable(&self) -> u64 {
        self.fresh_allowed + self.ready.len() as u64
    }

    pub(crate) fn is_closed(&self, index: u64) -> bool {
        self.accepted.contains(index) || self.failed.contains(index)
    }

    /// Everything below this is closed.
    pub(crate) fn closed_watermark(&self) -> u64 {
        let mut at = 0;
        loop {
            let gap = self.failed.first_gap(self.accepted.first_gap(at));
            if gap == at {
                return at;
            }
            at = gap;
        }
    }

    /// Everything that exists is closed.
    pub(crate) const fn is_exhausted(&self) -> bool {
        self.closed_count() == self.total()
    }

    /// Adds an extent; tells its first index.
    pub(crate) fn extend(&mut self, extent: Extent, payloads: Option<Payloads>) -> u64 {
        debug_assert_eq!(self.state, JobState::Open);
        let start = self.extents.push(extent, payloads);
        // Counting anew would look at everything under way, for each put.
        if self.spec.sink == SinkRef::Relay {
            self.fresh_allowed += extent.rollouts;
        }
        start
    }

    /// Raises the admission limit; false when it did not rise.
    pub(crate) fn admit(&mut self, upto: u64) -> bool {
        if upto <= self.admitted {
            return false;
        }
        self.admitted = upto;
        self.recount();
        true
    }

    /// Takes the next rollout that may be leased: retries first, they are older.
    /// The caller puts it in its place at once ([`Self::lease`]).
    pub(crate) fn take(&mut self) -> Option<u64> {
        if let Some(index) = self.ready.first().copied() {
            return Some(index);
        }
        if self.fresh_allowed == 0 {
            return None;
        }
        let index = self.next_fresh(self.cursor);
        debug_assert!(index < self.limit(), "fresh_allowed counts what is below");
        self.cursor = index;
        Some(index)
    }

    /// A taken or fresh rollout is at a worker now.
    pub(crate) fn lease(&mut self, index: u64, worker: WorkerId, attempt: AttemptId) {
        debug_assert!(!self.is_closed(index) && index < self.total());
        let place = Place::Leased { worker, attempt };
        if self.open.contains_key(&index) {
            self.move_to(index, place);
            return;
        }
        self.leave_fresh(index);
        self.open.insert(index, Open::new(place));
        self.leased += 1;
    }

    /// A fresh rollout becomes an open one that waits; others stay as they are.
    pub(crate) fn open_fresh(&mut self, index: u64, now: Millis) {
        debug_assert!(!self.is_closed(index) && index < self.total());
        if self.open.contains_key(&index) {
            return;
        }
        self.leave_fresh(index);
        let mut open = Open::new(Place::Ready);
        open.ready_at = now;
        self.open.insert(index, open);
        self.ready.insert(index);
    }

    /// Moves an open rollout: the only place where transitions happen.
    pub(crate) fn move_to(&mut self, index: u64, place: Place) {
        let Some(open) = self.open.get_mut(&index) else {
            debug_assert!(false, "only open rollouts move");
            return;
        };
        let old = std::mem::replace(&mut open.place, place);
        let new = &open.place;
        debug_assert!(
            !matches!((&old, new), (Place::Failing(_), _)),
            "only the sink ends what is given up"
        );
        match old {
            Place::Leased { .. } => self.leased -= 1,
            Place::Ready => drop(self.ready.remove(&index)),
            Place::Backoff { .. } => {}
            Place::Failing(_) => self.failing -= 1,
        }
        match new {
            Place::Leased { .. } => self.leased += 1,
            Place::Ready => drop(self.ready.insert(index)),
            Place::Backoff { .. } => {}
            Place::Failing(_) => self.failing += 1,
        }
    }

    /// The backoff that ends at `until` is over; false when it was overtaken by something.
    pub(crate) fn wake(&mut self, index: u64, until: Millis) -> bool {
        let waits =
            self.open.get(&index).map(|open| &open.place) == Some(&Place::Backoff { until });
        if waits {
            if let Some(open) = self.open.get_mut(&index) {
                open.ready_at = until;
            }
            self.move_to(index, Place::Ready);
        }
        waits
    }

    /// Is every member of the group closed?
    pub(crate) fn group_is_closed(&self, group: GroupIndex) -> bool {
        let size = u64::from(self.spec.group_size);
        let (start, end) = (group.0 * size, (group.0 + 1) * size);
        self.accepted.count_in(start, end) + self.failed.count_in(start, end) == size
    }

    /// Groups whose last member is closed pin nothing.
    pub(crate) fn drop_closed_pins(&mut self) {
        let mut pins = std::mem::take(&mut self.pins);
        pins.retain(|group, _| !self.group_is_closed(*group));
        self.pins = pins;
    }

    /// Fresh rollouts below the limit, counted the slow way.
    pub(crate) fn count_fresh(&self) -> u64 {
        let limit = self.limit();
        if self.cursor >= limit {
            return 0;
        }
        let closed =
            self.accepted.count_in(self.cursor, limit) + self.failed.count_in(self.cursor, limit);
        let open = self.open.range(self.cursor..limit).count() as u64;
        limit - self.cursor - closed - open
    }

    /// Fresh rollouts below the limit, as kept.
    pub(crate) const fn fresh_allowed(&self) -> u64 {
        self.fresh_allowed
    }

    /// Smallest index that may be fresh.
    pub(crate) const fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) fn close_open(&mut self, index: u64) -> Option<Open> {
        let open = self.open.remove(&index)?;
        match open.place {
            Place::Leased { .. } => self.leased -= 1,
            Place::Ready => drop(self.ready.remove(&index)),
            Place::Backoff { .. } => {}
            Place::Failing(_) => self.failing -= 1,
        }
        Some(open)
    }

    pub(crate) fn leave_fresh(&mut self, index: u64) {
        if index >= self.cursor && index < self.limit() {
            debug_assert!(self.fresh_allowed > 0);
            self.fresh_allowed -= 1;
        }
        if index == self.cursor {
            self.cursor += 1;
        }
    }

    pub(crate) fn next_fresh(&self, from: u64) -> u64 {
        let mut at = from;
        loop {
            let gap = self.failed.first_gap(self.accepted.first_gap(at));
            if gap == at && !self.open.contains_key(&at) {
                return at;
            }
            at = if gap == at { at + 1 } else { gap };
        }
    }

    pub(crate) fn recount(&mut self) {
        self.accepted_count = self.accepted.count();
        self.failed_count = self.failed.count();
        self.fresh_allowed = self.count_fresh();
        debug_assert!(self.closed_count() <= self.total() || self.state != JobState::Open);
    }
}
