//! Appends to a segment, and mends it when it is opened.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use super::error::SegmentError;
use super::format::{
    HEAD_BYTES, HEADER_BYTES, RECORD_BYTES_MAX, SEGMENT_START, Tally, VERSION, VERSION_WITH_SEALS,
    header, push_record, seal_head,
};
use super::medium::Medium;
use super::reader::{READ_BYTES, SegmentReader};
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
    /// Places where a repair gave records up.
    pub gaps: u64,
    /// Nothing was appended since the last seal.
    pub sealed: bool,
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
    /// Where the last mark ends.
    mark_end: u64,
    tally: Tally,
    version: u32,
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
        let file = options.open(path).map_err(failed("open"))?;
        // One that holds nothing yet may be left over from a life that ended before it synced
        // the directory.
        let is_new = file.metadata().map_err(failed("read"))?.len() <= SEGMENT_START;
        let opened = Self::open_on(Box::new(file), path)?;
        if is_new {
            files::sync_parent(path).map_err(failed("create"))?;
        }
        Ok(opened)
    }

    pub(super) fn open_on(
        mut medium: Box<dyn Medium>,
        path: &Path,
    ) -> Result<(Self, Recovery), SegmentError> {
        let failed = |action| move |error| SegmentError::io(action, path, error);
        let reader = SegmentReader::of(medium.source().map_err(failed("open"))?, path);
        let length = reader.length()?;
        let found = match scan(&reader, length)? {
            Some(found) => found,
            None => create(&mut *medium, length).map_err(failed("create"))?,
        };
        let (end, tally) = (found.end, found.tally);
        if end != length {
            medium.set_length(end).map_err(failed("cut"))?;
        }
        rewrite(&mut *medium, &reader, &found)?;
        medium.sync().map_err(failed("sync"))?;
        let whole = if length < SEGMENT_START { 0 } else { end };
        let lost_bytes = length.saturating_sub(whole);
        if lost_bytes > 0 {
            let path = path.display();
            tracing::warn!(%path, lost_bytes, "cut off a torn tail: a write was under way when \
                            the process or machine died");
        }
        let mut writer = Self {
            medium,
            path: path.to_owned(),
            buffer: Vec::new(),
            end,
            synced: end,
            mark_end: tally.marked_end,
            tally,
            version: found.version,
            poison: None,
        };
        // A file that is opened again and again does not grow by it.
        if tally.records > 0 && tally.marked_end != end {
            writer.mark()?;
        }
        let recovery = Recovery {
            records: tally.records,
            lost_bytes,
            gaps: tally.gaps,
            sealed: tally.sealed,
        };
        Ok((writer, recovery))
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
        let offset = self.end;
        let head = push_record(&mut self.buffer, offset, payload);
        self.end += (head.len() + bytes) as u64;
        self.tally.appended(&head);
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
        let offset = self.end - self.buffer.len() as u64;
        let written = self.medium.write_at(&self.buffer, offset);
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

    /// Makes everything durable and says in the file that it is complete: how many records there
    /// are, and which. The seal itself is durable after the next [`sync`](Self::sync). A further
    /// record breaks it. Files of a format without seals get none.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn seal(&mut self) -> Result<(), SegmentError> {
        if self.tally.sealed {
            return self.check();
        }
        self.sync()?;
        if self.version < VERSION_WITH_SEALS {
            return Ok(());
        }
        debug_assert!(self.buffer.is_empty(), "a sync leaves nothing behind");
        // In the place of the mark at the end, whose own block may not be durable: were the seal's,
        // it would stand behind a torn mark and make damage of it.
        let marked = self.mark_end == self.end;
        let at = if marked {
            self.end - HEAD_BYTES as u64
        } else {
            self.end
        };
        let written = self.medium.write_at(&seal_head(at, &self.tally), at);
        written.map_err(|error| self.poisoned("write", error))?;
        let end = at + HEAD_BYTES as u64;
        (self.synced, self.end, self.mark_end) = (at, end, end);
        self.tally.sealed = true;
        Ok(())
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
        let head = push_record(&mut self.buffer, self.end, &[]);
        self.end += head.len() as u64;
        (self.synced, self.mark_end) = (self.end, self.end);
        self.flush()
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

/// What a walk over a file has found.
struct Found {
    /// Where the whole records end.
    end: u64,
    tally: Tally,
    version: u32,
}

/// `None` for a file that is new or was cut off while being created.
fn scan(reader: &SegmentReader, length: u64) -> Result<Option<Found>, SegmentError> {
    if length < SEGMENT_START {
        return Ok(None);
    }
    let version = reader.check_header()?;
    let mut records = reader.records(SEGMENT_START);
    let broken = loop {
        match records.next() {
            Some(Ok(_)) => {}
            Some(Err(error @ SegmentError::Damaged { .. })) => break Some(error),
            Some(Err(error)) => return Err(error),
            None => break None,
        }
    };
    let end = records.next_offset();
    if end < length && reader.is_damage(end)? {
        let what = "it was synced once, so this is no torn write";
        return Err(broken.unwrap_or_else(|| SegmentError::damaged(reader.path(), end, what)));
    }
    let tally = records.tally();
    Ok(Some(Found {
        end,
        tally,
        version,
    }))
}

/// Writes what no mark calls durable once more, the last mark included. If its sync failed in an earlier life, the kernel
/// holds these bytes as clean though the disk never got them: a sync alone would then be a lie.
fn rewrite(
    medium: &mut dyn Medium,
    reader: &SegmentReader,
    found: &Found,
) -> Result<(), SegmentError> {
    let mut at = found.tally.marked.max(SEGMENT_START);
    while at < found.end {
        let want = READ_BYTES.min((found.end - at) as usize);
        let bytes = reader.read_at(at, want)?;
        if bytes.is_empty() {
            break; // A gap that reaches beyond the end of a file that was cut since.
        }
        let written = medium.write_at(&bytes, at);
        written.map_err(|error| SegmentError::io("write", reader.path(), error))?;
        at += bytes.len() as u64;
    }
    Ok(())
}

fn create(medium: &mut dyn Medium, length: u64) -> io::Result<Found> {
    debug_assert!(length < SEGMENT_START);
    medium.write_at(&header(), 0)?;
    medium.sync()?;
    Ok(Found {
        end: HEADER_BYTES as u64,
        tally: Tally::default(),
        version: VERSION,
    })
}

#[cfg(test)]
mod tests {
    use super::super::medium::Source;
    use super::*;

    /// Fails its `n`-th write or sync, then claims that all is well again, as a kernel does.
    #[derive(Debug)]
    struct Failing {
        calls_left: u32,
        syncs_after: std::sync::Arc<std::sync::atomic::AtomicU32>,
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

    impl Medium for Failing {
        fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
            self.call()
        }

        fn set_length(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            if self.calls_left > u32::MAX / 2 {
                self.syncs_after
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            self.call()
        }

        fn source(&self) -> io::Result<Box<dyn Source>> {
            Ok(Box::new(Nothing))
        }
    }

    #[derive(Debug)]
    struct Nothing;

    impl Source for Nothing {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn length(&self) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn nothing_is_acknowledged_after_a_failure() {
        // Calls after those that create the file: write, sync, mark; write, sync, mark.
        const TO_CREATE: u32 = 3;
        for fails_at in 1..=6 {
            let syncs_after = std::sync::Arc::default();
            let medium = Box::new(Failing {
                calls_left: TO_CREATE + fails_at,
                syncs_after: std::sync::Arc::clone(&syncs_after),
            });
            let opened = SegmentWriter::open_on(medium, Path::new("/x/a.seg"));
            let (mut writer, _) = opened.expect("created");
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
            assert!(matches!(writer.seal(), Err(SegmentError::Poisoned { .. })));
            drop(writer);
            let syncs_after = syncs_after.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(syncs_after, 0, "a sync that failed is not tried again");
        }
    }
}
