//! Random histories against a model of the shell, the sinks and the coordinator.

use proptest::prelude::*;

use super::world::World;
use super::*;

/// One thing that happens; numbers pick among what is possible then.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Lease { count: u8, policy: u8, sink: u8 },
    Done(u8),
    Fail(u8),
    Revoke(u8),
    CoordinatorUp { newer: bool },
    CoordinatorDown,
    SinkUp(u8),
    SinkDown(u8),
    Deliver { sink: u8, part: u8 },
    AdapterReady(u8),
    AdapterFailed(u8),
    Announce { step: u8, at: u8 },
    Retire(u8),
    Tick(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let lease = (any::<u8>(), 0u8..4, 0u8..3);
    let deliver = (0u8..3, any::<u8>());
    prop_oneof![
        6 => lease.prop_map(|(count, policy, sink)| Op::Lease { count, policy, sink }),
        8 => any::<u8>().prop_map(Op::Done),
        1 => any::<u8>().prop_map(Op::Fail),
        1 => any::<u8>().prop_map(Op::Revoke),
        1 => any::<bool>().prop_map(|newer| Op::CoordinatorUp { newer }),
        1 => Just(Op::CoordinatorDown),
        2 => (1u8..3).prop_map(Op::SinkUp),
        1 => (1u8..3).prop_map(Op::SinkDown),
        4 => deliver.prop_map(|(sink, part)| Op::Deliver { sink, part }),
        3 => any::<u8>().prop_map(Op::AdapterReady),
        1 => any::<u8>().prop_map(Op::AdapterFailed),
        1 => (0u8..4, 1u8..3).prop_map(|(step, at)| Op::Announce { step, at }),
        1 => (0u8..4).prop_map(Op::Retire),
        2 => (0u16..3_000).prop_map(Op::Tick),
    ]
}

struct Play {
    bench: Bench,
    world: World,
}

impl Play {
    fn new(slots: u32) -> Self {
        let mut config = Config::new(slots, "test", Digest::default());
        config.undelivered_bytes_max = 4_000;
        config.batch_records_max = 3;
        config.idle_adapters_max = 2;
        // Loneliness has its own test.
        config.alone_ms = u64::MAX;
        let (bench, mut world) = (Bench::new(config), World::default());
        world.epoch = 1;
        Self { bench, world }
    }

    fn step(&mut self, op: &Op) {
        if let Op::Tick(ms) = op {
            self.bench.now = self.bench.now.plus(u64::from(*ms));
        }
        let Some(input) = self.world.input(op) else {
            return;
        };
        self.bench.apply(input);
        self.observe();
        if let Op::CoordinatorUp { .. } = op {
            let session = self.world.coordinator.expect("just opened");
            self.bench.say(session, ToWorker::Job(spec()));
            self.observe();
        }
        let worker = &self.bench.worker;
        let held = worker.slots.len() as u64 + self.world.credit_left();
        assert!(held <= worker.config.capacity(), "credit above the slots");
    }

    fn observe(&mut self) {
        for effect in self.bench.take() {
            self.world.observe(effect);
        }
    }

    /// Everything comes back and answers; what is leased is played to its end.
    fn heal(&mut self) {
        self.step(&Op::CoordinatorUp { newer: true });
        for _ in 0..200 {
            for sink in [1, 2] {
                if self.world.sink_session(sink).is_none() {
                    self.step(&Op::SinkUp(sink));
                }
            }
            self.step(&Op::AdapterReady(0));
            self.step(&Op::Done(0));
            for sink in 0..3 {
                let session = self.world.sink_session(sink);
                let got = session.and_then(|s| self.world.received.get(&s));
                let part = got.map_or(0, Vec::len).min(255) as u8;
                self.step(&Op::Deliver { sink, part });
            }
            self.step(&Op::Tick(50));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_credit_holds(
        slots in 1u32..6,
        ops in prop::collection::vec(op(), 0..160),
    ) {
        let mut play = Play::new(slots);
        ops.iter().for_each(|op| play.step(op));
        play.heal();
        let (worker, world) = (&play.bench.worker, &play.world);
        prop_assert_eq!(worker.slots.len(), 0, "every episode ended");
        prop_assert_eq!(worker.sinks.len(), 0, "every result was delivered");
        prop_assert_eq!(&world.finished, &world.freed, "freed exactly once each");
        let safe = |a: &AttemptId| world.acked.contains(a) || world.unwanted.contains(a);
        prop_assert!(world.finished.iter().all(safe), "a result was lost");
    }
}
