//! The worker decides here: slots, leases, credit, adapters, delivery; no IO, no clock.
//!
//! [`Worker::apply`] takes what happened and says what is to be done. An attempt's life:
//!
//! ```text
//!           lease within the credit          slot free, adapter live
//!   (none) ───────────────────────► queued ───────────────────────► running
//!                                     │ revoked, adapter failed,       │ failed, revoked, cut
//!                                     ▼ cut                            ▼
//!                                   (none) ◄───────────────────────── (none)
//!                                     ▲ Delivered, revoked             │ done
//!                                     └─────────── undelivered ◄───────┘
//! ```
//!
//! While an attempt is in one of the three states, every `Register` and `Heartbeat` names it, so
//! that its lease lives. Losing a session loses nothing: leases stay, episodes go on, undelivered
//! results go again in the next session. Epochs fence commands, never results.

pub mod config;
pub mod effect;
pub mod input;

mod adapters;
mod commands;
mod drain;
mod episodes;
mod link;
mod outbox;
mod sinks;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use volley_protocol::delivery::FromSink;
use volley_protocol::limits::HEARTBEAT_MS;
use volley_protocol::worker::{FromWorker, SinkAddr, WorkerLoad};
use volley_protocol::{AttemptId, ErrorCode, Fault, JobId, JobSpec};

pub use config::Config;
pub use effect::{Effect, ExitReason};
pub use input::{Input, Millis, SessionId};

use adapters::Adapters;
use drain::Drain;
use link::Link;
use sinks::Sinks;
use slots::Slots;

/// The worker's state.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    link: Link,
    /// Jobs told in this session.
    specs: BTreeMap<JobId, Arc<JobSpec>>,
    slots: Slots,
    adapters: Adapters,
    sinks: Sinks,
    drain: Option<Drain>,
    totals: WorkerLoad,
    exited: bool,
}

impl Worker {
    /// A worker that has just started, at moment 0, without any session.
    ///
    /// # Panics
    /// When the configuration is not valid ([`Config::validate`]).
    #[must_use]
    pub fn new(config: Config) -> Self {
        assert!(config.validate().is_ok(), "the configuration was checked");
        Self {
            config,
            link: Link::default(),
            specs: BTreeMap::new(),
            slots: Slots::default(),
            adapters: Adapters::default(),
            sinks: Sinks::default(),
            drain: None,
            totals: WorkerLoad::default(),
            exited: false,
        }
    }

    /// Takes what happened; appends what is to be done. `now` never goes back.
    pub fn apply(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        if self.exited {
            return;
        }
        self.take_in(now, input, effects);
        self.start_episodes(now, effects);
        self.adapters
            .fetch(|source| self.sinks.session(source), effects);
        self.sinks.pump(now, &self.config, effects);
        self.raise_credit(effects);
        self.go_on_draining(now, effects);
        debug_assert!(self.slots.running() <= self.config.slots);
    }

