//! A model of everything around a worker, which holds it to its promises.

use std::collections::{BTreeMap, BTreeSet};

use super::histories::Op;
use super::*;

/// What the other side of the worker knows. Sink 0 is the relay, others are learners by port.
#[derive(Default)]
pub(super) struct World {
    sessions: u64,
    pub(super) coordinator: Option<u64>,
    pub(super) epoch: u64,
    /// Leases allowed in this session, by the coordinator's count, and those that were sent.
    credit: u64,
    leases_sent: u64,
    next_index: u64,
    pub(super) sink_sessions: BTreeMap<u8, u64>,
    /// (sink session) → attempts in the order of their numbers.
    pub(super) received: BTreeMap<u64, Vec<AttemptId>>,
    pub(super) acked: BTreeSet<AttemptId>,
    running: BTreeMap<AttemptId, Option<Digest>>,
    pub(super) finished: BTreeSet<AttemptId>,
    pub(super) freed: BTreeSet<AttemptId>,
    pub(super) unwanted: BTreeSet<AttemptId>,
    fetching: BTreeMap<Digest, (AdapterVersion, u64)>,
    memory: BTreeSet<Digest>,
}

fn pick(n: u8, len: usize) -> Option<usize> {
    (len > 0).then(|| usize::from(n) % len)
}

fn port(port: u8) -> SocketAddr {
    addr(u16::from(port))
}

impl World {
    pub(super) fn sink_session(&self, sink: u8) -> Option<u64> {
        match sink {
            0 => self.coordinator,
            port => self.sink_sessions.get(&port).copied(),
        }
    }

    pub(super) fn credit_left(&self) -> u64 {
        self.credit - self.leases_sent
    }

