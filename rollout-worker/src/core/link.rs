//! The session with the coordinator: its epoch, the credit given in it, what is still to be said.
//!
//! Credit is absolute: the number of leases ever allowed in this session. What a coordinator may
//! send is therefore known to both sides, whatever crosses on the way.

use volley_protocol::Epoch;
use volley_protocol::worker::FromWorker;

use super::effect::Effect;
use super::input::{Millis, SessionId};

/// The session with the coordinator.
#[derive(Debug, Default)]
pub(super) struct Link {
    session: Option<SessionId>,
    epoch: Epoch,
    /// When the last session ended, or the process began.
    pub(super) alone_since: Millis,
    pub(super) heartbeat_at: Millis,
    /// Leases received in this session.
    taken: u64,
    /// Leases ever allowed in this session.
    granted: u64,
    /// Failures without a session to tell them in. Bounded: no lease comes without one.
    unsaid: Vec<FromWorker>,
}

impl Link {
    pub(super) const fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub(super) fn unsaid(&self) -> &[FromWorker] {
        &self.unsaid
    }

    /// Leases that are allowed and have not come.
    pub(super) const fn outstanding(&self) -> u64 {
        self.granted - self.taken
    }

    pub(super) fn up(&mut self, now: Millis, session: SessionId, epoch: Epoch) {
        debug_assert!(self.session.is_none(), "the old session has ended");
        self.session = Some(session);
        self.epoch = self.epoch.max(epoch);
        (self.taken, self.granted, self.heartbeat_at) = (0, 0, now);
    }

    pub(super) fn down(&mut self, now: Millis) {
        debug_assert!(self.taken <= self.granted);
        self.session = None;
        self.alone_since = now;
        (self.taken, self.granted) = (0, 0);
    }

    /// Does a coordinator of this epoch still command?
    pub(super) fn commands(&self, epoch: Epoch) -> bool {
        epoch >= self.epoch
    }

    /// Counts a lease. False when it is above the credit.
    pub(super) fn take(&mut self) -> bool {
        let allowed = self.taken < self.granted;
        self.taken += u64::from(allowed);
        debug_assert!(self.taken <= self.granted);
        allowed
    }

    /// Raises the credit until `room` further leases are allowed, if that is worth a message.
    pub(super) fn grant(&mut self, room: u64, worth: u64, effects: &mut Vec<Effect>) {
        let more = room.saturating_sub(self.outstanding());
        if self.session.is_some() && more >= worth.max(1) {
            self.granted += more;
            debug_assert_eq!(self.outstanding(), room);
            effects.push(Effect::Send(FromWorker::Ready {
                credit_total: self.granted,
            }));
        }
    }

    /// Says it now, or in the next session.
    pub(super) fn say(&mut self, message: FromWorker, effects: &mut Vec<Effect>) {
        if self.session.is_some() {
            debug_assert!(self.unsaid.is_empty(), "in order");
            effects.push(Effect::Send(message));
        } else {
            self.unsaid.push(message);
        }
    }

    /// Says it in the open session; without one it is not worth repeating.
    pub(super) fn say_if_open(&self, message: FromWorker, effects: &mut Vec<Effect>) {
        if self.session.is_some() {
            effects.push(Effect::Send(message));
        }
    }

    /// Says what could not be said.
    pub(super) fn catch_up(&mut self, effects: &mut Vec<Effect>) {
        debug_assert!(self.session.is_some());
        effects.extend(self.unsaid.drain(..).map(Effect::Send));
    }
}
