//! What goes wrong, and how often.

use crate::world::{Event, Node, Wire, World};

impl World {
    /// One misfortune, and the time of the next. None after the chaotic part of a run.
    pub(crate) fn chaos(&mut self) {
        if self.schedule.now_ms() >= self.chaos_until_ms {
            self.net.heal();
            return;
        }
        match self.rng.below(100) {
            0..=34 => self.cut_a_session(),
            35..=59 => self.block_a_way(),
            60..=74 => self.kill_a_worker(),
            75..=84 => self.crash_coordinator(),
            85..=92 => self.crash_learner(),
            _ => self.jump_a_clock(),
        }
        let pause_ms = self.rng.between(500, 20_000);
        self.schedule.after(pause_ms, Event::Chaos);
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
        self.net
            .block::<Wire, Event>(&mut self.schedule, from, to, for_ms);
    }

    fn kill_a_worker(&mut self) {
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        if let Some(id) = self.rng.pick(&ids).copied() {
            self.end_worker(id);
        }
    }

    fn jump_a_clock(&mut self) {
        let ms = self.rng.between(100, 30_000);
        self.outcome.clock_jumps += 1;
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        match self.rng.below(3) {
            0 => {
                self.coordinator.clock_ahead_ms += ms;
                self.jumped = true;
            }
            1 => self.learner.clock_ahead_ms += ms,
            _ => {
                if let Some(id) = self.rng.pick(&ids).copied() {
                    self.jump_worker_clock(id, ms);
                }
            }
        }
    }
}
