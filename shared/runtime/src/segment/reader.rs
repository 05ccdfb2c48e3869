//! Reads a segment, also while it is being written.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::SegmentError;
use super::format::{
    BadHeader, HEAD_BYTES, HEADER_BYTES, RECORD_BYTES_MAX, SEGMENT_START, Stop, Tally,
    begins_whole, check_header, has_mark, parse, visit,
};
use super::medium::Source;

/// Bytes that an iteration reads at a time.
pub(super) const READ_BYTES: usize = 1 << 20;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it begins: its name inside the segment.
    pub offset: u64,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// Some records in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next page begins. Equal to the offset asked for when there is nothing yet.
    pub next_offset: u64,
}

/// Reads a segment by offset; any number of readers beside one writer. What the writer has not
/// flushed is not there yet.
#[derive(Debug)]
pub struct SegmentReader {
    source: Box<dyn Source>,
    path: PathBuf,
}

impl SegmentReader {
    /// Opens a segment for reading.
    ///
    /// # Errors
    /// When it cannot be opened or is no segment of this format.
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let file = File::open(path).map_err(|e| SegmentError::io("open", path, e))?;
        let reader = Self::of(Box::new(file), path);
        reader.check_header()?;
        Ok(reader)
    }

    pub(super) fn of(source: Box<dyn Source>, path: &Path) -> Self {
        Self {
            source,
            path: path.to_owned(),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The records from `offset` on, a page at a time. `offset` is [`SEGMENT_START`], a record's
    /// offset or a page's `next_offset`; 0 stands for the start.
    #[must_use]
    pub fn records(&self, offset: u64) -> Records<&Self> {
        Records::new(self, offset)
    }

    /// Records from `offset` on with together at most `max_bytes` bytes of payload, but at least
    /// one if there is one. Broken records after the page are told by the page that begins there.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`] when no record begins at `offset` or it is broken.
    pub fn read_page(&self, offset: u64, max_bytes: usize) -> Result<Page, SegmentError> {
        self.read_tallied(offset, max_bytes, None)
    }

    fn read_tallied(
        &self,
        offset: u64,
        max_bytes: usize,
        mut tally: Option<&mut Tally>,
    ) -> Result<Page, SegmentError> {
        let offset = offset.max(SEGMENT_START);
        let mut want = max_bytes.clamp(HEAD_BYTES, READ_BYTES);
        loop {
            let bytes = self.read_at(offset, want)?;
            let parsed = parse(&bytes, offset, max_bytes, tally.as_deref_mut());
            let at_end = bytes.len() < want;
            match parsed.stop {
                Stop::Damaged(what) if parsed.bytes == 0 => {
                    return Err(SegmentError::damaged(&self.path, offset, what));
                }
                // The first record is larger than what was read: read all of it.
                Stop::Short(bytes) if parsed.bytes == 0 && !at_end => want = bytes,
                _ => {
                    return Ok(Page {
                        records: parsed.records,
                        next_offset: offset + parsed.bytes as u64,
                    });
                }
            }
        }
    }

    /// Shows the records from `offset` on where they lie in memory, up to `max_bytes` of the file
    /// but at least one if there is one; tells where to go on. The buffer is the caller's, so that
    /// reading a long segment allocates once.
    ///
    /// # Errors
    /// As [`read_page`](Self::read_page).
    pub fn visit_page(
        &self,
        offset: u64,
        max_bytes: usize,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<u64, SegmentError> {
        let offset = offset.max(SEGMENT_START);
        let mut want = max_bytes.clamp(HEAD_BYTES, READ_BYTES);
        loop {
            self.fill(buffer, offset, want)?;
            let (bytes, stop) = visit(buffer, offset, usize::MAX, None, &mut each);
            match stop {
                Stop::Damaged(what) if bytes == 0 => {
                    return Err(SegmentError::damaged(&self.path, offset, what));
                }
                Stop::Short(whole) if bytes == 0 && buffer.len() == want => want = whole,
                _ => return Ok(offset + bytes as u64),
            }
        }
    }

    /// The version of the file's format.
    pub(super) fn check_header(&self) -> Result<u32, SegmentError> {
        let path = || self.path.clone();
        let bytes = self.read_at(0, HEADER_BYTES)?;
        let Some(header) = bytes.first_chunk() else {
            return Err(SegmentError::NotASegment { path: path() });
        };
        check_header(header).map_err(|bad| match bad {
            BadHeader::Foreign => SegmentError::NotASegment { path: path() },
            BadHeader::Version(found) => SegmentError::Version {
                path: path(),
                found,
            },
        })
    }

    /// A walk has stopped at `offset`, short of the file's end. Was what stood there synced once?
    /// Then a mark stands behind it; or a seal, whole but of other records, stands there itself.
    pub(super) fn is_damage(&self, offset: u64) -> Result<bool, SegmentError> {
        let seal = self.read_at(offset, HEAD_BYTES)?;
        if begins_whole(&seal, offset) == Ok(true) {
            return Ok(true);
        }
        let mut at = offset + 1;
        loop {
            let bytes = self.read_at(at, READ_BYTES)?;
            if has_mark(&bytes, at) {
                return Ok(true);
            }
            if bytes.len() < READ_BYTES {
                return Ok(false);
            }
            // A mark may lie across the border.
            at += (READ_BYTES - HEAD_BYTES + 1) as u64;
        }
    }

    pub(super) fn length(&self) -> Result<u64, SegmentError> {
        let length = self.source.length();
        length.map_err(|error| SegmentError::io("read", &self.path, error))
    }

    pub(super) fn read_at(&self, offset: u64, want: usize) -> Result<Vec<u8>, SegmentError> {
        let mut bytes = Vec::new();
        self.fill(&mut bytes, offset, want)?;
        Ok(bytes)
    }

    /// Reads up to `want` bytes; fewer only at the end of the file.
    fn fill(&self, bytes: &mut Vec<u8>, offset: u64, want: usize) -> Result<(), SegmentError> {
        debug_assert!(
            want <= RECORD_BYTES_MAX + HEAD_BYTES,
            "bounded by the format"
        );
        bytes.resize(want, 0);
        let mut got = 0;
        while got < want {
            match self.source.read_at(&mut bytes[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SegmentError::io("read", &self.path, error)),
            }
        }
        bytes.truncate(got);
        Ok(())
    }
}

/// The payloads of a whole segment, in order.
///
/// # Errors
/// When it cannot be opened or is no segment; broken records are errors of the iteration.
pub fn read_all(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Vec<u8>, SegmentError>> + use<>, SegmentError> {
    let records = Records::new(SegmentReader::open(path)?, SEGMENT_START);
    Ok(records.map(|record| record.map(|record| record.payload)))
}

/// Iterates over records; ends at the end of the file or after an error.
#[derive(Debug)]
pub struct Records<R> {
    reader: R,
    next: u64,
    page: VecDeque<Record>,
    over: bool,
    /// What the walk has met, if it began at the first record.
    tally: Option<Tally>,
}

impl<R> Records<R> {
    fn new(reader: R, offset: u64) -> Self {
        Self {
            reader,
            next: offset,
            page: VecDeque::new(),
            over: false,
            tally: (offset <= SEGMENT_START).then(Tally::default),
        }
    }

    /// What a walk over the whole segment has met.
    pub(super) fn tally(&self) -> Tally {
        self.tally.unwrap_or_default()
    }

    /// Where a later iteration goes on, once this one has ended.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.page.front().map_or(self.next, |record| record.offset)
    }
}

impl<R: Borrow<SegmentReader>> Iterator for Records<R> {
    type Item = Result<Record, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() && !self.over {
            let reader = self.reader.borrow();
            match reader.read_tallied(self.next, READ_BYTES, self.tally.as_mut()) {
                Ok(page) => {
                    // A page of nothing but marks moves on too.
                    self.over = page.next_offset <= self.next.max(SEGMENT_START);
                    self.next = page.next_offset;
                    self.page = page.records.into();
                }
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        self.page.pop_front().map(Ok)
    }
}
