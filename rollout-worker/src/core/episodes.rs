//! What happens in the slots and to the adapters.

use volley_protocol::limits::TRAJECTORY_BATCH_BYTES_MAX;
use volley_protocol::worker::FromWorker;
use volley_protocol::{AdapterVersion, AttemptId, Digest, ErrorCode, Fault};

use super::Worker;
use super::effect::Effect;
use super::input::Millis;
use super::outbox::Item;
use super::slots::Episode;

impl Worker {
    pub(super) fn start_episodes(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let adapters = &self.adapters;
        let slots = self.config.slots;
        while let Some((lease, spec)) = self.slots.start_next(now, slots, |d| adapters.is_live(d)) {
            debug_assert!(self.slots.is_running(&lease.attempt));
            effects.push(Effect::StartEpisode { lease, spec });
        }
    }

    /// Ends episodes that take longer than `start_to_close`; the time in the queue does not count.
    pub(super) fn end_overdue(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        for attempt in self.slots.overdue(now) {
            let Some(episode) = self.slots.end(&attempt) else {
                continue;
            };
            // Before its adapter may go.
            effects.push(Effect::CancelEpisode { attempt });
            self.ended(&episode, effects);
            let limit_ms = episode.spec.retry.start_to_close_ms;
            let why = format!("it took longer than start_to_close, {limit_ms} ms");
            let fault = Fault::new(ErrorCode::AttemptTimeout, why)
                .with_hint("volley explain ATTEMPT_TIMEOUT tells what may take so long");
            self.say_failed(attempt, fault, true, effects);
        }
    }

    pub(super) fn episode_done(
        &mut self,
        now: Millis,
        attempt: AttemptId,
        record_bytes: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.slots.is_running(&attempt) {
            // Revoked or cut while its last words were on their way here.
            if !self.sinks.contains(&attempt) {
                let attempts = vec![attempt];
                effects.push(Effect::Free { attempts });
            }
            return;
        }
        if record_bytes > self.config.batch_bytes_max {
            let what = format!(
                "a result of {record_bytes} bytes; at most {} fit a batch of {}",
                self.config.batch_bytes_max, TRAJECTORY_BATCH_BYTES_MAX
            );
            let attempts = vec![attempt];
            effects.push(Effect::Free { attempts });
            let fault = Fault::new(ErrorCode::FrameTooLarge, what);
            return self.episode_failed(attempt, fault, false, effects);
        }
        if let Some(episode) = self.slots.end(&attempt) {
            self.totals.episodes_total += 1;
            let item = Item {
                attempt,
                bytes: record_bytes,
            };
            self.sinks.put(now, episode.lease.sink, item, effects);
            self.ended(&episode, effects);
        }
        debug_assert!(self.sinks.contains(&attempt));
    }

    pub(super) fn episode_failed(
        &mut self,
        attempt: AttemptId,
        fault: Fault,
        retryable: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.slots.is_running(&attempt) {
            return;
        }
        if let Some(episode) = self.slots.end(&attempt) {
            self.totals.episodes_total += 1;
            self.ended(&episode, effects);
            self.say_failed(attempt, fault, retryable, effects);
        }
        debug_assert!(!self.slots.contains(&attempt));
    }

    /// An episode left its slot or the queue: its adapter may go.
    pub(super) fn ended(&mut self, episode: &Episode, effects: &mut Vec<Effect>) {
        debug_assert!(!self.slots.contains(&episode.lease.attempt));
        if let Some(digest) = episode.digest() {
            self.adapters.unpin(&digest);
            self.sweep_adapters(effects);
        }
    }

    pub(super) fn adapter_ready(&mut self, version: AdapterVersion, effects: &mut Vec<Effect>) {
        if self.adapters.is_live(&version.digest) {
            return;
        }
        match self.adapters.ready(&version) {
            Some(true) => self.link.say_if_open(FromWorker::Live { version }, effects),
            Some(false) => {}
            None => effects.push(Effect::DropAdapters(vec![version.digest])),
        }
        self.sweep_adapters(effects);
    }

    pub(super) fn adapter_failed(
        &mut self,
        digest: &Digest,
        fault: &Fault,
        effects: &mut Vec<Effect>,
    ) {
        if !self.adapters.failed(digest) {
            return;
        }
        for episode in self.slots.end_where(|e| e.digest() == Some(*digest)) {
            debug_assert!(!episode.running, "nothing runs without its adapter");
            self.say_failed(episode.lease.attempt, fault.clone(), true, effects);
        }
    }

    pub(super) fn sweep_adapters(&mut self, effects: &mut Vec<Effect>) {
        let gone = self.adapters.sweep(self.config.idle_adapters_max);
        debug_assert!(gone.iter().all(|digest| !self.adapters.is_live(digest)));
        if !gone.is_empty() {
            effects.push(Effect::DropAdapters(gone));
        }
    }

    pub(super) fn say_failed(
        &mut self,
        attempt: AttemptId,
        fault: Fault,
        retryable: bool,
        effects: &mut Vec<Effect>,
    ) {
        debug_assert!(!self.slots.contains(&attempt), "it has ended");
        let message = FromWorker::AttemptFailed {
            attempt,
            fault,
            retryable,
        };
        self.link.say(message, effects);
    }
}
