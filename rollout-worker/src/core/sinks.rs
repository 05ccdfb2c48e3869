//! Where results go: the coordinator's relay and learners, with a session to each.
//!
//! A learner's address is kept while something is wanted of it. Without a session it is dialled
//! again and again; with nothing to say for a while the session is closed. A learner that was
//! started again may answer elsewhere: whatever was meant for the old address moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use volley_protocol::worker::SinkAddr;
use volley_protocol::{AttemptId, RunId};

use super::config::Config;
use super::effect::Effect;
use super::input::{Millis, SessionId};
use super::outbox::{Item, Outbox};

/// First wait after a dial without an answer; doubles each time.
const DIAL_BACKOFF_MS: u64 = 100;

/// The wait between dials never exceeds this: a learner that comes back is noticed soon.
const DIAL_BACKOFF_MS_MAX: u64 = 3_000;

/// A session with nothing to say for this long is closed.
const SINK_IDLE_MS: u64 = 60_000;

/// An address that can be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    Relay,
    Learner(SocketAddr),
}

impl From<SinkAddr> for Route {
    fn from(sink: SinkAddr) -> Self {
        match sink {
            SinkAddr::Relay => Self::Relay,
            SinkAddr::Learner(addr) => Self::Learner(addr),
        }
    }
}

impl From<Route> for SinkAddr {
    fn from(route: Route) -> Self {
        match route {
            Route::Relay => Self::Relay,
            Route::Learner(addr) => Self::Learner(addr),
        }
    }
}

#[derive(Debug, Default)]
struct Peer {
    outbox: Outbox,
    dial_at: Millis,
    backoff_ms: u64,
    used_at: Millis,
}

/// Every sink in use, and every result that is not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Sinks {
    peers: BTreeMap<Route, Peer>,
    /// Where each undelivered result waits.
    waiting: BTreeMap<AttemptId, Route>,
    bytes: u64,
    learners: BTreeMap<RunId, SocketAddr>,
}

impl Sinks {
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn contains(&self, attempt: &AttemptId) -> bool {
        self.waiting.contains_key(attempt)
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.waiting.keys().copied()
    }

    /// The open session with a learner.
    pub(super) fn session(&self, addr: SocketAddr) -> Option<SessionId> {
        let peer = self.peers.get(&Route::Learner(addr))?;
        peer.outbox.session()
    }

    /// A sink will be needed: a learner is dialled now rather than at the first result.
    pub(super) fn prepare(&mut self, now: Millis, sink: SinkAddr, effects: &mut Vec<Effect>) {
        let peer = self.peers.entry(sink.into()).or_default();
        peer.used_at = now;
        debug_assert!(peer.dial_at <= now.plus(DIAL_BACKOFF_MS_MAX));
        if peer.backoff_ms == 0 && peer.outbox.session().is_none() {
            dial(now, sink.into(), peer, effects);
        }
    }

    /// The coordinator named a run's learner. Tells its former address when it has moved.
    pub(super) fn learner_at(&mut self, run: RunId, addr: SocketAddr) -> Option<SocketAddr> {
        // A port that another run's learner had before says nothing of that run any more.
        self.learners
            .retain(|other, known| *other == run || *known != addr);
        let old = self.learners.insert(run, addr)?;
        debug_assert_eq!(self.learners.get(&run), Some(&addr));
        (old != addr).then_some(old)
    }

    /// Takes everything meant for `old` to `new`.
    pub(super) fn move_sink(
        &mut self,
        now: Millis,
        old: SocketAddr,
        new: SocketAddr,
        effects: &mut Vec<Effect>,
    ) {
        debug_assert_ne!(old, new);
        self.prepare(now, SinkAddr::Learner(new), effects);
        let Some(mut left) = self.peers.remove(&Route::Learner(old)) else {
            return;
        };
        effects.push(Effect::HangUpSink { addr: old });
        let peer = self.peers.entry(Route::Learner(new)).or_default();
        for item in left.outbox.empty() {
            self.waiting.insert(item.attempt, Route::Learner(new));
            peer.outbox.put(item);
        }
    }

    /// A finished result.
    pub(super) fn put(&mut self, now: Millis, sink: SinkAddr, item: Item, fx: &mut Vec<Effect>) {
        self.prepare(now, sink, fx);
        let before = self.waiting.insert(item.attempt, sink.into());
        debug_assert!(before.is_none(), "an attempt ends once");
        self.bytes += item.bytes;
        if let Some(peer) = self.peers.get_mut(&sink.into()) {
            peer.outbox.put(item);
        }
    }

    /// A session is open.
    pub(super) fn up(&mut self, now: Millis, sink: SinkAddr, session: SessionId) {
        let peer = self.peers.entry(sink.into()).or_default();
        peer.outbox.up(session);
        (peer.backoff_ms, peer.dial_at, peer.used_at) = (0, now, now);
        debug_assert_eq!(peer.outbox.session(), Some(session));
    }

