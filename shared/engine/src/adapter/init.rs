//! A fresh adapter: A random, B zero, so that it starts as the base model exactly.

use super::{Adapter, LoraConfig, LoraPair, PerSite, Site};
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::model::PackedCell;

impl Adapter {
    /// A fresh adapter. `A` is uniform in `±1/sqrt(in)`: Kaiming's uniform initialisation with
    /// `a = sqrt(5)` (He et al. 2015, arXiv 1502.01852, eq. 10 and 14), PEFT's default. The values
    /// are a function of the seed and their place alone.
    ///
    /// # Errors
    ///
    /// The settings describe no adapter.
    pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<Self, EngineError> {
        config.check()?;
        // A site's number, from 1, stands for it in the generator.
        let mut number = 0;
        let pairs = PerSite::from_fn(model.num_layers, |site| {
            number += 1;
            let key = mix(seed ^ mix(number));
            (config.adapts(site)).then(|| pair(model, config.rank, key, site))
        });
        Ok(Self {
            config: config.clone(),
            pairs,
            packed: PackedCell::default(),
        })
    }
}

fn pair(model: &ModelConfig, rank: usize, key: u64, site: Site) -> LoraPair {
    let (rows, columns) = site.shape(model);
    let bound = 1.0 / (columns as f64).sqrt();
    let a = (0..(rank * columns) as u64).map(|index| (bound * symmetric(key, index)) as f32);
    LoraPair {
        a: a.collect(),
        b: vec![0.0; rows * rank],
    }
}

/// Uniform in [-1, 1), from 53 bits of the counter's hash.
fn symmetric(key: u64, counter: u64) -> f64 {
    let bits = mix(key.wrapping_add(counter.wrapping_mul(GOLDEN))) >> 11;
    bits as f64 * (2.0 / (1_u64 << 53) as f64) - 1.0
}

/// 2^64 divided by the golden ratio: consecutive counters land far apart.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
/// generators", figure 17, variant 13 of Stafford).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_pinned() {
        // First outputs of SplitMix64 from state 0, as published with the algorithm.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(GOLDEN), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn draws_are_uniform_in_their_bounds() {
        let draws: Vec<f64> = (0..20_000).map(|index| symmetric(7, index)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let square = draws.iter().map(|draw| draw * draw).sum::<f64>() / 20_000.0;
        assert!(draws.iter().all(|draw| (-1.0..1.0).contains(draw)));
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.01, "{square}");
    }
}
