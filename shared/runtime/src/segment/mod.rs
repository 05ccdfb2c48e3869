//! Append-only record files that know what was synced.
//!
//! ```text
//! file    [8 magic "VLYSEGM\n"][u32 version][u32 crc32 of the twelve bytes before]
//! record  [u32 length][u32 crc32 of head][u32 crc32 of payload][payload]
//! mark    a record of length 0: everything before it was synced when it was written
//! seal    [u32 0xFFFFFFFF][u32 crc32 of head][u32 crc32 of the number of records and their heads]
//! gap     [u32 0xFFFFFFFE][u32 crc32 of head][u32 length]: so many bytes, these twelve included,
//!         were damaged and given up by [`repair`]
//! ```
//!
//! All numbers are little-endian; a head's checksum covers length, payload checksum and the
//! record's offset, so that a record is valid in its own place only.
//!
//! Marks tell a torn tail from damage. A power cut may leave *any* of the blocks that were not
//! yet synced, in any order: a broken record is then no loss, because nobody was told that it is
//! safe, and [`SegmentWriter::open`] cuts it off. A broken record *before* a mark was safe once:
//! the disk or somebody has damaged it, and opening refuses rather than forget it silently.
//!
//! A seal is a mark that also says how many records there are before it, and which: a file that is
//! full or whose job has ended is as it was then, or it is refused. It takes the place of the last
//! mark, of which nobody can say whether it is durable. Version 1 had no seals and gaps.

mod error;
mod format;
mod inspect;
mod medium;
mod reader;
mod repair;
mod writer;

pub use error::SegmentError;
pub use format::{RECORD_BYTES_MAX, SEGMENT_START};
pub use inspect::{Damage, Inspection, inspect, inspect_each};
pub use reader::{Page, Record, Records, SegmentReader, read_all};
pub use repair::{Repaired, repair, set_aside};
pub use writer::{Recovery, SegmentWriter};

#[cfg(test)]
mod power_cuts;
#[cfg(test)]
mod tests;
