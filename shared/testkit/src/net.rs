//! A network of sessions, as QUIC gives them: reliable and in order within a session, nothing at
//! all between sessions.
//!
//! *Loss* is the loss of a whole session: what was under way vanishes, and the two ends notice at
//! different times. *Duplication* is what nodes repeat in their next session. *Reordering* happens
//! between sessions, and between streams: the control stream keeps its order, every bulk message
//! is a stream of its own that may overtake everything. A one-way *partition* holds messages back;
//! when it lasts longer than the idle timeout, it costs the session.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;
use crate::schedule::Schedule;

/// How long messages travel and when silence counts as loss.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Shortest way.
    pub delay_min_ms: u64,
    /// Longest way.
    pub delay_max_ms: u64,
    /// Silence that ends a session.
    pub idle_timeout_ms: u64,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            delay_min_ms: 0,
            delay_max_ms: 20,
            idle_timeout_ms: 5_000,
        }
    }
}

/// On what a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The session's control stream: messages arrive in the order in which they were sent.
    Control,
    /// A stream of its own: it may overtake others, and be overtaken.
    Bulk,
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session<N> {
    /// Who dialled.
    pub dialler: N,
    /// Who listens.
    pub listener: N,
    /// Does this end believe that it is open? Dialler, listener.
    open: [bool; 2],
    /// The wire is cut: nothing arrives any more.
    cut: bool,
    /// Latest arrival scheduled on the control stream, by direction (0: from the dialler).
    last_ms: [u64; 2],
}

/// Something that the network does, for the test's schedule.
#[derive(Clone, Debug)]
pub enum NetEvent<N, M> {
    /// A session is open at this end.
    Opened {
        /// Which one.
        session: u64,
        /// This end.
        at: N,
        /// The other end.
        peer: N,
    },
    /// A message arrives.
    Arrives {
        /// In which session.
        session: u64,
        /// Whose it is.
        at: N,
        /// The message.
        message: M,
    },
    /// This end notices that a session is over.
    Closed {
        /// Which one.
        session: u64,
        /// This end.
        at: N,
    },
    /// A partition that still holds now costs its sessions.
    Idle {
        /// Which direction is blocked.
        from: N,
        /// Which direction is blocked.
        to: N,
    },
}

/// All sessions and partitions.
#[derive(Debug)]
pub struct Net<N> {
    config: NetConfig,
    sessions: BTreeMap<u64, Session<N>>,
    blocked: BTreeMap<(N, N), u64>,
    down: BTreeSet<N>,
    last_session: u64,
}

impl<N: Copy + Ord + std::fmt::Debug> Net<N> {
    /// A network without sessions.
    #[must_use]
    pub const fn new(config: NetConfig) -> Self {
        Self {
            config,
            sessions: BTreeMap::new(),
            blocked: BTreeMap::new(),
            down: BTreeSet::new(),
            last_session: 0,
        }
    }

