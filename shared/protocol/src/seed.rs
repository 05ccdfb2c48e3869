//! Seeds that everybody derives alike: a replay needs nothing but the job's specification.

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection that mixes every bit.
#[must_use]
pub const fn mix64(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Sampling seed of rollout `index` of a job whose sampling seed is `job_seed`.
/// Every attempt of a rollout uses the same one.
#[must_use]
pub const fn rollout_seed(job_seed: u64, index: u64) -> u64 {
    mix64(mix64(job_seed) ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_frozen() {
        assert_eq!(mix64(0), 16_294_208_416_658_607_535);
        assert_ne!(rollout_seed(1, 0), rollout_seed(0, 1));
        assert_eq!(rollout_seed(7, 3), rollout_seed(7, 3));
    }
}
