//! Leased episodes: waiting for a slot, or in one.
//!
//! ```text
//! lease ──► queued ──(slot free and adapter in memory)──► running ──► ended
//!              └──────────── revoked, failed, cut ───────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use volley_protocol::worker::{Lease, LeasePolicy, SinkAddr};
use volley_protocol::{AttemptId, Digest, JobSpec};

use super::input::Millis;

/// One leased episode.
#[derive(Debug)]
pub(super) struct Episode {
    pub(super) lease: Lease,
    pub(super) spec: Arc<JobSpec>,
    pub(super) running: bool,
    /// It takes too long when it still runs then; known once it runs.
    close_by: Option<Millis>,
}

impl Episode {
    /// The adapter it plays with; `None` is the base model.
    pub(super) fn digest(&self) -> Option<Digest> {
        match self.lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => Some(version.digest),
        }
    }
}

/// Every leased episode that has not ended. Bounded by the credit.
#[derive(Debug, Default)]
pub(super) struct Slots {
    episodes: BTreeMap<AttemptId, Episode>,
    /// Attempts that do not run yet, in the order in which they came.
    queue: VecDeque<AttemptId>,
    running: u32,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.episodes.len()
    }

    pub(super) const fn running(&self) -> u32 {
        self.running
    }

    pub(super) fn contains(&self, attempt: &AttemptId) -> bool {
        self.episodes.contains_key(attempt)
    }

    pub(super) fn is_running(&self, attempt: &AttemptId) -> bool {
        self.episodes.get(attempt).is_some_and(|e| e.running)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&AttemptId, &Episode)> {
        self.episodes.iter()
    }

    /// Adds an episode behind those that wait.
    pub(super) fn enqueue(&mut self, lease: Lease, spec: Arc<JobSpec>) {
        let attempt = lease.attempt;
        let episode = Episode {
            lease,
            spec,
            running: false,
            close_by: None,
        };
        let before = self.episodes.insert(attempt, episode);
        debug_assert!(before.is_none(), "a lease is held once");
        self.queue.push_back(attempt);
    }

    /// Puts the first episode that can play into a slot, if one of `slots` is free. One whose
    /// adapter is still on its way does not hold up those behind it.
    pub(super) fn start_next(
        &mut self,
        now: Millis,
        slots: u32,
        is_live: impl Fn(&Digest) -> bool,
    ) -> Option<(Lease, Arc<JobSpec>)> {
        if self.running >= slots {
            return None;
        }
        let ready = |attempt: &AttemptId| {
            let digest = self.episodes.get(attempt).and_then(Episode::digest);
            digest.is_none_or(|digest| is_live(&digest))
        };
        let at = self.queue.iter().position(ready)?;
        let attempt = self.queue.remove(at)?;
        let episode = self.episodes.get_mut(&attempt)?;
        debug_assert!(!episode.running, "queued episodes do not run");
        episode.running = true;
        episode.close_by = match episode.spec.retry.start_to_close_ms {
            0 => None,
            limit_ms => Some(now.plus(limit_ms)),
        };
        self.running += 1;
        // Who plays it gets the payload; nobody needs it a second time.
        let payload = std::mem::take(&mut episode.lease.payload);
        let lease = Lease {
            payload,
            ..episode.lease.clone()
        };
        Some((lease, episode.spec.clone()))
    }

    /// Takes an episode out, whether it waits or runs.
    pub(super) fn end(&mut self, attempt: &AttemptId) -> Option<Episode> {
        let episode = self.episodes.remove(attempt)?;
        if episode.running {
            debug_assert!(self.running > 0);
            self.running -= 1;
        } else {
            self.queue.retain(|queued| queued != attempt);
        }
        Some(episode)
    }

    /// Takes out every episode for which `ends` holds.
    pub(super) fn end_where(&mut self, ends: impl Fn(&Episode) -> bool) -> Vec<Episode> {
        let gone: Vec<_> = self.episodes.values().filter(|e| ends(e)).collect();
        let gone: Vec<_> = gone.into_iter().map(|e| e.lease.attempt).collect();
        gone.iter()
            .filter_map(|attempt| self.end(attempt))
            .collect()
    }

    /// Episodes that have run for longer than their job allows.
    pub(super) fn overdue(&self, now: Millis) -> Vec<AttemptId> {
        let late = |episode: &Episode| episode.close_by.is_some_and(|at| at <= now);
        let late = self.episodes.iter().filter(|(_, episode)| late(episode));
        late.map(|(attempt, _)| *attempt).collect()
    }

    /// A learner answers at another address now: results will go there.
    pub(super) fn move_sink(&mut self, old: SocketAddr, new: SocketAddr) {
        debug_assert_ne!(old, new);
        for episode in self.episodes.values_mut() {
            if episode.lease.sink == SinkAddr::Learner(old) {
                episode.lease.sink = SinkAddr::Learner(new);
            }
        }
    }

    /// The queue holds exactly the episodes that do not run; the count is right.
    pub(super) fn check(&self, slots: u32) {
        assert!(self.running <= slots, "more episodes than slots");
        let running = self.episodes.values().filter(|e| e.running).count();
        assert_eq!(running, self.running as usize, "running episodes");
        assert_eq!(
            self.episodes.len(),
            self.queue.len() + running,
            "queued or running"
        );
        let queued = |attempt| self.episodes.get(attempt).is_some_and(|e| !e.running);
        assert!(self.queue.iter().all(queued), "the queue does not run");
    }
}
