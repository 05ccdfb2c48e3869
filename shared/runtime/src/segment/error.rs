//! What can be wrong with a segment.

use std::io;
use std::path::{Path, PathBuf};

use volley_protocol::{ErrorCode, Fault};

use super::format::{RECORD_BYTES_MAX, VERSION};
use crate::faults;

/// What can be wrong with a segment.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The system said no.
    #[error("cannot {action} segment {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file does not begin like a segment.
    #[error("{} is no segment: its first bytes are not those of one", path.display())]
    NotASegment {
        /// Which file.
        path: PathBuf,
    },
    /// The file was written by a later build.
    #[error("segment {} has format {found}, this build reads {VERSION}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A record is not what was written.
    #[error("segment {} is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where the broken record begins.
        offset: u64,
        /// What is broken.
        what: String,
    },
    /// A record must have between one and [`RECORD_BYTES_MAX`] bytes.
    #[error("a segment record has 1 to {RECORD_BYTES_MAX} bytes, not {bytes}")]
    RecordSize {
        /// How many it had.
        bytes: usize,
    },
    /// An earlier write or sync failed. What the file holds now is unknown until it is reopened.
    #[error("segment {} takes nothing more: {reason}", path.display())]
    Poisoned {
        /// Which file.
        path: PathBuf,
        /// The first failure.
        reason: String,
    },
}

impl SegmentError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io {
            action,
            path,
            source,
        }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            offset,
            what: what.into(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Io { source, .. } => faults::io_hint(source).to_owned(),
            Self::NotASegment { .. } => "check the path, or move the file away".to_owned(),
            Self::Version { .. } => "use the build that wrote it, or a later one".to_owned(),
            Self::Damaged { path, .. } => format!(
                "restore the file from a copy; or `volley journal repair {}`, which keeps a copy \
                 and gives up what is damaged; check the disk",
                path.display()
            ),
            Self::Poisoned { .. } => "mend the cause, then start again".to_owned(),
            Self::RecordSize { .. } => String::new(),
        }
    }
}

impl From<SegmentError> for Fault {
    fn from(error: SegmentError) -> Self {
        let code = match error {
            SegmentError::RecordSize { .. } => ErrorCode::Internal,
            _ => ErrorCode::StoreFailed,
        };
        Self::new(code, error.to_string()).with_hint(error.hint())
    }
}
