//! One job's results: an append-only file, and which rollouts it settles how.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use volley_protocol::RangeSet;
use volley_protocol::client::{ResultPage, ResultRecord};
use volley_protocol::codec::CodecError;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::limits::RESULT_PAGE_BYTES_MAX;
use volley_runtime::files;
use volley_runtime::segment::{SEGMENT_START, SegmentError, SegmentReader, SegmentWriter};

/// How a rollout is settled by its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Accepted,
    Failed,
}

/// One job's results.
#[derive(Debug)]
pub(super) struct JobResults {
    path: PathBuf,
    /// Open while something is written; the descriptor is given back by [`Self::close`].
    writer: Option<SegmentWriter>,
    /// Where the file ends while it has no writer; 0 while there is no file.
    end: u64,
    pub(super) accepted: RangeSet,
    pub(super) failed: RangeSet,
    /// Rollouts that were durable when this life of the coordinator began.
    pub(super) known: u64,
    /// Rollouts that the job has; no lease of this life is for one beyond them.
    pub(super) rollouts: u64,
    /// Rollouts whose job or put is synced; only their results may be read. Others would be gone
    /// after a crash, together with their put, and later ones would stand in their place.
    durable: u64,
    /// Where the records stand that were not durable when they came, and their rollouts. Bounded
    /// by what is leased while a commit is on its way.
    hidden: VecDeque<(u64, u64)>,
    pub(super) complete: bool,
}

impl JobResults {
    /// What is there. Records of rollouts that are not `known` belong to an extent that a crash
    /// took back before it was synced: they would stand in for another instance's results.
    pub(super) fn open(path: PathBuf, known: u64) -> Result<Self, Fault> {
        let mut results = Self {
            path,
            writer: None,
            end: 0,
            accepted: RangeSet::new(),
            failed: RangeSet::new(),
            known,
            rollouts: known,
            durable: known,
            hidden: VecDeque::new(),
            complete: false,
        };
        if !results.path.exists() {
            return Ok(results);
        }
        results.writer = Some(open(&results.path)?);
        if let Some(stray) = results.read_back()? {
            tracing::warn!(path = %results.path.display(), "results of no known rollout are dropped");
            results.rewrite(stray)?;
        }
        // Many jobs are read back, few of them get further results.
        results.close()?;
        Ok(results)
    }

