//! Results read where they are: a client on the coordinator's own machine, that may read its
//! files, needs no network to get what already lies on the disk.

use std::path::Path;

use volley_protocol::client::ResultRecord;
use volley_protocol::{ErrorCode, Fault};
use volley_runtime::segment::{SegmentError, SegmentReader};

use crate::faults;

/// Bytes of the file that are read and decoded at a time: as many as a page over the network has.
const PAGE_BYTES: usize = 900 << 10;

/// A part of a job's file that is durable and not read yet.
#[derive(Debug)]
pub(crate) struct NearFile {
    reader: SegmentReader,
    at: u64,
    upto: u64,
    buffer: Vec<u8>,
}

impl NearFile {
    /// The part from `at` to `upto`.
    pub(crate) fn open(path: &Path, at: u64, upto: u64) -> Result<Self, SegmentError> {
        Ok(Self {
            reader: SegmentReader::open(path)?,
            at,
            upto,
            buffer: Vec::new(),
        })
    }

    /// Where the next page begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Nothing is left.
    pub(crate) fn is_read(&self) -> bool {
        self.at >= self.upto
    }

    /// Some further records.
    ///
    /// # Errors
    /// `STORE_FAILED` when the file is not what it was, `DECODE_ERROR` when it holds no results.
    pub(crate) fn next_page(&mut self) -> Result<Vec<ResultRecord>, Fault> {
        let (mut records, mut broken) = (Vec::new(), None);
        let each = |_, payload: &[u8]| match ResultRecord::decode(payload) {
            Ok(record) => records.push(record),
            Err(error) => broken = Some(error),
        };
        // What stands behind the end may not be durable yet, and comes with a later answer.
        let left = usize::try_from(self.upto - self.at).unwrap_or(usize::MAX);
        let bytes = left.min(PAGE_BYTES);
        let visited = self
            .reader
            .visit_page(self.at, bytes, &mut self.buffer, each);
        let next = visited.map_err(|error| store(&error.to_string()))?;
        if let Some(error) = broken {
            return Err(faults::decode(&error));
        }
        if next <= self.at {
            let (path, at) = (self.reader.path().display(), self.at);
            return Err(store(&format!("{path} ends at {at}, before {}", self.upto)));
        }
        self.at = next;
        Ok(records)
    }
}

fn store(what: &str) -> Fault {
    Fault::new(ErrorCode::StoreFailed, what)
}

#[cfg(test)]
mod tests {
    use volley_runtime::segment::SegmentWriter;

    use super::*;

    fn failed(index: u64) -> Vec<u8> {
        let fault = Fault::new(ErrorCode::EnvFailed, "x");
        ResultRecord::Failed { index, fault }.encode()
    }

    #[test]
    fn what_is_behind_the_end_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.results");
        let (mut writer, _) = SegmentWriter::open(&path).expect("a new segment");
        let mut ends = vec![0];
        for index in 0..3 {
            writer.append(&failed(index)).expect("append");
            writer.flush().expect("flush");
            ends.push(writer.end());
        }
        let mut file = NearFile::open(&path, 0, ends[2]).expect("open");
        let records = file.next_page().expect("two records");
        let indices: Vec<u64> = records.iter().map(ResultRecord::index).collect();
        assert!(indices == [0, 1] && file.is_read());
        let mut file = NearFile::open(&path, ends[2], ends[3]).expect("open");
        assert_eq!(file.next_page().expect("the last").len(), 1);
        assert!(file.is_read());
    }

    #[test]
    fn a_file_that_is_shorter_or_holds_something_else_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.results");
        let (mut writer, _) = SegmentWriter::open(&path).expect("a new segment");
        writer.append(b"no result").expect("append");
        writer.sync().expect("sync");
        let end = writer.end();
        let mut foreign = NearFile::open(&path, 0, end).expect("open");
        let fault = foreign.next_page().expect_err("no result");
        assert_eq!(fault.code, ErrorCode::DecodeError);
        let mut longer = NearFile::open(&path, end, end + 100).expect("open");
        let fault = longer.next_page().expect_err("nothing is there");
        assert_eq!(fault.code, ErrorCode::StoreFailed);
    }
}
