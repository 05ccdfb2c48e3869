//! Bytes of a file: mapped, or owned when they came from elsewhere.
#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe; this is the only place that does it"
)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::EngineError;

/// Read-only bytes.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A mapped file.
    Mapped(Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file; an empty file (which cannot be mapped) becomes an empty buffer.
    pub(crate) fn map(path: &Path) -> Result<Self, EngineError> {
        let file = File::open(path).map_err(|e| EngineError::io(path, e))?;
        let metadata = file.metadata().map_err(|e| EngineError::io(path, e))?;
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and every view of it borrows from
        // `self`. Weight files are replaced by rename, never written in place, so the mapped
        // inode keeps its length and content while it is open.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| EngineError::io(path, e))?;
        Ok(Self::Mapped(map))
    }

    /// Wraps bytes in memory.
    pub(crate) const fn owned(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
