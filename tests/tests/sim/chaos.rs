//! What goes wrong, and how often.

use std::collections::VecDeque;

use crate::events::{Event, Node, Wire};
use crate::world::{SYNC_MS, World};

/// Sessions bear silence for so long.
const SILENCE_MS: u64 = 5_000;
/// After a clock has jumped, or a process stood still, leases may have ended before their time;
/// by then every worker has said again what it holds.
const SETTLES_MS: u64 = 20_000;

impl World {
    /// One misfortune, and the time of the next. None after the chaotic part of a run.
    pub(crate) fn chaos(&mut self) {
        if self.schedule.now_ms() >= self.chaos_until_ms {
            self.net.heal();
            self.coordinator.disk_full_until_ms = 0;
            self.learner.disk_full_until_ms = 0;
            return;
        }
        match self.rng.below(100) {
            0..=27 => self.cut_a_session(),
            28..=46 => self.block_a_way(),
            47..=60 => self.kill_a_worker(),
            61..=67 => self.crash_coordinator(),
            68..=73 => self.crash_learner(),
            74..=77 => self.crash_client(),
            78..=87 => self.stall_a_process(),
            88..=90 => self.fill_a_disk(),
            91..=92 => self.cut_the_power(),
            _ => self.jump_a_clock(),
        }
        let pause_ms = self.rng.between(500, 20_000);
        self.schedule.after(pause_ms, Event::Chaos);
    }

    /// A misfortune in `of_thousand` of 1,000 cases, while there are misfortunes.
    pub(crate) fn hurts(&mut self, of_thousand: u64) -> bool {
        self.schedule.now_ms() < self.chaos_until_ms && self.rng.chance(of_thousand)
    }

    /// Does a write to a node's disk fail?
    pub(crate) fn disk_fails(&mut self, node: Node) -> bool {
        let full_until_ms = match node {
            Node::Coordinator => self.coordinator.disk_full_until_ms,
            _ => self.learner.disk_full_until_ms,
        };
        self.schedule.now_ms() < full_until_ms || (self.hurts(1) && self.rng.chance(400))
    }

    /// How long a sync takes: mostly a good disk, sometimes a bad one.
    pub(crate) fn sync_ms(&mut self) -> u64 {
        if self.rng.chance(20) {
            self.rng.between(SYNC_MS, 3_000)
        } else {
            self.rng.between(1, SYNC_MS)
        }
    }

    fn cut_a_session(&mut self) {
        let alive: Vec<u64> = self.net.alive().map(|(id, _)| id).collect();
        if let Some(session) = self.rng.pick(&alive).copied() {
            self.net
                .cut::<Wire, Event>(&mut self.schedule, &mut self.rng, session);
        }
    }

    fn block_a_way(&mut self) {
        let nodes: Vec<(Node, Node)> = self
            .net
            .alive()
            .map(|(_, s)| (s.dialler, s.listener))
            .collect();
        let Some((mut from, mut to)) = self.rng.pick(&nodes).copied() else {
            return;
        };
        if self.rng.chance(500) {
            (from, to) = (to, from);
        }
        let for_ms = self.rng.between(200, 25_000);
        self.outcome.partitions += 1;
        self.block(from, to, for_ms);
        // Mostly one way only.
        if self.rng.chance(200) {
            self.block(to, from, for_ms);
        }
    }

    fn block(&mut self, from: Node, to: Node, for_ms: u64) {
        self.net
            .block::<Wire, Event>(&mut self.schedule, from, to, for_ms);
    }

    fn a_worker(&mut self) -> Option<u64> {
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        self.rng.pick(&ids).copied()
    }

    fn kill_a_worker(&mut self) {
        if let Some(id) = self.a_worker() {
            self.end_worker(id);
        }
    }

    /// A process stands still for a while: stopped, swapped out, or its machine is busy elsewhere.
    fn stall_a_process(&mut self) {
        let node = match self.rng.below(10) {
            0..=2 => Node::Coordinator,
            3..=4 => Node::Learner,
            5 => Node::Client,
            _ => match self.a_worker() {
                Some(id) => Node::Worker(id),
                None => return,
            },
        };
        if self.stalled.contains_key(&node) || !self.is_up(node) {
            return;
        }
        let for_ms = if self.rng.chance(300) {
            self.rng.between(SILENCE_MS, 40_000)
        } else {
            self.rng.between(100, SILENCE_MS)
        };
        self.outcome.stalls += 1;
        let number = self.outcome.stalls;
        self.note(&[41, number], &format_args!("{node:?} stalls {for_ms} ms"));
        self.stalled.insert(node, (number, VecDeque::new()));
        self.unsettled_until_ms = self.schedule.now_ms() + for_ms + SETTLES_MS;
        self.schedule.after(for_ms, Event::Resume(node, number));
        if for_ms > SILENCE_MS {
            self.schedule.after(SILENCE_MS, Event::Silent(node, number));
        }
    }

    pub(crate) fn silent(&mut self, node: Node, number: u64) {
        if self.stalled.get(&node).map(|(of, _)| *of) == Some(number) {
            self.net
                .silence::<Wire, Event>(&mut self.schedule, &mut self.rng, node);
        }
    }

    /// It goes on with everything that came meanwhile, in the order in which it came.
    pub(crate) fn resume(&mut self, node: Node, number: u64) {
        if self.stalled.get(&node).map(|(of, _)| *of) != Some(number) {
            return;
        }
        let (_, waiting) = self.stalled.remove(&node).unwrap_or_default();
        waiting.into_iter().for_each(|event| self.handle(event));
    }

    /// Its process is gone, with everything that it had not yet noticed.
    pub(crate) fn is_gone(&mut self, node: Node) {
        self.stalled.remove(&node);
        self.net
            .crash::<Wire, Event>(&mut self.schedule, &mut self.rng, node);
    }

    fn fill_a_disk(&mut self) {
        let until_ms = self.schedule.now_ms() + self.rng.between(1_000, 60_000);
        if self.rng.chance(500) {
            self.coordinator.disk_full_until_ms = until_ms;
        } else {
            self.learner.disk_full_until_ms = until_ms;
        }
        self.note(&[42], &"a disk is full");
    }

    /// Everything on the machine ends at once.
    fn cut_the_power(&mut self) {
        self.outcome.power_cuts += 1;
        self.note(&[43], &"the power is cut");
        self.crash_coordinator();
        self.crash_learner();
        self.crash_client();
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_worker(id));
    }

    /// Within a life clocks only jump ahead (a suspended machine); between two lives of the
    /// coordinator its wall clock may be set back, too.
    fn jump_a_clock(&mut self) {
        let ms = if self.rng.chance(150) {
            self.rng.between(60_000, 3_600_000)
        } else {
            self.rng.between(100, 30_000)
        };
        self.outcome.clock_jumps += 1;
        match self.rng.below(3) {
            0 => {
                self.coordinator.clock_off_ms += ms as i64;
                self.unsettled_until_ms = self.schedule.now_ms() + SETTLES_MS;
            }
            1 => self.learner.clock_ahead_ms += ms,
            _ => {
                if let Some(id) = self.a_worker() {
                    self.jump_worker_clock(id, ms);
                }
            }
        }
    }
}
