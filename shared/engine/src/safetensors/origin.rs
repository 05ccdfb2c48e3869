//! The file that bytes are mapped from, and how it looked before the first of them was read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// An open file. Device and inode are those of the handle, whatever its name means later.
#[derive(Debug)]
pub(super) struct Origin {
    file: File,
    opened: Stamp,
}

/// What every write changes.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            bytes: found.size(),
            modified_s: found.mtime(),
            modified_ns: found.mtime_nsec(),
        }
    }
}

impl Origin {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let opened = Stamp::of(&file.metadata()?);
        Ok(Self { file, opened })
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Stamp::of(&self.file.metadata()?) == self.opened)
    }
}
