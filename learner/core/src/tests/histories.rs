//! Random histories: arrival orders, duplicates, lost sessions, failures, crashes.

use proptest::prelude::*;

use super::world::World;
use super::*;

/// One thing that happens; numbers pick among what is possible then.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Arrive { from: u8, count: u8, worker: u8 },
    Fail(u8),
    Sync(u8),
    StepDone,
    CoordinatorUp,
    CoordinatorDown,
    Ack,
    WorkerGone(u8),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let arrive = (any::<u8>(), 1u8..4, any::<u8>());
    prop_oneof![
        12 => arrive.prop_map(|(from, count, worker)| Op::Arrive { from, count, worker }),
        1 => any::<u8>().prop_map(Op::Fail),
        6 => (0u8..3).prop_map(Op::Sync),
        3 => Just(Op::StepDone),
        2 => Just(Op::CoordinatorUp),
        1 => Just(Op::CoordinatorDown),
        1 => Just(Op::Ack),
        1 => any::<u8>().prop_map(Op::WorkerGone),
        1 => Just(Op::Restart),
    ]
}

struct Play {
    bench: Bench,
    world: World,
}

impl Play {
    fn new(config: Config) -> Self {
        Self {
            bench: Bench::new(config.clone()),
            world: World::new(config),
        }
    }

    fn step(&mut self, op: &Op) {
        if let Op::Restart = op {
            self.bench.learner = self.world.restart();
            self.bench.learner.check_invariants();
            self.apply(Input::Tick);
        } else if let Some(input) = self.world.input(op) {
            self.apply(input);
        }
    }

    fn apply(&mut self, input: Input) {
        self.bench.now += 1;
        self.bench.apply(input);
        for effect in self.bench.take() {
            self.world.observe(effect);
        }
    }

    /// Everything comes back; the run goes to its end.
    fn heal(&mut self) {
        self.step(&Op::CoordinatorUp);
        for round in 0..600 {
            let from = (round % 256) as u8;
            self.step(&Op::Arrive {
                from,
                count: 3,
                worker: 0,
            });
            self.step(&Op::Sync(0));
            self.step(&Op::StepDone);
            self.step(&Op::Ack);
        }
    }

    /// What holds at the end of every run.
    fn check_end(&self, steps: u64) -> Result<(), TestCaseError> {
        let world = &self.world;
        prop_assert_eq!(&world.state, &RunState::Finished);
        let made: Vec<u64> = world.batches.iter().map(|batch| batch.step).collect();
        prop_assert!(made.iter().copied().eq(1..=steps), "steps {:?}", made);
        for member in &world.trained {
            prop_assert_eq!(world.told.get(&member.index), Some(&Verdict::Accepted));
        }
        Ok(())
    }
}

fn small(schedule: Schedule, least: u32) -> Config {
    let mut config = config(schedule, 5);
    config.min_group_size = least;
    config
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_synchronous_run_trains_what_was_accepted_in_a_fixed_order(
        least in 1u32..3,
        ops in prop::collection::vec(op(), 0..250),
    ) {
        let mut play = Play::new(small(Schedule::Sync, least));
        ops.iter().for_each(|op| play.step(op));
        play.heal();
        play.check_end(5)?;
        let world = &play.world;
        prop_assert_eq!(world.told.len(), 20, "every rollout was settled");
        for (step, batch) in world.batches.iter().enumerate() {
            let groups = 2 * step as u64..2 * step as u64 + 2;
            // The batch follows from the verdicts alone, whatever order they came in.
            let whole = groups.map(|g| {
                let members = [2 * g, 2 * g + 1].into_iter();
                let members = members.filter(|i| world.told[i] == Verdict::Accepted);
                group(g, &members.collect::<Vec<_>>())
            });
            let fit = whole.filter(|g| g.members.len() >= least as usize);
            prop_assert_eq!(&batch.groups, &fit.collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_asynchronous_run_trains_once_and_within_the_bound(
        max_staleness in 0u64..3,
        least in 1u32..3,
        spare in 0u64..3,
        ops in prop::collection::vec(op(), 0..250),
    ) {
        let mut config = small(Schedule::Async { max_staleness }, least);
        config.job.rollouts += spare * 2;
        let mut play = Play::new(config);
        ops.iter().for_each(|op| play.step(op));
        play.heal();
        play.check_end(5)?;
        for batch in &play.world.batches {
            prop_assert!(batch.groups.len() <= 2);
        }
    }
}
