//! Seeded draws and the split, the same in every implementation of the bundled tasks.
//!
//! Instance `i` of a split comes from one SplitMix64 stream with the seed
//! `fnv1a64(task) ^ i`: instances are drawn from it, one after the other, until one belongs to
//! the split. It is held out for evaluation iff `fnv1a64(key)` is a multiple of ten.

use crate::error::EnvError;
use crate::scenario::{Scenario, Split};

/// Draws before giving up on an instance of the wanted split. One in ten is held out: not one
/// in ten thousand has a probability of 0.9^10000, below 1e-450.
const DRAWS_MAX: u32 = 10_000;

/// One instance in so many is held out for evaluation.
const HELD_OUT_ONE_IN: u64 = 10;

/// The SplitMix64 generator.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A stream by its seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub(crate) const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`: the high half of the 128-bit product.
    pub(crate) const fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "nothing is below zero");
        ((self.next_u64() as u128 * n as u128) >> 64) as u64
    }

    /// An element of a list that is not empty.
    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// FNV-1a over the bytes of the text.
pub(crate) fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The split of an instance, by its identity within the task.
fn split_of(task: &str, identity: &str) -> Split {
    if fnv1a64(&format!("{task}\n{identity}")).is_multiple_of(HELD_OUT_ONE_IN) {
        Split::Eval
    } else {
        Split::Train
    }
}

/// The instance of a scenario. `identity` is what tells two instances of the task apart: the
/// user message, or the episode seed in decimal.
pub(crate) fn instance<T>(
    task: &str,
    scenario: &Scenario,
    draw: impl Fn(&mut SplitMix64) -> T,
    identity: impl Fn(&T) -> String,
) -> Result<T, EnvError> {
    let mut rng = SplitMix64::new(fnv1a64(task) ^ scenario.instance);
    for _ in 0..DRAWS_MAX {
        let drawn = draw(&mut rng);
        if split_of(task, &identity(&drawn)) == scenario.split {
            return Ok(drawn);
        }
    }
    Err(EnvError::failed(&format!(
        "no {} instance within {DRAWS_MAX} draws",
        scenario.split.as_str()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_matches_the_published_numbers() {
        let mut rng = SplitMix64::new(0);
        let first = [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(
            first,
            [
                16_294_208_416_658_607_535,
                7_960_286_522_194_355_700,
                487_617_019_471_545_679
            ]
        );
        let mut rng = SplitMix64::new(42);
        let below = [0; 5].map(|_| rng.below(100));
        assert_eq!(below, [74, 15, 27, 34, 3]);
    }

    #[test]
    fn hash_and_split_match_the_published_numbers() {
        assert_eq!(fnv1a64(""), 14_695_981_039_346_656_037);
        assert_eq!(fnv1a64("arithmetic"), 14_076_613_084_833_988_961);
        assert_eq!(fnv1a64("arithmetic\n37+45="), 10_007_222_507_616_885_754);
        assert_eq!(split_of("arithmetic", "37+45="), Split::Train);
    }

    #[test]
    fn a_task_without_held_out_instances_is_an_error_not_a_loop() {
        let scenario = Scenario::new(Split::Eval, 0);
        let drawn = instance("arithmetic", &scenario, |_| (), |()| "37+45=".to_owned());
        assert_eq!(drawn.expect_err("all the same").code(), "ENV_FAILED");
    }
}