    /// Dials; `None` when the listener is not there or not to be reached.
    pub fn dial<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        dialler: N,
        listener: N,
    ) -> Option<u64> {
        let now = schedule.now_ms();
        let blocked = |from, to| {
            self.blocked
                .get(&(from, to))
                .is_some_and(|until| *until > now)
        };
        if self.down.contains(&listener) || self.down.contains(&dialler) {
            return None;
        }
        if blocked(dialler, listener) || blocked(listener, dialler) {
            return None;
        }
        self.last_session += 1;
        let session = self.last_session;
        let heard = now + self.delay(rng);
        let answered = heard + self.delay(rng);
        let new = Session {
            dialler,
            listener,
            open: [false, false],
            cut: false,
            last_ms: [answered, answered],
        };
        self.sessions.insert(session, new);
        let opened = |at, peer| NetEvent::Opened { session, at, peer };
        schedule.at(heard, opened(listener, dialler).into());
        schedule.at(answered, opened(dialler, listener).into());
        Some(session)
    }

    /// Sends; silently nothing when the session is over at this end.
    pub fn send<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        session: u64,
        from: N,
        lane: Lane,
        message: M,
    ) {
        let now = schedule.now_ms();
        let delay = self.delay(rng);
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        let side = usize::from(from == state.listener);
        debug_assert!(from == state.dialler || from == state.listener);
        if !state.open[side] || state.cut {
            return;
        }
        let to = if side == 0 {
            state.listener
        } else {
            state.dialler
        };
        let held = self.blocked.get(&(from, to)).copied().unwrap_or(0);
        let mut at_ms = (now + delay).max(held);
        if lane == Lane::Control {
            at_ms = at_ms.max(state.last_ms[side]);
            state.last_ms[side] = at_ms;
        }
        let arrives = NetEvent::Arrives {
            session,
            at: to,
            message,
        };
        schedule.at(at_ms, arrives.into());
    }

    /// Should this event still happen? Keeps the sessions' state; call it on every event popped.
    pub fn happens<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        event: &NetEvent<N, M>,
    ) -> bool {
        match event {
            NetEvent::Opened { session, at, .. } => {
                let Some(state) = self.sessions.get_mut(session) else {
                    return false;
                };
                let side = usize::from(*at == state.listener);
                let alive = !state.cut && !self.down.contains(at);
                state.open[side] = alive;
                alive
            }
            NetEvent::Arrives { session, at, .. } => {
                self.sessions.get(session).is_some_and(|state| {
                    let side = usize::from(*at == state.listener);
                    !state.cut && state.open[side]
                })
            }
            NetEvent::Closed { session, at } => {
                let Some(state) = self.sessions.get_mut(session) else {
                    return false;
                };
                let side = usize::from(*at == state.listener);
                let was_open = std::mem::replace(&mut state.open[side], false);
                let over = state.cut && state.open == [false, false];
                if over {
                    self.sessions.remove(session);
                }
                was_open
            }
            NetEvent::Idle { from, to } => {
                let now = schedule.now_ms();
                if self
                    .blocked
                    .get(&(*from, *to))
                    .is_some_and(|until| *until > now)
                {
                    let between = self.between(*from, *to);
                    between
                        .into_iter()
                        .for_each(|id| self.cut(schedule, rng, id));
                }
                false
            }
        }
    }

    /// Cuts a session: what is under way is lost, both ends notice some time later.
    pub fn cut<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        session: u64,
    ) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        if std::mem::replace(&mut state.cut, true) {
            return;
        }
        for at in [state.dialler, state.listener] {
            let notices = rng.below(self.config.idle_timeout_ms + 1);
            schedule.after(notices, NetEvent::Closed { session, at }.into());
        }
    }

    /// Cuts every session of a node that has been silent for too long.
    pub fn silence<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        node: N,
    ) {
        for id in self.of_node(node) {
            self.cut(schedule, rng, id);
        }
    }

    fn of_node(&self, node: N) -> Vec<u64> {
        let of_node = |state: &Session<N>| state.dialler == node || state.listener == node;
        let sessions = self.sessions.iter().filter(|(_, state)| of_node(state));
        sessions.map(|(id, _)| *id).collect()
    }

    /// One end closes a session on purpose: the other learns it soon.
    pub fn close<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        session: u64,
        by: N,
    ) {
        let delay = self.delay(rng);
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        let side = usize::from(by == state.listener);
        let other = if side == 0 {
            state.listener
        } else {
            state.dialler
        };
        state.open[side] = false;
        state.cut = true;
        schedule.after(delay, NetEvent::Closed { session, at: other }.into());
    }

    /// A node dies: its ends are gone at once, others notice within the idle timeout.
    pub fn crash<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        rng: &mut Rng,
        node: N,
    ) {
        self.down.insert(node);
        for id in self.of_node(node) {
            self.cut(schedule, rng, id);
            if let Some(state) = self.sessions.get_mut(&id) {
                let side = usize::from(state.listener == node);
                state.open[side] = false;
            }
        }
    }

    /// A node is there (again).
    pub fn start(&mut self, node: N) {
        self.down.remove(&node);
    }

    /// Blocks one direction for a while.
    pub fn block<M, E: From<NetEvent<N, M>>>(
        &mut self,
        schedule: &mut Schedule<E>,
        from: N,
        to: N,
        for_ms: u64,
    ) {
        let until = schedule.now_ms() + for_ms;
        self.blocked.insert((from, to), until);
        if for_ms > self.config.idle_timeout_ms {
            let idle = NetEvent::Idle { from, to };
            schedule.after(self.config.idle_timeout_ms, idle.into());
        }
    }

    /// Ends every partition.
    pub fn heal(&mut self) {
        self.blocked.clear();
    }

    /// Sessions that are not cut, ascending.
    pub fn alive(&self) -> impl Iterator<Item = (u64, &Session<N>)> + '_ {
        self.sessions
            .iter()
            .filter(|(_, state)| !state.cut)
            .map(|(id, state)| (*id, state))
    }

    fn between(&self, one: N, other: N) -> Vec<u64> {
        let joins = |state: &Session<N>| {
            (state.dialler, state.listener) == (one, other)
                || (state.dialler, state.listener) == (other, one)
        };
        self.sessions
            .iter()
            .filter(|(_, state)| joins(state))
            .map(|(id, _)| *id)
            .collect()
    }

    const fn delay(&self, rng: &mut Rng) -> u64 {
        rng.between(self.config.delay_min_ms, self.config.delay_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Event = NetEvent<u8, u32>;

    struct Bench {
        net: Net<u8>,
        schedule: Schedule<Event>,
        rng: Rng,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                net: Net::new(NetConfig::default()),
                schedule: Schedule::default(),
                rng: Rng::new(7),
            }
        }

        fn run(&mut self) -> Vec<Event> {
            let mut seen = Vec::new();
            while let Some(event) = self.schedule.pop() {
                if self.net.happens(&mut self.schedule, &mut self.rng, &event) {
                    seen.push(event);
                }
            }
            seen
        }

        fn dial(&mut self) -> u64 {
            let Self { net, schedule, rng } = self;
            net.dial(schedule, rng, 1, 2).expect("both are there")
        }

        fn send(&mut self, session: u64, message: u32) {
            self.send_on(session, Lane::Control, message);
        }

        fn send_on(&mut self, session: u64, lane: Lane, message: u32) {
            let Self { net, schedule, rng } = self;
            net.send(schedule, rng, session, 1, lane, message);
        }
    }

    fn messages(events: &[Event]) -> Vec<u32> {
        let message = |event: &Event| match event {
            NetEvent::Arrives { message, .. } => Some(*message),
            _ => None,
        };
        events.iter().filter_map(message).collect()
    }

    #[test]
    fn a_session_keeps_order() {
        let mut bench = Bench::new();
        let session = bench.dial();
        assert_eq!(bench.run().len(), 2, "opened at both ends");
        (0..50).for_each(|n| bench.send(session, n));
        assert_eq!(messages(&bench.run()), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn bulk_messages_overtake_each_other() {
        let mut bench = Bench::new();
        let session = bench.dial();
        bench.run();
        (0..50).for_each(|n| bench.send_on(session, Lane::Bulk, n));
        let mut seen = messages(&bench.run());
        assert_ne!(seen, (0..50).collect::<Vec<_>>());
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>(), "all of them arrive");
    }

    #[test]
    fn a_node_that_is_silent_loses_all_its_sessions() {
        let mut bench = Bench::new();
        for _ in 0..2 {
            bench.dial();
        }
        bench.run();
        let Bench { net, schedule, rng } = &mut bench;
        net.silence(schedule, rng, 2);
        let seen = bench.run();
        assert_eq!((bench.net.alive().count(), seen.len()), (0, 4));
    }

    #[test]
    fn a_cut_loses_what_is_under_way_and_both_notice() {
        let mut bench = Bench::new();
        let session = bench.dial();
        bench.run();
        bench.send(session, 1);
        let Bench { net, schedule, rng } = &mut bench;
        net.cut(schedule, rng, session);
        let seen = bench.run();
        assert!(messages(&seen).is_empty());
        let closed = seen
            .iter()
            .filter(|event| matches!(event, NetEvent::Closed { .. }));
        assert_eq!(closed.count(), 2);
        assert_eq!(bench.net.alive().count(), 0);
    }

    #[test]
    fn a_short_partition_delays_and_a_long_one_kills() {
        for (for_ms, arrives) in [(2_000, true), (9_000, false)] {
            let mut bench = Bench::new();
            let session = bench.dial();
            bench.run();
            let began = bench.schedule.now_ms();
            let Bench { net, schedule, .. } = &mut bench;
            net.block(schedule, 1, 2, for_ms);
            bench.send(session, 9);
            let seen = bench.run();
            assert_eq!(messages(&seen) == [9], arrives);
            assert!(!arrives || bench.schedule.now_ms() >= began + for_ms);
        }
    }
}