    fn next_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    /// Does what the worker asks for, and holds it to its promises.
    pub(super) fn observe(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.told(&message),
            Effect::StartEpisode { lease, .. } => self.started(&lease),
            Effect::CancelEpisode { attempt } => {
                assert!(self.running.remove(&attempt).is_some(), "it does not run");
            }
            Effect::FetchAdapter {
                version, session, ..
            } => {
                let asked = (version, session.0);
                let before = self.fetching.insert(version.digest, asked);
                assert_ne!(before, Some(asked), "asked twice");
            }
            Effect::DropAdapters(digests) => {
                for digest in digests {
                    assert!(self.memory.remove(&digest), "dropped what was not there");
                    let mut playing = self.running.values();
                    assert!(playing.all(|d| *d != Some(digest)), "dropped while pinned");
                }
            }
            Effect::Deliver {
                session,
                first_seq,
                attempts,
                ..
            } => {
                self.got(session, first_seq, &attempts);
            }
            Effect::Free { attempts } => attempts.into_iter().for_each(|a| self.free(a)),
            Effect::DialSink { .. } => {}
            Effect::HangUpSink { addr } => {
                let _ = self.sink_down(addr.port() as u8);
            }
            Effect::Exit { .. } => panic!("nobody asked it to leave"),
        }
    }

    fn told(&mut self, message: &FromWorker) {
        assert!(self.coordinator.is_some(), "said to nobody");
        match message {
            FromWorker::Register { .. } => (self.credit, self.leases_sent) = (0, 0),
            FromWorker::Ready { credit_total } => {
                assert!(*credit_total > self.credit, "credit never falls");
                self.credit = *credit_total;
            }
            _ => {}
        }
    }

    fn started(&mut self, lease: &Lease) {
        let digest = match lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => Some(version.digest),
        };
        let here = digest.is_none_or(|d| self.memory.contains(&d));
        assert!(here, "started without its adapter");
        let before = self.running.insert(lease.attempt, digest);
        assert!(before.is_none(), "started twice");
    }

    fn got(&mut self, session: SessionId, first_seq: u64, attempts: &[AttemptId]) {
        let open = [0, 1, 2].map(|sink| self.sink_session(sink));
        assert!(
            open.contains(&Some(session.0)),
            "delivered into a dead session"
        );
        let got = self.received.entry(session.0).or_default();
        assert_eq!(got.len() as u64 + 1, first_seq, "numbers without gaps");
        for attempt in attempts {
            assert!(self.finished.contains(attempt) && !self.freed.contains(attempt));
        }
        got.extend(attempts);
    }

    fn free(&mut self, attempt: AttemptId) {
        let allowed = self.acked.contains(&attempt) || self.unwanted.contains(&attempt);
        assert!(allowed, "{attempt:?} was freed and nobody has it");
        assert!(self.freed.insert(attempt), "freed twice");
    }

    /// What an operation means in this world; `None` when it is impossible now.
    pub(super) fn input(&mut self, op: &Op) -> Option<Input> {
        match *op {
            Op::Lease {
                count,
                policy,
                sink,
            } => self.lease(count, policy, sink),
            Op::Done(n) => {
                let attempt = self.end_episode(n)?;
                self.finished.insert(attempt);
                Some(Input::EpisodeDone {
                    attempt,
                    record_bytes: 700,
                    tokens: 1,
                    prefill_tokens: 1,
                })
            }
            Op::Fail(n) => Some(Input::EpisodeFailed {
                attempt: self.end_episode(n)?,
                fault: Fault::new(ErrorCode::EnvFailed, "no"),
                retryable: true,
            }),
            Op::Revoke(n) => {
                let index = pick(n, self.next_index as usize)? as u64;
                let input = self.say(ToWorker::Revoke(vec![attempt(index)]))?;
                self.unwanted.insert(attempt(index));
                Some(input)
            }
            Op::CoordinatorUp { newer } => {
                self.epoch += u64::from(newer);
                let (session, epoch) = (self.next_session(), Epoch(self.epoch));
                self.coordinator = Some(session.0);
                Some(Input::CoordinatorUp { session, epoch })
            }
            Op::CoordinatorDown => {
                let session = SessionId(self.coordinator.take()?);
                (self.credit, self.leases_sent) = (0, 0);
                Some(Input::CoordinatorDown { session })
            }
            Op::SinkUp(sink) => {
                let session = self.next_session();
                self.sink_sessions.insert(sink, session.0);
                let addr = port(sink);
                Some(Input::SinkUp { addr, session })
            }
            Op::SinkDown(sink) => self.sink_down(sink),
            Op::Deliver { sink, part } => self.deliver(sink, part),
            Op::AdapterReady(n) => {
                let (version, _) = self.end_fetch(n)?;
                self.memory.insert(version.digest);
                Some(Input::AdapterReady { version })
            }
            Op::AdapterFailed(n) => Some(Input::AdapterFailed {
                digest: self.end_fetch(n)?.0.digest,
                fault: Fault::new(ErrorCode::AdapterMismatch, "no"),
            }),
            Op::Announce { step, at } => self.say(ToWorker::Announce {
                version: version(u64::from(step)),
                source: port(at),
            }),
            Op::Retire(step) => self.say(ToWorker::Retire(vec![version(u64::from(step)).digest])),
            Op::Tick(_) => Some(Input::Tick),
        }
    }

    fn say(&self, message: ToWorker) -> Option<Input> {
        Some(Input::Coordinator {
            session: SessionId(self.coordinator?),
            message: Box::new(message),
        })
    }

    fn lease(&mut self, count: u8, policy: u8, sink: u8) -> Option<Input> {
        let count = self.credit_left().min(u64::from(count % 6));
        let sink = match sink {
            0 => SinkAddr::Relay,
            at => SinkAddr::Learner(port(at)),
        };
        let policy = match policy {
            0 => LeasePolicy::Base,
            step => with(u64::from(step)),
        };
        let indices = self.next_index..self.next_index + count;
        self.next_index += count;
        self.leases_sent += count;
        let leases = indices.map(|i| lease(i, policy, sink)).collect();
        let epoch = Epoch(self.epoch);
        self.say(ToWorker::Lease { epoch, leases })
    }

    fn end_episode(&mut self, n: u8) -> Option<AttemptId> {
        let at = pick(n, self.running.len())?;
        let attempt = *self.running.keys().nth(at)?;
        self.running.remove(&attempt);
        Some(attempt)
    }

    fn end_fetch(&mut self, n: u8) -> Option<(AdapterVersion, u64)> {
        let at = pick(n, self.fetching.len())?;
        let digest = *self.fetching.keys().nth(at)?;
        self.fetching.remove(&digest)
    }

    fn sink_down(&mut self, sink: u8) -> Option<Input> {
        let session = SessionId(self.sink_sessions.remove(&sink)?);
        self.fetching.retain(|_, (_, asked)| *asked != session.0);
        let addr = port(sink);
        Some(Input::SinkDown { addr, session })
    }

    fn deliver(&mut self, sink: u8, part: u8) -> Option<Input> {
        let session = self.sink_session(sink)?;
        let got = self.received.get(&session)?;
        let upto = pick(part, got.len() + 1)?;
        self.acked.extend(&got[..upto]);
        let upto = upto as u64;
        if sink == 0 {
            return self.say(ToWorker::Delivered { upto });
        }
        Some(Input::Sink {
            addr: port(sink),
            session: SessionId(session),
            message: FromSink::Delivered { upto },
        })
    }
}