    /// A session is lost. An older one than the open one is no news.
    pub(super) fn down(&mut self, now: Millis, sink: SinkAddr, session: SessionId) {
        let Some(peer) = self.peers.get_mut(&sink.into()) else {
            return;
        };
        if peer.outbox.session() == Some(session) {
            peer.outbox.down();
            (peer.backoff_ms, peer.dial_at) = (DIAL_BACKOFF_MS, now);
        }
        debug_assert_ne!(peer.outbox.session(), Some(session));
    }

    /// The sink has synced everything of this session up to `upto`.
    pub(super) fn delivered(
        &mut self,
        sink: SinkAddr,
        session: SessionId,
        upto: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get_mut(&sink.into()) else {
            return;
        };
        if peer.outbox.session() == Some(session) {
            let items = peer.outbox.delivered(upto);
            self.free(&items, effects);
        }
    }

    /// These results are not wanted any more.
    pub(super) fn remove(&mut self, gone: &BTreeSet<AttemptId>, effects: &mut Vec<Effect>) {
        let routes = gone.iter().filter_map(|attempt| self.waiting.get(attempt));
        let mut routes: Vec<_> = routes.copied().collect();
        routes.sort_unstable();
        routes.dedup();
        for route in routes {
            let peer = self.peers.get_mut(&route);
            let items = peer.map(|p| p.outbox.remove(|attempt| gone.contains(attempt)));
            self.free(&items.unwrap_or_default(), effects);
        }
        debug_assert!(gone.iter().all(|attempt| !self.contains(attempt)));
    }

    fn free(&mut self, items: &[Item], effects: &mut Vec<Effect>) {
        for item in items {
            let known = self.waiting.remove(&item.attempt);
            debug_assert!(known.is_some(), "freed once");
            self.bytes -= item.bytes;
        }
        if !items.is_empty() {
            let attempts = items.iter().map(|item| item.attempt).collect();
            effects.push(Effect::Free { attempts });
        }
    }

    /// Sends what may be sent, everywhere.
    pub(super) fn pump(&mut self, now: Millis, config: &Config, effects: &mut Vec<Effect>) {
        for (route, peer) in &mut self.peers {
            if !peer.outbox.is_empty() {
                debug_assert!(peer.used_at <= now);
                peer.used_at = now;
                peer.outbox.pump((*route).into(), config, effects);
            }
        }
    }

    /// Dials what is wanted and closes what is not. `wanted` knows of other uses than results.
    pub(super) fn tick(
        &mut self,
        now: Millis,
        wanted: impl Fn(SocketAddr) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        let mut idle = Vec::new();
        for (route, peer) in &mut self.peers {
            let Route::Learner(addr) = *route else {
                continue;
            };
            if !peer.outbox.is_empty() || wanted(addr) {
                peer.used_at = now;
                if peer.outbox.session().is_none() && now >= peer.dial_at {
                    dial(now, *route, peer, effects);
                }
            } else if now >= peer.used_at.plus(SINK_IDLE_MS) {
                idle.push(addr);
            }
        }
        for addr in idle {
            self.peers.remove(&Route::Learner(addr));
            self.learners.retain(|_, known| *known != addr);
            effects.push(Effect::HangUpSink { addr });
        }
        debug_assert!(self.waiting.values().all(|r| self.peers.contains_key(r)));
    }

    /// Every result waits in exactly one outbox, and the sum of bytes is right.
    pub(super) fn check(&self) {
        let mut seen = BTreeMap::new();
        for (route, peer) in &self.peers {
            peer.outbox.check();
            for item in peer.outbox.items() {
                let before = seen.insert(item.attempt, *route);
                assert!(before.is_none(), "{:?} waits twice", item.attempt);
            }
        }
        assert_eq!(seen, self.waiting, "what waits, and where");
        let items = self.peers.values().flat_map(|peer| peer.outbox.items());
        let bytes: u64 = items.map(|item| item.bytes).sum();
        assert_eq!(bytes, self.bytes, "undelivered bytes");
    }
}

/// Asks for a session with a learner; the relay's is the coordinator's and is not dialled here.
fn dial(now: Millis, route: Route, peer: &mut Peer, effects: &mut Vec<Effect>) {
    debug_assert!(peer.outbox.session().is_none());
    if let Route::Learner(addr) = route {
        peer.backoff_ms = (peer.backoff_ms * 2).clamp(DIAL_BACKOFF_MS, DIAL_BACKOFF_MS_MAX);
        peer.dial_at = now.plus(peer.backoff_ms);
        effects.push(Effect::DialSink { addr });
    }
}
