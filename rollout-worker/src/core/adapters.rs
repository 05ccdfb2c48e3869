//! Adapters in memory, and those on their way.
//!
//! ```text
//! want ──► wanted ──(session with the source)──► fetching ──► live ──► dropped
//!            ▲              session lost             │          (retired or too many, and
//!            └───────────────────────────────────────┘           no episode pins it)
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use volley_protocol::{AdapterVersion, Digest};

use super::effect::Effect;
use super::input::SessionId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Wanted,
    Fetching(SessionId),
    Live,
}

#[derive(Debug)]
struct Adapter {
    version: AdapterVersion,
    source: SocketAddr,
    stage: Stage,
    /// Episodes, queued or running, that play with it.
    pins: u32,
    /// Nobody needs it any more; it goes when its last pin goes.
    retired: bool,
}

/// Every adapter that is here or was asked for, by digest.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    known: BTreeMap<Digest, Adapter>,
}

impl Adapters {
    pub(super) fn is_live(&self, digest: &Digest) -> bool {
        self.known
            .get(digest)
            .is_some_and(|a| a.stage == Stage::Live)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &AdapterVersion> {
        let live = self.known.values().filter(|a| a.stage == Stage::Live);
        live.map(|adapter| &adapter.version)
    }

    /// Is something to be fetched from there?
    pub(super) fn needs(&self, source: SocketAddr) -> bool {
        let mut known = self.known.values();
        known.any(|a| a.stage != Stage::Live && a.source == source)
    }

    /// Asks for an adapter; tells whether it is in memory already.
    pub(super) fn want(&mut self, version: AdapterVersion, source: SocketAddr) -> bool {
        // An older version of the same run that was announced, never came and plays nowhere here
        // is not worth its bytes any more.
        self.known.retain(|_, a| {
            let older = a.version.run == version.run && a.version.step < version.step;
            !(older && a.pins == 0 && a.stage == Stage::Wanted)
        });
        let adapter = self.known.entry(version.digest).or_insert(Adapter {
            version,
            source,
            stage: Stage::Wanted,
            pins: 0,
            retired: false,
        });
        debug_assert_eq!(adapter.version.digest, version.digest);
        adapter.retired = false;
        if adapter.stage == Stage::Wanted {
            adapter.source = source;
        }
        adapter.stage == Stage::Live
    }

    /// An episode was queued that plays with it.
    pub(super) fn pin(&mut self, digest: &Digest) {
        let adapter = self.known.get_mut(digest);
        debug_assert!(adapter.is_some(), "pinned after it was wanted");
        if let Some(adapter) = adapter {
            adapter.pins += 1;
        }
    }

    /// An episode that played with it ended.
    pub(super) fn unpin(&mut self, digest: &Digest) {
        // Unknown when it failed to come: its episodes are failed one by one after that.
        if let Some(adapter) = self.known.get_mut(digest) {
            debug_assert!(adapter.pins > 0, "pins are paired");
            adapter.pins = adapter.pins.saturating_sub(1);
        }
    }

    /// Requests everything that is wanted from a source with an open session.
    pub(super) fn fetch(
        &mut self,
        session_with: impl Fn(SocketAddr) -> Option<SessionId>,
        effects: &mut Vec<Effect>,
    ) {
        for adapter in self.known.values_mut() {
            if adapter.stage != Stage::Wanted {
                continue;
            }
            if let Some(session) = session_with(adapter.source) {
                adapter.stage = Stage::Fetching(session);
                effects.push(Effect::FetchAdapter {
                    version: adapter.version,
                    source: adapter.source,
                    session,
                });
            }
        }
    }

    /// A session ended: what was asked for in it is wanted again.
    pub(super) fn session_lost(&mut self, session: SessionId) {
        for adapter in self.known.values_mut() {
            if adapter.stage == Stage::Fetching(session) {
                debug_assert_ne!(adapter.stage, Stage::Live);
                adapter.stage = Stage::Wanted;
            }
        }
    }

    /// The learner that has them answers at another address now.
    pub(super) fn move_source(&mut self, old: SocketAddr, new: SocketAddr) {
        debug_assert_ne!(old, new);
        for adapter in self.known.values_mut().filter(|a| a.source == old) {
            adapter.source = new;
            if adapter.stage != Stage::Live {
                adapter.stage = Stage::Wanted;
            }
        }
    }

    /// It is in memory. Tells whether it is still needed; `None` when it is not known at all.
    pub(super) fn ready(&mut self, version: &AdapterVersion) -> Option<bool> {
        let adapter = self.known.get_mut(&version.digest)?;
        debug_assert_ne!(adapter.stage, Stage::Live, "loaded once");
        adapter.stage = Stage::Live;
        Some(!adapter.retired)
    }

    /// It cannot be had. False when it is in memory all the same, or unknown.
    pub(super) fn failed(&mut self, digest: &Digest) -> bool {
        let on_its_way = self.known.contains_key(digest) && !self.is_live(digest);
        if on_its_way {
            self.known.remove(digest);
        }
        debug_assert!(!on_its_way || !self.known.contains_key(digest));
        on_its_way
    }

    /// Nobody in the cluster needs these any more.
    pub(super) fn retire(&mut self, digests: &[Digest]) {
        for digest in digests {
            if let Some(adapter) = self.known.get_mut(digest) {
                adapter.retired = true;
            }
        }
        debug_assert!(
            digests
                .iter()
                .all(|d| self.known.get(d).is_none_or(|a| a.retired))
        );
    }

    /// Takes out what is retired or above the bound, and pinned by no episode. The oldest go
    /// first, the newest stays. Tells what has to be freed.
    pub(super) fn sweep(&mut self, idle_max: usize) -> Vec<Digest> {
        let idle = |a: &Adapter| a.pins == 0 && a.stage == Stage::Live;
        let mut surplus: Vec<_> = self.known.values().filter(|a| idle(a)).collect();
        surplus.sort_by_key(|a| (a.retired, a.version.step, a.version.digest));
        let excess = surplus.len().saturating_sub(idle_max.max(1));
        let retired = surplus.iter().filter(|a| a.retired);
        let oldest = surplus.iter().take(excess);
        let mut gone: Vec<_> = retired.chain(oldest).map(|a| a.version.digest).collect();
        gone.sort_unstable();
        gone.dedup();
        gone.iter().for_each(|digest| {
            self.known.remove(digest);
        });
        // What was not asked for has no bytes here. What is on its way is dropped when it comes.
        self.known
            .retain(|_, a| !a.retired || a.pins > 0 || a.stage != Stage::Wanted);
        gone
    }

    /// The pins are those of `pinned`, and nothing that runs lacks its adapter.
    pub(super) fn check<'a>(&self, pinned: impl Iterator<Item = (Digest, bool)> + 'a) {
        let mut pins = BTreeMap::<Digest, u32>::new();
        for (digest, running) in pinned {
            *pins.entry(digest).or_default() += 1;
            assert!(
                !running || self.is_live(&digest),
                "plays without its adapter"
            );
        }
        for (digest, adapter) in &self.known {
            let due = pins.remove(digest).unwrap_or(0);
            assert_eq!(adapter.pins, due, "pins of {digest:?}");
        }
        assert!(pins.is_empty(), "pinned, but unknown: {pins:?}");
    }
}
