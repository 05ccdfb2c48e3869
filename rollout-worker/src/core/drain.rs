//! The end of a worker.
//!
//! ```text
//! drain ──► no further credit; play what is leased ──(deadline)──► give up what is not finished
//!       ──► deliver ──(nothing held, or the grace is over)──► Drained, Exit
//! ```

use std::collections::BTreeSet;

use volley_protocol::worker::FromWorker;
use volley_protocol::{ErrorCode, Fault};

use super::Worker;
use super::effect::{Effect, ExitReason};
use super::input::Millis;

/// After the deadline finished results wait this long for their sinks. What is then left is lost
/// with the process, and the coordinator has it played again.
const DELIVER_GRACE_MS: u64 = 10_000;

/// Why and until when a worker drains.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    reason: ExitReason,
    deadline: Millis,
}

impl Worker {
    pub(super) const fn draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Begins to drain. A second request can only bring the deadline nearer.
    pub(super) fn begin_drain(&mut self, reason: ExitReason, deadline: Millis) {
        let drain = self.drain.get_or_insert(Drain { reason, deadline });
        drain.deadline = drain.deadline.min(deadline);
        // Only loneliness can end again; a real request replaces it.
        if drain.reason == ExitReason::Alone {
            drain.reason = reason;
        }
        debug_assert!(self.draining());
    }

    pub(super) fn drain_when_alone(&mut self, now: Millis) {
        let alone_until = self.link.alone_since.plus(self.config.alone_ms);
        if self.link.session().is_none() && now >= alone_until && !self.draining() {
            self.begin_drain(ExitReason::Alone, now.plus(self.config.drain_ms));
        }
    }

    /// A worker that drained because it was alone works on.
    pub(super) fn coordinator_is_back(&mut self) {
        self.drain = self.drain.filter(|d| d.reason != ExitReason::Alone);
        debug_assert!(self.link.session().is_some());
    }

    pub(super) fn go_on_draining(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Some(drain) = self.drain else { return };
        if now >= drain.deadline {
            self.cut_episodes(effects);
        }
        if now >= drain.deadline.plus(DELIVER_GRACE_MS) {
            self.give_up_results(effects);
        }
        if self.slots.len() == 0 && self.sinks.len() == 0 {
            self.link.say_if_open(FromWorker::Drained, effects);
            let reason = drain.reason;
            effects.push(Effect::Exit { reason });
            self.exited = true;
        }
    }

    fn cut_episodes(&mut self, effects: &mut Vec<Effect>) {
        for episode in self.slots.end_where(|_| true) {
            let attempt = episode.lease.attempt;
            if episode.running {
                effects.push(Effect::CancelEpisode { attempt });
            }
            self.ended(&episode, effects);
            self.say_failed(attempt, left("before the episode ended"), true, effects);
        }
        debug_assert_eq!(self.slots.len(), 0);
    }

    fn give_up_results(&mut self, effects: &mut Vec<Effect>) {
        let lost: BTreeSet<_> = self.sinks.attempts().collect();
        for attempt in &lost {
            self.say_failed(*attempt, left("before its sink came back"), true, effects);
        }
        self.sinks.remove(&lost, effects);
        debug_assert_eq!(self.sinks.len(), 0);
    }
}

fn left(when: &str) -> Fault {
    Fault::new(
        ErrorCode::WorkerLost,
        format!("the worker was drained and had to leave {when}"),
    )
}