    /// Has it a writer, and so a descriptor?
    pub(super) const fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Makes everything durable and gives the descriptor back. A further record opens the file
    /// again.
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        self.sync()?;
        self.end = self.end();
        self.writer = None;
        Ok(())
    }

    /// Nothing is to follow: says so in the file, and gives the descriptor back. The records are
    /// durable before anybody hears of the end; the seal itself need not be.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        self.complete = true;
        if let Some(mut writer) = self.writer.take() {
            writer.seal()?;
            self.end = writer.end();
        }
        Ok(())
    }

    /// Where the next record will stand.
    fn end(&self) -> u64 {
        self.writer.as_ref().map_or(self.end, SegmentWriter::end)
    }

    /// Up to where clients may read.
    pub(super) fn shown_end(&self) -> u64 {
        let hidden = self.hidden.front().map(|(offset, _)| *offset);
        hidden.unwrap_or_else(|| self.end())
    }

    /// Everything was settled, and all of it may be read.
    pub(super) fn is_complete(&self) -> bool {
        self.complete && self.hidden.is_empty()
    }

    /// So many rollouts of the job are synced.
    pub(super) fn made_durable(&mut self, rollouts: u64) {
        self.durable = self.durable.max(rollouts);
        let durable = self.durable;
        while self
            .hidden
            .front()
            .is_some_and(|(_, index)| *index < durable)
        {
            self.hidden.pop_front();
        }
    }

    /// Appends the record unless the rollout is settled already; tells how it is settled.
    pub(super) fn settle(
        &mut self,
        index: u64,
        how: Settled,
        record: &[&[u8]],
    ) -> Result<Settled, Fault> {
        if self.accepted.contains(index) {
            return Ok(Settled::Accepted);
        }
        if self.failed.contains(index) {
            return Ok(Settled::Failed);
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            empty => empty.insert(open(&self.path)?),
        };
        let offset = writer.append_parts(record)?;
        if index >= self.durable || !self.hidden.is_empty() {
            self.hidden.push_back((offset, index));
        }
        match how {
            Settled::Accepted => self.accepted.insert(index),
            Settled::Failed => self.failed.insert(index),
        };
        Ok(how)
    }

    /// Makes everything durable that was appended.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        writer.sync()?;
        Ok(())
    }

    /// The records from a cursor on, as many as fit a page.
    pub(super) fn page(&self, cursor: u64) -> Result<ResultPage, SegmentError> {
        let mut answer = ResultPage {
            next_cursor: cursor,
            ..ResultPage::default()
        };
        let (from, end) = (cursor.max(SEGMENT_START), self.shown_end());
        if from >= end {
            answer.complete = self.is_complete();
            return Ok(answer);
        }
        let left = usize::try_from(end - from).unwrap_or(usize::MAX);
        let (reader, mut buffer) = (SegmentReader::open(&self.path)?, Vec::new());
        let bytes = left.min(RESULT_PAGE_BYTES_MAX);
        let records = &mut answer.records.0;
        let next = reader.visit_page(from, bytes, &mut buffer, |_, record| {
            ResultPage::push_record(records, record);
        })?;
        answer.next_cursor = next;
        answer.complete = self.is_complete() && next >= end;
        Ok(answer)
    }

    /// Deletes the file.
    pub(super) fn delete(self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "results are not deleted");
        }
    }

    /// Notes which rollouts are settled how; tells where the first record of an unknown one is.
    fn read_back(&mut self) -> Result<Option<u64>, Fault> {
        let mut stray = None;
        let failed = |error: &dyn std::fmt::Display| store_fault(&self.path, &error);
        let reader = SegmentReader::open(&self.path).map_err(|error| failed(&error))?;
        for record in reader.records(SEGMENT_START) {
            let record = record.map_err(|error| failed(&error))?;
            let (index, how) = settles(&record.payload).map_err(|error| failed(&error))?;
            if index >= self.known {
                stray = stray.or(Some(record.offset));
                continue;
            }
            match how {
                Settled::Accepted => self.accepted.insert(index),
                Settled::Failed => self.failed.insert(index),
            };
        }
        Ok(stray)
    }

    /// Writes the file anew without the records of unknown rollouts. Everything from the first of
    /// them on was never shown to anybody; what is before keeps its place, where cursors point.
    fn rewrite(&mut self, stray: u64) -> Result<(), Fault> {
        self.writer = None;
        let fresh = self.path.with_extension("fresh");
        let failed = |error: &dyn std::fmt::Display| store_fault(&fresh, &error);
        // A left-over of an earlier attempt.
        let _ = std::fs::remove_file(&fresh);
        copy_head(&self.path, &fresh, stray).map_err(|error| failed(&error))?;
        let mut writer = open(&fresh)?;
        let reader = SegmentReader::open(&self.path).map_err(|error| failed(&error))?;
        for record in reader.records(stray) {
            let payload = record.map_err(|error| failed(&error))?.payload;
            let (index, _) = settles(&payload).map_err(|error| failed(&error))?;
            if index < self.known {
                writer.append(&payload).map_err(|error| failed(&error))?;
            }
        }
        writer.sync().map_err(|error| failed(&error))?;
        drop(writer);
        std::fs::rename(&fresh, &self.path).map_err(|error| failed(&error))?;
        files::sync_parent(&self.path).map_err(|error| failed(&error))?;
        self.writer = Some(open(&self.path)?);
        Ok(())
    }
}

/// Copies the first bytes of a file.
fn copy_head(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    let mut head = File::open(from)?.take(bytes);
    let mut copy = File::create(to)?;
    io::copy(&mut head, &mut copy)?;
    copy.sync_all()
}

/// Which rollout a record settles, and how.
fn settles(payload: &[u8]) -> Result<(u64, Settled), CodecError> {
    Ok(match ResultRecord::decode(payload)? {
        ResultRecord::Finished(trajectory) => {
            (trajectory.header.attempt.rollout.index, Settled::Accepted)
        }
        ResultRecord::Failed { index, .. } => (index, Settled::Failed),
    })
}

fn open(path: &Path) -> Result<SegmentWriter, Fault> {
    let (writer, recovery) = SegmentWriter::open(path)?;
    if recovery.lost_bytes > 0 {
        let (path, bytes) = (path.display(), recovery.lost_bytes);
        tracing::warn!(%path, bytes, "a tail that was never acknowledged was cut off");
    }
    Ok(writer)
}

