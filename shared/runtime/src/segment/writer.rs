//! Appends to a segment, and mends it when it is opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::SegmentError;
use super::format::{HEADER_BYTES, RECORD_BYTES_MAX, SEGMENT_START, header, push_record};
use super::reader::SegmentReader;
use crate::files;

/// Appended bytes are gathered up to here before they are written: one call instead of hundreds.
const BUFFER_BYTES: usize = 256 << 10;

/// What opening a segment found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records that are there.
    pub records: u64,
    /// Bytes behind the last whole record that were cut off. They were never synced.
    pub lost_bytes: u64,
}

/// A file that can be made durable. Tests have one that fails.
trait Medium: Write + Send {
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The only writer of a segment. Takes nothing more after a failed write or sync: the kernel may
/// have dropped the bytes and would report success the second time.
pub struct SegmentWriter {
    medium: Box<dyn Medium>,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the next record will stand.
    end: u64,
    /// Everything before this is durable.
    synced: u64,
    poison: Option<String>,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("path", &self.path)
            .field("end", &self.end)
            .field("synced", &self.synced)
            .field("poison", &self.poison)
            .finish_non_exhaustive()
    }
}

impl SegmentWriter {
    /// Opens a segment, creating it if needed; cuts off a torn tail; syncs what is there.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`] when bytes that were synced once are broken, and what the
    /// system says.
    pub fn open(path: &Path) -> Result<(Self, Recovery), SegmentError> {
        let failed = |action| move |error| SegmentError::io(action, path, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(failed("open"))?;
        let length = file.metadata().map_err(failed("read"))?.len();
        let reader = SegmentReader::of_file(file.try_clone().map_err(failed("open"))?, path);
        let (end, recovery) = match scan(&reader, length)? {
            Some(found) => found,
            None => (
                create(&mut file, path)?,
                Recovery {
                    records: 0,
                    lost_bytes: length,
                },
            ),
        };
        file.set_len(end).map_err(failed("cut"))?;
        file.sync_all().map_err(failed("sync"))?;
        file.seek(SeekFrom::Start(end)).map_err(failed("read"))?;
        let mut writer = Self::new(Box::new(file), path, end);
        if recovery.lost_bytes > 0 {
            tracing::warn!(
                path = %path.display(),
                lost_bytes = recovery.lost_bytes,
                "cut off a torn tail: a write was under way when the process or machine died"
            );
        }
        if recovery.records > 0 {
            writer.mark()?;
        }
        Ok((writer, recovery))
    }

    fn new(medium: Box<dyn Medium>, path: &Path, end: u64) -> Self {
        let path = path.to_owned();
        Self {
            medium,
            path,
            buffer: Vec::new(),
            end,
            synced: end,
            poison: None,
        }
    }

    /// Appends a record and tells its offset. It is durable after the next [`sync`](Self::sync)
    /// and can be read after the next [`flush`](Self::flush) or sync.
    ///
    /// # Errors
    /// When the record is empty or too large, or the file takes nothing more.
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, SegmentError> {
        self.append_parts(&[payload])
    }

    /// As [`append`](Self::append), of a payload that lies in several pieces.
    ///
    /// # Errors
    /// As there.
    pub fn append_parts(&mut self, payload: &[&[u8]]) -> Result<u64, SegmentError> {
        self.check()?;
        let bytes = payload.iter().map(|part| part.len()).sum();
        if bytes == 0 || bytes > RECORD_BYTES_MAX {
            return Err(SegmentError::RecordSize { bytes });
        }
        let offset = self.push(payload);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(offset)
    }

    /// Gives what was appended to the system, so that readers see it. Not durable yet.
    ///
    /// # Errors
    /// What the system says; the writer takes nothing more then.
    pub fn flush(&mut self) -> Result<(), SegmentError> {
        self.check()?;
        let written = self.medium.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|error| self.poisoned("write", error))
    }

    /// Makes everything that was appended durable. Costs nothing when it already is.
    ///
    /// # Errors
    /// What the system says; nothing since the last successful sync may be acknowledged then,
    /// and the writer takes nothing more.
    pub fn sync(&mut self) -> Result<(), SegmentError> {
        self.check()?;
        if self.synced == self.end {
            return Ok(());
        }
        self.flush()?;
        self.medium
            .sync()
            .map_err(|error| self.poisoned("sync", error))?;
        self.synced = self.end;
        self.mark()
    }

