//! Names and bulk bytes of LoRA adapters.
//!
//! A version is one link of a chain: `(run, lineage, step, digest)`. Its bytes are fetched from
//! the run's learner over a bulk stream `[u8 kind = 2][32 digest][bytes]`; the receiver hashes
//! them and takes nothing that does not carry its own name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::RunId;

/// One published state of a run's adapter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AdapterVersion {
    /// The run it belongs to.
    pub run: RunId,
    /// Rises when a recovery could not reproduce a digest and a new branch begins.
    pub lineage: u32,
    /// Optimiser steps behind it; 0 is the untrained adapter.
    pub step: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

impl fmt::Debug for AdapterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}@{}", self.lineage, self.step, self.digest.short())
    }
}

/// A version, its parent and its size: what the registry keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterEntry {
    /// The version.
    pub version: AdapterVersion,
    /// Digest of the version it was trained from; all zero for step 0.
    pub parent: Digest,
    /// Size in bytes.
    pub bytes: u64,
}
