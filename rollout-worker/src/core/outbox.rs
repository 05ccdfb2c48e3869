//! Results on their way to one sink.
//!
//! ```text
//! put ──► unsent ──(batch)──► in flight ──(Delivered)──► freed
//!            ▲      session lost     │
//!            └───────────────────────┘
//! ```
//!
//! Batches form by themselves: while few are in flight a result goes at once, and while the sink
//! is busy syncing those, the next ones gather.

use std::collections::{BTreeMap, VecDeque};

use volley_protocol::AttemptId;
use volley_protocol::limits::TRAJECTORY_BATCH_BYTES_MAX;
use volley_protocol::worker::SinkAddr;

use super::config::Config;
use super::effect::Effect;
use super::input::SessionId;

/// Batches in flight above which a batch waits until it is full. Two would keep a sink that
/// answers after one sync busy; four also cover the way there.
const PARTIAL_BATCHES_MAX: usize = 4;

/// Batches in flight in all: bounds the streams of one session.
const BATCHES_MAX: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) attempt: AttemptId,
    pub(super) bytes: u64,
}

/// Results on their way to one sink.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    session: Option<SessionId>,
    /// Last sequence number given in this session.
    last_seq: u64,
    unsent: VecDeque<Item>,
    unsent_bytes: u64,
    in_flight: BTreeMap<u64, Item>,
    /// Last sequence number of each batch in flight.
    batches: VecDeque<u64>,
}

impl Outbox {
    pub(super) const fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.in_flight.is_empty()
    }

    /// Everything that is not acknowledged.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.in_flight.values().chain(&self.unsent)
    }

    /// A further result.
    pub(super) fn put(&mut self, item: Item) {
        debug_assert!(item.bytes <= TRAJECTORY_BATCH_BYTES_MAX as u64);
        self.unsent_bytes += item.bytes;
        self.unsent.push_back(item);
    }

    /// A session is open: everything goes again, under new numbers.
    pub(super) fn up(&mut self, session: SessionId) {
        self.down();
        debug_assert!(self.in_flight.is_empty() && self.batches.is_empty());
        self.session = Some(session);
        self.last_seq = 0;
    }

    /// The session is lost.
    pub(super) fn down(&mut self) {
        self.session = None;
        self.batches.clear();
        for (_, item) in std::mem::take(&mut self.in_flight).into_iter().rev() {
            self.unsent_bytes += item.bytes;
            self.unsent.push_front(item);
        }
        debug_assert!(self.in_flight.is_empty());
    }

    /// The sink has everything up to this number. What it never got stays.
    pub(super) fn delivered(&mut self, upto: u64) -> Vec<Item> {
        let upto = upto.min(self.last_seq);
        let rest = self.in_flight.split_off(&(upto + 1));
        let done = std::mem::replace(&mut self.in_flight, rest);
        while self.batches.front().is_some_and(|last| *last <= upto) {
            self.batches.pop_front();
        }
        debug_assert!(self.batches.len() <= BATCHES_MAX);
        done.into_values().collect()
    }

    /// Takes out what is not wanted any more. In the running session its number is spent.
    pub(super) fn remove(&mut self, gone: impl Fn(&AttemptId) -> bool) -> Vec<Item> {
        let taken: Vec<_> = self.items().filter(|i| gone(&i.attempt)).copied().collect();
        if !taken.is_empty() {
            self.unsent.retain(|item| !gone(&item.attempt));
            self.in_flight.retain(|_, item| !gone(&item.attempt));
            self.unsent_bytes = self.unsent.iter().map(|item| item.bytes).sum();
        }
        debug_assert!(self.items().all(|item| !gone(&item.attempt)));
        taken
    }

    /// Takes out everything, oldest first.
    pub(super) fn empty(&mut self) -> Vec<Item> {
        self.down();
        self.unsent_bytes = 0;
        debug_assert!(self.in_flight.is_empty());
        self.unsent.drain(..).collect()
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, sink: SinkAddr, config: &Config, effects: &mut Vec<Effect>) {
        let Some(session) = self.session else { return };
        while !self.unsent.is_empty() && self.may_send(config) {
            let first_seq = self.last_seq + 1;
            let attempts = self.next_batch(config);
            debug_assert!(!attempts.is_empty(), "one record always fits");
            self.batches.push_back(self.last_seq);
            effects.push(Effect::Deliver {
                sink,
                session,
                first_seq,
                attempts,
            });
        }
    }

    fn may_send(&self, config: &Config) -> bool {
        let full = self.unsent.len() >= config.batch_records_max
            || self.unsent_bytes >= config.batch_bytes_max;
        self.batches.len() < PARTIAL_BATCHES_MAX || (full && self.batches.len() < BATCHES_MAX)
    }

    fn next_batch(&mut self, config: &Config) -> Vec<AttemptId> {
        let (mut attempts, mut bytes) = (Vec::new(), 0);
        while let Some(item) = self.unsent.front().copied() {
            bytes += item.bytes;
            let fits = attempts.len() < config.batch_records_max && bytes <= config.batch_bytes_max;
            if !fits {
                break;
            }
            self.unsent.pop_front();
            self.unsent_bytes -= item.bytes;
            self.last_seq += 1;
            self.in_flight.insert(self.last_seq, item);
            attempts.push(item.attempt);
        }
        debug_assert!(attempts.len() <= config.batch_records_max);
        attempts
    }

    /// Sums and numbers agree.
    pub(super) fn check(&self) {
        let unsent: u64 = self.unsent.iter().map(|item| item.bytes).sum();
        assert_eq!(unsent, self.unsent_bytes, "bytes of unsent results");
        assert!(self.batches.len() <= BATCHES_MAX, "batches in flight");
        let numbered = self.in_flight.keys().all(|seq| *seq <= self.last_seq);
        assert!(numbered, "sequence numbers");
        assert!(
            self.session.is_some() || self.in_flight.is_empty(),
            "nothing is in flight without a session"
        );
    }
}