    fn take_in(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::CoordinatorUp { session, epoch } => {
                self.coordinator_down(now);
                self.link.up(now, session, epoch);
                self.sinks.up(now, SinkAddr::Relay, session);
                self.introduce(effects);
            }
            Input::CoordinatorDown { session } => {
                if self.link.session() == Some(session) {
                    self.coordinator_down(now);
                }
            }
            Input::Coordinator { session, message } => {
                if self.link.session() == Some(session) {
                    self.command(now, session, *message, effects);
                }
            }
            Input::SinkUp { .. } | Input::SinkDown { .. } | Input::Sink { .. } => {
                self.sink_input(now, input, effects);
            }
            Input::EpisodeDone {
                attempt,
                record_bytes,
                tokens,
                prefill_tokens,
            } => {
                self.totals.tokens_total += tokens;
                self.totals.prefill_tokens_total += prefill_tokens;
                self.episode_done(now, attempt, record_bytes, effects);
            }
            Input::EpisodeFailed {
                attempt,
                fault,
                retryable,
            } => self.episode_failed(attempt, fault, retryable, effects),
            Input::AdapterReady { version } => self.adapter_ready(version, effects),
            Input::AdapterFailed { digest, fault } => {
                self.adapter_failed(&digest, &fault, effects);
            }
            Input::DrainSignal => {
                let deadline = now.plus(self.config.drain_ms);
                self.begin_drain(ExitReason::Signal, deadline);
            }
            Input::Tick => self.tick(now, effects),
        }
    }

    fn sink_input(&mut self, now: Millis, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::SinkUp { addr, session } => {
                if let Some(old) = self.sinks.session(addr) {
                    self.adapters.session_lost(old);
                }
                self.sinks.up(now, SinkAddr::Learner(addr), session);
            }
            Input::SinkDown { addr, session } => {
                self.sinks.down(now, SinkAddr::Learner(addr), session);
                self.adapters.session_lost(session);
            }
            Input::Sink {
                addr,
                session,
                message: FromSink::Delivered { upto },
            } => {
                let sink = SinkAddr::Learner(addr);
                self.sinks.delivered(sink, session, upto, effects);
            }
            Input::Sink {
                addr,
                session,
                message: FromSink::AdapterMissing { digest },
            } => {
                if self.sinks.session(addr) == Some(session) {
                    let what = format!("{addr} has no adapter {}", digest.short());
                    let fault = Fault::new(ErrorCode::AdapterUnavailable, what);
                    self.adapter_failed(&digest, &fault, effects);
                }
            }
            other => debug_assert!(false, "{other:?} is not about a sink"),
        }
    }

    fn coordinator_down(&mut self, now: Millis) {
        if let Some(session) = self.link.session() {
            self.sinks.down(now, SinkAddr::Relay, session);
            self.link.down(now);
            // The next session tells them again.
            self.specs.clear();
        }
        debug_assert_eq!(self.link.outstanding(), 0, "credit ends with its session");
    }

    /// First words of a session with the coordinator.
    fn introduce(&mut self, effects: &mut Vec<Effect>) {
        debug_assert!(self.link.session().is_some());
        let mut held = self.held();
        held.extend(
            self.link
                .unsaid()
                .iter()
                .filter_map(|message| match message {
                    FromWorker::AttemptFailed { attempt, .. } => Some(*attempt),
                    _ => None,
                }),
        );
        effects.push(Effect::Send(FromWorker::Register {
            slots: self.config.slots,
            numerics: self.config.numerics.clone(),
            base: self.config.base,
            provision: self.config.provision,
            held,
            live: self.adapters.live().map(|version| version.digest).collect(),
        }));
        self.link.catch_up(effects);
        self.coordinator_is_back();
    }

    /// Attempts whose leases have to live: queued, running or undelivered.
    fn held(&self) -> Vec<AttemptId> {
        let playing = self.slots.iter().map(|(attempt, _)| *attempt);
        playing.chain(self.sinks.attempts()).collect()
    }

    fn tick(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.link.session().is_some() && now >= self.link.heartbeat_at {
            self.link.heartbeat_at = now.plus(HEARTBEAT_MS);
            effects.push(Effect::Send(FromWorker::Heartbeat {
                held: self.held(),
                load: self.load(),
            }));
        }
        self.end_overdue(now, effects);
        let (slots, adapters) = (&self.slots, &self.adapters);
        let wanted = |addr| {
            let sink = SinkAddr::Learner(addr);
            adapters.needs(addr) || slots.iter().any(|(_, e)| e.lease.sink == sink)
        };
        self.sinks.tick(now, wanted, effects);
        self.drain_when_alone(now);
        debug_assert!(self.link.session().is_none() || now < self.link.heartbeat_at);
    }

    /// Figures for people.
    #[must_use]
    pub fn load(&self) -> WorkerLoad {
        WorkerLoad {
            busy_slots: self.slots.running(),
            undelivered_bytes: self.sinks.bytes(),
            adapter_step: self.adapters.live().map(|v| v.step).max().unwrap_or(0),
            ..self.totals
        }
    }

    /// Panics when the state contradicts itself: for tests and simulations, after every event.
    pub fn check_invariants(&self) {
        self.check_credit();
        self.slots.check(self.config.slots);
        self.sinks.check();
        let episodes = self.slots.iter();
        self.adapters
            .check(episodes.filter_map(|(_, e)| e.digest().map(|digest| (digest, e.running))));
        let twice = self.slots.iter().find(|(a, _)| self.sinks.contains(a));
        assert!(twice.is_none(), "played and undelivered: {twice:?}");
    }

    /// What is held and what may still come fit the slots and the queue.
    fn check_credit(&self) {
        let promised = self.slots.len() as u64 + self.link.outstanding();
        assert!(
            promised <= self.config.capacity(),
            "{promised} leases held or allowed, {} fit",
            self.config.capacity()
        );
    }
}
