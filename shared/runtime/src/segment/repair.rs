//! Gives up what is damaged in a segment, and nothing else.
//!
//! Every record is valid in its own place only, so the next whole one behind the damage is found
//! by looking at every offset. What lies between becomes a gap: records behind it keep their
//! offsets, which are cursors that clients hold.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::error::SegmentError;
use super::format::{
    GAP_BYTES_MAX, HEAD_BYTES, RECORD_BYTES_MAX, SEGMENT_START, begins_whole, gap_head, header,
};
use super::inspect::{Inspection, inspect};
use super::reader::{READ_BYTES, SegmentReader};
use crate::files;

/// Copies of one file that are kept aside before somebody has to tidy up.
const COPIES_MAX: u32 = 100;

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The file as it was.
    pub copy: PathBuf,
    /// Bytes that were given up, as half-open ranges of offsets.
    pub given_up: Vec<(u64, u64)>,
    /// What is there now.
    pub now: Inspection,
}

/// Repairs a segment that is damaged; `None` for one that is not. The damaged file is copied
/// aside first, and the repaired one takes its place whole or not at all. Only for files that
/// nobody has open.
///
/// # Errors
/// When it is no segment, or the system says no; the file is as it was then.
pub fn repair(path: &Path) -> Result<Option<Repaired>, SegmentError> {
    if inspect(path)?.damage.is_none() {
        return Ok(None);
    }
    let failed = |action| move |error| SegmentError::io(action, path, error);
    let copy = set_aside(path).map_err(failed("copy"))?;
    let fresh = path.with_extension("repairing");
    fs::copy(&copy, &fresh).map_err(failed("copy"))?;
    let mended = mend(&fresh).and_then(|given_up| {
        let file = File::open(&fresh).and_then(|file| file.sync_all());
        file.map_err(failed("sync"))?;
        Ok(given_up)
    });
    let given_up = match mended {
        Ok(given_up) => given_up,
        Err(error) => {
            // The error that counts is the one above.
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
    };
    fs::rename(&fresh, path).map_err(failed("replace"))?;
    files::sync_parent(path).map_err(failed("sync"))?;
    let now = inspect(path)?;
    debug_assert!(now.damage.is_none(), "all damage was given up");
    Ok(Some(Repaired {
        copy,
        given_up,
        now,
    }))
}

/// Copies a file to the first free `<name>.damaged-N` beside it, synced.
///
/// # Errors
/// What the system says.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    for number in 1..=COPIES_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        let copy = PathBuf::from(name);
        if copy.exists() {
            continue;
        }
        fs::copy(path, &copy)?;
        File::open(&copy)?.sync_all()?;
        files::sync_parent(&copy)?;
        return Ok(copy);
    }
    let why = format!("{COPIES_MAX} damaged copies lie beside it already");
    Err(io::Error::other(why))
}

/// Turns every damaged stretch of the file into gaps; gives the stretches.
fn mend(path: &Path) -> Result<Vec<(u64, u64)>, SegmentError> {
    let failed = |action| move |error| SegmentError::io(action, path, error);
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(failed("open"))?;
    let mut given_up = Vec::new();
    // Gaps are of a later format than the file may be.
    file.write_all_at(&header(), 0).map_err(failed("write"))?;
    while let Some(damage) = inspect(path)?.damage {
        let reader = SegmentReader::open(path)?;
        let length = reader.length()?;
        let from = damage.offset;
        debug_assert!(given_up.last().is_none_or(|(_, to)| *to <= from));
        match next_whole(&reader, from, length)? {
            Some(to) => {
                for (at, bytes) in gaps(from, to) {
                    let head = gap_head(at, bytes);
                    file.write_all_at(&head, at).map_err(failed("write"))?;
                }
                given_up.push((from, to));
            }
            None => {
                file.set_len(from).map_err(failed("cut"))?;
                given_up.push((from, length));
            }
        }
    }
    Ok(given_up)
}

/// Where the next whole record, mark or seal begins behind the one that is damaged.
fn next_whole(
    reader: &SegmentReader,
    damaged: u64,
    length: u64,
) -> Result<Option<u64>, SegmentError> {
    // A gap has room for its head.
    let mut at = damaged.max(SEGMENT_START) + HEAD_BYTES as u64;
    while at < length {
        let bytes = reader.read_at(at, READ_BYTES)?;
        let last = bytes.len().saturating_sub(HEAD_BYTES - 1);
        for skip in 0..last {
            let here = at + skip as u64;
            let whole = match begins_whole(&bytes[skip..], here) {
                Ok(whole) => whole,
                // It ends behind what was read.
                Err(needed) => {
                    let all = reader.read_at(here, needed.min(RECORD_BYTES_MAX + HEAD_BYTES))?;
                    begins_whole(&all, here) == Ok(true)
                }
            };
            if whole {
                return Ok(Some(here));
            }
        }
        if bytes.len() < READ_BYTES {
            break;
        }
        at += last as u64;
    }
    Ok(None)
}

/// Offsets and lengths of the gaps that cover `from..to`, each large enough for its head.
fn gaps(from: u64, to: u64) -> Vec<(u64, u32)> {
    let (mut at, mut gaps) = (from, Vec::new());
    while to - at > GAP_BYTES_MAX {
        // What is left has room for a head of its own.
        let bytes = GAP_BYTES_MAX - HEAD_BYTES as u64;
        gaps.push((at, bytes as u32));
        at += bytes;
    }
    gaps.push((at, (to - at) as u32));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_damage_is_several_gaps_without_a_hole_between() {
        let to = 5 * GAP_BYTES_MAX + 3;
        let mut at = 100;
        for (from, bytes) in gaps(100, to) {
            assert_eq!(from, at);
            assert!((HEAD_BYTES as u64..=GAP_BYTES_MAX).contains(&u64::from(bytes)));
            at += u64::from(bytes);
        }
        assert_eq!(at, to);
    }
}
