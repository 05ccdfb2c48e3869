//! Append-only record files that know what was synced.
//!
//! ```text
//! file    [8 magic "VLYSEGM\n"][u32 version][u32 crc32 of the twelve bytes before]
//! record  [u32 length][u32 crc32 of head][u32 crc32 of payload][payload]
//! mark    a record of length 0: everything before it was synced when it was written
//! ```
//!
//! All numbers are little-endian; a head's checksum covers length, payload checksum and the
//! record's offset, so that a record is valid in its own place only.
//!
//! Marks tell a torn tail from damage. A power cut may leave *any* of the blocks that were not
//! yet synced, in any order: a broken record is then no loss, because nobody was told that it is
//! safe, and [`SegmentWriter::open`] cuts it off. A broken record *before* a mark was safe once:
//! the disk or somebody has damaged it, and opening refuses rather than forget it silently.

mod error;
mod format;
mod reader;
mod writer;

pub use error::SegmentError;
pub use format::{RECORD_BYTES_MAX, SEGMENT_START};
pub use reader::{Page, Record, Records, SegmentReader, read_all};
pub use writer::{Recovery, SegmentWriter};

#[cfg(test)]
mod tests;
