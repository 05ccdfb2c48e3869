//! Looks at a segment without changing it.

use std::path::Path;

use super::error::SegmentError;
use super::format::SEGMENT_START;
use super::reader::SegmentReader;

/// The first thing that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// What is in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Whole records before the first damage.
    pub records: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Nothing was appended since the last seal.
    pub sealed: bool,
    /// Places where an earlier repair gave records up.
    pub gaps: u64,
    /// Bytes that were given up there.
    pub gap_bytes: u64,
    /// Bytes at the end that were never synced; opening the segment for writing cuts them off.
    pub torn_bytes: u64,
    /// What was synced once and is no longer as it was.
    pub damage: Option<Damage>,
}

/// Walks a whole segment and compares every checksum.
///
/// # Errors
/// When it cannot be read or is no segment; damage is part of what is found.
pub fn inspect(path: &Path) -> Result<Inspection, SegmentError> {
    inspect_each(path, |_| {})
}

/// As [`inspect`], and shows every whole record before the first damage.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_each(path: &Path, mut each: impl FnMut(&[u8])) -> Result<Inspection, SegmentError> {
    let mut found = Inspection {
        bytes: std::fs::metadata(path)
            .map_err(|error| SegmentError::io("read", path, error))?
            .len(),
        ..Inspection::default()
    };
    if found.bytes < SEGMENT_START {
        // Cut off while it was created: there was nothing in it.
        found.torn_bytes = found.bytes;
        return Ok(found);
    }
    let reader = SegmentReader::open(path)?;
    let mut records = reader.records(SEGMENT_START);
    let broken = loop {
        match records.next() {
            Some(Ok(record)) => each(&record.payload),
            Some(Err(SegmentError::Damaged { what, .. })) => break Some(what),
            Some(Err(error)) => return Err(error),
            None => break None,
        }
    };
    let (end, tally) = (records.next_offset(), records.tally());
    (found.records, found.sealed) = (tally.records, tally.sealed);
    (found.gaps, found.gap_bytes) = (tally.gaps, tally.gap_bytes);
    if end < found.bytes {
        if reader.is_damage(end)? {
            let what = broken.unwrap_or_else(|| "a record is cut short".to_owned());
            found.damage = Some(Damage { offset: end, what });
        } else {
            found.torn_bytes = found.bytes - end;
        }
    }
    Ok(found)
}
