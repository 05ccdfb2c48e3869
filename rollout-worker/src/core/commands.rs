//! What the coordinator says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use volley_protocol::worker::{FromWorker, Lease, LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{AdapterVersion, AttemptId, ErrorCode, Fault, RunId, SinkRef};

use super::Worker;
use super::config::UNDELIVERED_RECORDS_MAX;
use super::effect::{Effect, ExitReason};
use super::input::{Millis, SessionId};

impl Worker {
    pub(super) fn command(
        &mut self,
        now: Millis,
        session: SessionId,
        message: ToWorker,
        effects: &mut Vec<Effect>,
    ) {
        debug_assert_eq!(self.link.session(), Some(session));
        match message {
            ToWorker::Job(spec) => {
                // One that makes no sense is not kept: its leases fail as unknown.
                if spec.validate().is_ok() {
                    self.specs.insert(spec.job, Arc::new(spec));
                }
            }
            ToWorker::Lease { epoch, leases } => {
                if self.link.commands(epoch) {
                    leases
                        .into_iter()
                        .for_each(|lease| self.lease(now, lease, effects));
                }
            }
            ToWorker::Revoke(attempts) => self.revoke(&attempts, effects),
            ToWorker::Forget(job) => {
                // Episodes that are held share the specification and keep it alive.
                self.specs.remove(&job);
            }
            ToWorker::Announce { version, source } => {
                self.learner_at(now, version.run, source, effects);
                self.want_adapter(now, version, source, effects);
            }
            ToWorker::Retire(digests) => {
                self.adapters.retire(&digests);
                self.sweep_adapters(effects);
            }
            ToWorker::Drain { deadline_ms } => {
                self.begin_drain(ExitReason::Drained, now.plus(deadline_ms));
            }
            ToWorker::Delivered { upto } => {
                self.sinks
                    .delivered(SinkAddr::Relay, session, upto, effects);
            }
        }
    }

    /// Takes a lease. Leases that were under way when a drain began are played too: giving them
    /// back would cost their rollouts a retry, and the credit bounds them.
    fn lease(&mut self, now: Millis, lease: Lease, effects: &mut Vec<Effect>) {
        if !self.link.take() {
            return;
        }
        let attempt = lease.attempt;
        if self.slots.contains(&attempt) || self.sinks.contains(&attempt) {
            return;
        }
        let Some(spec) = self.specs.get(&attempt.rollout.job).map(Arc::clone) else {
            let what = format!("{attempt:?} was leased before its job was told");
            let fault = Fault::new(ErrorCode::NotFound, what);
            return self.say_failed(attempt, fault, true, effects);
        };
        if let (SinkRef::Learner(run), SinkAddr::Learner(addr)) = (spec.sink, lease.sink) {
            self.learner_at(now, run, addr, effects);
            self.sinks.prepare(now, lease.sink, effects);
        }
        if let LeasePolicy::Adapter { version, source } = lease.policy {
            self.learner_at(now, version.run, source, effects);
            self.want_adapter(now, version, source, effects);
            self.adapters.pin(&version.digest);
        }
        self.slots.enqueue(lease, spec);
        debug_assert!(self.slots.len() as u64 <= self.config.capacity());
    }

    /// A run's learner answers there. What was meant for its former address moves.
    fn learner_at(&mut self, now: Millis, run: RunId, addr: SocketAddr, fx: &mut Vec<Effect>) {
        if let Some(old) = self.sinks.learner_at(run, addr) {
            debug_assert_ne!(old, addr);
            self.adapters.move_source(old, addr);
            self.slots.move_sink(old, addr);
            self.sinks.move_sink(now, old, addr, fx);
        }
    }

    fn want_adapter(
        &mut self,
        now: Millis,
        version: AdapterVersion,
        source: SocketAddr,
        effects: &mut Vec<Effect>,
    ) {
        if self.adapters.want(version, source) {
            debug_assert!(self.adapters.is_live(&version.digest));
            self.link.say_if_open(FromWorker::Live { version }, effects);
        } else {
            self.sinks.prepare(now, SinkAddr::Learner(source), effects);
        }
    }

    fn revoke(&mut self, attempts: &[AttemptId], effects: &mut Vec<Effect>) {
        for attempt in attempts {
            if let Some(episode) = self.slots.end(attempt) {
                // Before its adapter may go.
                if episode.running {
                    effects.push(Effect::CancelEpisode { attempt: *attempt });
                }
                self.ended(&episode, effects);
            }
        }
        let gone: BTreeSet<_> = attempts.iter().copied().collect();
        self.sinks.remove(&gone, effects);
        debug_assert!(attempts.iter().all(|a| !self.slots.contains(a)));
    }

    /// Allows as many leases as there is room for, unless results pile up or the end is near.
    pub(super) fn raise_credit(&mut self, effects: &mut Vec<Effect>) {
        let full = self.sinks.bytes() >= self.config.undelivered_bytes_max
            || self.sinks.len() >= UNDELIVERED_RECORDS_MAX;
        if full || self.draining() {
            return;
        }
        debug_assert!(self.slots.len() as u64 <= self.config.capacity());
        let room = self.config.capacity() - self.slots.len() as u64;
        // Half of the prefetch is worth a message: until then the queue feeds the slots.
        self.link
            .grant(room, u64::from(self.config.prefetch) / 2, effects);
    }
}
