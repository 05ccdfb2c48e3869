//! What a worker is told when it starts.

use volley_protocol::limits::{TRAJECTORY_BATCH_BYTES_MAX, UNDELIVERED_BYTES_MAX};
use volley_protocol::{Digest, ErrorCode, Fault};

/// Slots of one worker. With the same number queued and [`UNDELIVERED_RECORDS_MAX`] waiting for
/// their sinks, the attempts that a heartbeat names (36 bytes each) fit a control frame.
pub const SLOTS_MAX: u32 = 4096;

/// Results waiting for their sinks above which no further work is asked for.
pub const UNDELIVERED_RECORDS_MAX: usize = 16_384;

/// What a worker is told when it starts; constant over its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// Concurrent episodes.
    pub slots: u32,
    /// Leases beyond the slots, so that a slot never waits for a round trip.
    pub prefetch: u32,
    /// Class of its arithmetic.
    pub numerics: String,
    /// Digest of the base model's files; all zero for the scripted policy.
    pub base: Digest,
    /// Which request of the autoscaler it answers; 0 when a person started it.
    pub provision: u64,
    /// Undelivered bytes above which no further work is asked for.
    pub undelivered_bytes_max: u64,
    /// Without a coordinator for this long it drains and ends.
    pub alone_ms: u64,
    /// What is not finished this long after a local request to drain is dropped.
    pub drain_ms: u64,
    /// Trajectories in one batch.
    pub batch_records_max: usize,
    /// Bytes of the records in one batch; leaves room for the batch header.
    pub batch_bytes_max: u64,
    /// Adapters kept in memory that no episode plays with.
    pub idle_adapters_max: usize,
}

impl Config {
    /// The usual bounds for a worker of that many slots.
    #[must_use]
    pub fn new(slots: u32, numerics: impl Into<String>, base: Digest) -> Self {
        Self {
            slots,
            prefetch: slots,
            numerics: numerics.into(),
            base,
            provision: 0,
            undelivered_bytes_max: UNDELIVERED_BYTES_MAX,
            alone_ms: 60_000,
            drain_ms: 30_000,
            batch_records_max: 256,
            batch_bytes_max: TRAJECTORY_BATCH_BYTES_MAX as u64 - 64,
            idle_adapters_max: 16,
        }
    }

    /// Leases it may have that are not finished.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.slots) + u64::from(self.prefetch)
    }

    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, naming the field.
    pub fn validate(&self) -> Result<(), Fault> {
        let batch = 1..TRAJECTORY_BATCH_BYTES_MAX as u64;
        let checks = [
            ((1..=SLOTS_MAX).contains(&self.slots), "slots"),
            (self.prefetch <= SLOTS_MAX, "prefetch"),
            (self.undelivered_bytes_max > 0, "undelivered_bytes_max"),
            (self.batch_records_max > 0, "batch_records_max"),
            (batch.contains(&self.batch_bytes_max), "batch_bytes_max"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, field)) => {
                let message = format!("{field} is out of its bounds");
                Err(Fault::new(ErrorCode::ConfigInvalid, message))
            }
        }
    }
}