pub(super) fn store_fault(path: &Path, error: &dyn std::fmt::Display) -> Fault {
    let message = format!("{}: {error}", path.display());
    Fault::new(ErrorCode::StoreFailed, message)
        .with_hint("nothing acknowledged is lost; free the disk and start again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(index: u64) -> Vec<u8> {
        let fault = Fault::new(ErrorCode::EnvFailed, "x");
        ResultRecord::Failed { index, fault }.encode()
    }

    #[test]
    fn the_first_record_of_a_rollout_counts() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.results");
        let mut results = JobResults::open(path.clone(), 0).expect("open");
        results.made_durable(9);
        let settle = |results: &mut JobResults, index, how| {
            results
                .settle(index, how, &[&failed(index)])
                .expect("append")
        };
        assert_eq!(settle(&mut results, 3, Settled::Failed), Settled::Failed);
        assert_eq!(settle(&mut results, 3, Settled::Accepted), Settled::Failed);
        results.sync().expect("sync");
        assert_eq!(
            results
                .page(0)
                .expect("page")
                .decode_records()
                .expect("own")
                .len(),
            1
        );
        drop(results);
        let again = JobResults::open(path, 9).expect("open");
        assert!(again.failed.contains(3) && again.accepted.is_empty());
    }

    #[test]
    fn what_is_not_durable_yet_is_not_shown_and_what_follows_it_waits() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.results");
        let mut results = JobResults::open(path, 2).expect("open");
        let shown = |results: &mut JobResults| {
            results.sync().expect("sync");
            let page = results.page(0).expect("page");
            let records = page.decode_records().expect("own");
            let indices: Vec<u64> = records.iter().map(ResultRecord::index).collect();
            (indices, page.complete)
        };
        for index in [0, 7, 1, 3] {
            let record = failed(index);
            results
                .settle(index, Settled::Failed, &[&record])
                .expect("append");
        }
        results.complete = true;
        assert_eq!(shown(&mut results), (vec![0], false));
        results.made_durable(5);
        assert_eq!(shown(&mut results), (vec![0], false), "the put of 7 is not");
        results.made_durable(8);
        assert_eq!(shown(&mut results), (vec![0, 7, 1, 3], true));
    }

    #[test]
    fn a_closed_file_is_read_and_opened_again_by_a_further_record() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.results");
        let mut results = JobResults::open(path, 0).expect("open");
        results.made_durable(3);
        results.close().expect("nothing to close");
        assert!(!results.is_open() && results.page(0).expect("empty").records.0.is_empty());
        let mut cursor = 0;
        for index in 0..3 {
            let record = failed(index);
            results
                .settle(index, Settled::Failed, &[&record])
                .expect("append");
            assert!(results.is_open());
            results.close().expect("close");
            assert!(!results.is_open());
            results.complete = index == 2;
            let page = results.page(cursor).expect("page");
            let records = page.decode_records().expect("own");
            assert_eq!(
                records.iter().map(ResultRecord::index).collect::<Vec<_>>(),
                [index]
            );
            assert_eq!(page.complete, index == 2);
            cursor = page.next_cursor;
        }
    }

    #[test]
    fn a_cursor_survives_that_records_of_unknown_rollouts_are_dropped() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.results");
        let mut results = JobResults::open(path.clone(), 2).expect("open");
        let settle = |results: &mut JobResults, index| {
            let record = failed(index);
            results
                .settle(index, Settled::Failed, &[&record])
                .expect("append");
            // Each sync leaves a mark, which takes room, too.
            results.sync().expect("sync");
        };
        for index in [0, 1, 7, 8] {
            settle(&mut results, index);
        }
        let read = results.page(0).expect("page");
        assert_eq!(read.decode_records().expect("own").len(), 2);
        drop(results);
        let mut again = JobResults::open(path, 2).expect("open");
        again.made_durable(9);
        for index in [5, 7] {
            settle(&mut again, index);
        }
        let page = again.page(read.next_cursor).expect("a page from there");
        let records = page.decode_records().expect("own");
        let indices: Vec<u64> = records.iter().map(ResultRecord::index).collect();
        assert_eq!(indices, [5, 7]);
    }

    #[test]
    fn records_of_unknown_rollouts_do_not_survive_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.results");
        let mut results = JobResults::open(path.clone(), 0).expect("open");
        for index in [1, 7] {
            results
                .settle(index, Settled::Failed, &[&failed(index)])
                .expect("append");
        }
        results.sync().expect("sync");
        drop(results);
        let again = JobResults::open(path, 5).expect("open");
        assert!(again.failed.contains(1) && !again.failed.contains(7));
        assert_eq!(
            again
                .page(0)
                .expect("page")
                .decode_records()
                .expect("own")
                .len(),
            1
        );
    }
}
