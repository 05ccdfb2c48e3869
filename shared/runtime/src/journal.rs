//! What a look at a directory of durable files found, file by file: for `volley journal`.

use std::path::{Path, PathBuf};

use volley_protocol::Fault;

use crate::segment::{Inspection, SegmentError, inspect_each};

/// How a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was written.
    Whole,
    /// As it was written, and complete.
    Sealed,
    /// It ends with something that was never finished: nobody was told of it, and the next start
    /// cuts it off.
    Torn {
        /// How much.
        bytes: u64,
    },
    /// As it was written, but for what an earlier repair gave up.
    Repaired {
        /// In how many places.
        gaps: u64,
        /// How much.
        bytes: u64,
    },
    /// Not as it was written.
    Damaged {
        /// Where, if a place can be told.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
    },
}

/// One file, or one directory that counts as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// What it is: `store`, `results`, `intake`, `steps`, `metrics`, `checkpoint`, `adapter`.
    pub kind: &'static str,
    /// Whole records.
    pub records: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// How it is.
    pub state: State,
}

impl Entry {
    /// Is it not as it was written?
    #[must_use]
    pub const fn is_damaged(&self) -> bool {
        matches!(self.state, State::Damaged { .. })
    }

    /// A file that is not what it should be, for a reason without a place.
    #[must_use]
    pub fn damaged(path: &Path, kind: &'static str, bytes: u64, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            records: 0,
            bytes,
            state: State::Damaged {
                offset: None,
                what: what.into(),
            },
        }
    }
}

/// What a repair did to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// Which one.
    pub path: PathBuf,
    /// Where it lies as it was; `None` when it could not be repaired, and was left alone.
    pub copy: Option<PathBuf>,
    /// What is lost, or why it cannot be repaired.
    pub lost: String,
}

/// Looks at one segment; `each` is shown every record and says what is wrong with it, if anything.
///
/// # Errors
/// When the file cannot be read; what is wrong inside is part of the entry.
pub fn segment(
    path: &Path,
    kind: &'static str,
    mut each: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<Entry, Fault> {
    let mut wrong = None;
    let mut at = 0;
    let found = inspect_each(path, |record| {
        at += 1;
        if let (None, Err(what)) = (&wrong, each(record)) {
            wrong = Some(format!("record {at}: {what}"));
        }
    });
    let found = match found {
        Ok(found) => found,
        Err(error @ SegmentError::Io { .. }) => return Err(error.into()),
        Err(error) => {
            let bytes = std::fs::metadata(path).map_or(0, |found| found.len());
            return Ok(Entry::damaged(path, kind, bytes, error.to_string()));
        }
    };
    let state = match (&found.damage, wrong) {
        (Some(damage), _) => State::Damaged {
            offset: Some(damage.offset),
            what: damage.what.clone(),
        },
        (None, Some(what)) => State::Damaged { offset: None, what },
        (None, None) => intact(&found),
    };
    Ok(Entry {
        path: path.to_owned(),
        kind,
        records: found.records,
        bytes: found.bytes,
        state,
    })
}

/// Repairs one segment; `None` when there is nothing to repair.
///
/// # Errors
/// What the system says; the file is as it was then.
pub fn repair_segment(path: &Path) -> Result<Option<Mended>, Fault> {
    let Some(repaired) = crate::segment::repair(path)? else {
        return Ok(None);
    };
    let ranges: Vec<String> = repaired
        .given_up
        .iter()
        .map(|(from, to)| format!("{from}..{to}"))
        .collect();
    let lost = format!(
        "what stood in bytes {} is lost; {} records are whole",
        ranges.join(", "),
        repaired.now.records
    );
    Ok(Some(Mended {
        path: path.to_owned(),
        copy: Some(repaired.copy),
        lost,
    }))
}

fn intact(found: &Inspection) -> State {
    if found.torn_bytes > 0 {
        let bytes = found.torn_bytes;
        return State::Torn { bytes };
    }
    if found.gaps > 0 {
        let (gaps, bytes) = (found.gaps, found.gap_bytes);
        return State::Repaired { gaps, bytes };
    }
    if found.sealed {
        State::Sealed
    } else {
        State::Whole
    }
}