    /// Where the next record will stand; also the segment's length.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Records that begin before this are durable.
    #[must_use]
    pub fn synced_end(&self) -> u64 {
        self.synced
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says in the file that everything before is durable. The mark itself need not be.
    fn mark(&mut self) -> Result<(), SegmentError> {
        debug_assert!(self.synced == self.end && self.buffer.is_empty());
        self.push(&[]);
        self.synced = self.end;
        self.flush()
    }

    fn push(&mut self, payload: &[&[u8]]) -> u64 {
        let offset = self.end;
        let before = self.buffer.len();
        push_record(&mut self.buffer, offset, payload);
        self.end += (self.buffer.len() - before) as u64;
        offset
    }

    fn check(&self) -> Result<(), SegmentError> {
        match &self.poison {
            None => Ok(()),
            Some(reason) => Err(SegmentError::Poisoned {
                path: self.path.clone(),
                reason: reason.clone(),
            }),
        }
    }

    fn poisoned(&mut self, action: &'static str, error: io::Error) -> SegmentError {
        self.poison = Some(format!("an earlier {action} failed: {error}"));
        SegmentError::io(action, &self.path, error)
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        if self.poison.is_none() {
            // Nobody was told that these are safe; let readers have them nevertheless.
            let _ = self.flush();
        }
    }
}

/// Where the whole records end; `None` for a file that is new or was cut off while being created.
fn scan(reader: &SegmentReader, length: u64) -> Result<Option<(u64, Recovery)>, SegmentError> {
    if length < SEGMENT_START {
        return Ok(None);
    }
    reader.check_header()?;
    let mut records = reader.records(SEGMENT_START);
    let mut recovery = Recovery::default();
    let broken = loop {
        match records.next() {
            Some(Ok(_)) => recovery.records += 1,
            Some(Err(error @ SegmentError::Damaged { .. })) => break Some(error),
            Some(Err(error)) => return Err(error),
            None => break None,
        }
    };
    let end = records.next_offset();
    if end < length && reader.was_synced_after(end)? {
        let what = "it was synced once, so this is no torn write";
        return Err(broken.unwrap_or_else(|| SegmentError::damaged(reader.path(), end, what)));
    }
    recovery.lost_bytes = length - end;
    Ok(Some((end, recovery)))
}

fn create(file: &mut File, path: &Path) -> Result<u64, SegmentError> {
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header())?;
        file.sync_all()?;
        files::sync_parent(path)
    };
    write(file).map_err(|error| SegmentError::io("create", path, error))?;
    Ok(HEADER_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails its `n`-th write or sync, then claims that all is well again, as a kernel does.
    struct Failing {
        calls_left: u32,
    }

    impl Failing {
        fn call(&mut self) -> io::Result<()> {
            self.calls_left = self.calls_left.wrapping_sub(1);
            match self.calls_left {
                0 => Err(io::Error::from(io::ErrorKind::StorageFull)),
                _ => Ok(()),
            }
        }
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.call().map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Medium for Failing {
        fn sync(&mut self) -> io::Result<()> {
            self.call()
        }
    }

    #[test]
    fn nothing_is_acknowledged_after_a_failure() {
        // Calls: write, sync, mark; write, sync, mark.
        for fails_at in 1..=6 {
            let medium = Box::new(Failing {
                calls_left: fails_at,
            });
            let mut writer = SegmentWriter::new(medium, Path::new("/x/a.seg"), SEGMENT_START);
            let mut acknowledged = 0;
            for _ in 0..4 {
                if writer.append(b"record").is_ok() && writer.sync().is_ok() {
                    acknowledged += 1;
                }
            }
            assert_eq!(
                acknowledged,
                (fails_at - 1) / 3,
                "failure at call {fails_at}"
            );
            let error = writer.append(b"more").expect_err("poisoned");
            assert!(matches!(error, SegmentError::Poisoned { .. }));
            assert!(
                error.to_string().contains("/x/a.seg takes nothing more"),
                "{error}"
            );
            assert!(matches!(writer.sync(), Err(SegmentError::Poisoned { .. })));
        }
    }
}
