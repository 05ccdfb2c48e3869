//! What a crash, a bad disk or a stranger does to a segment.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use volley_protocol::{ErrorCode, Fault};

use super::format::HEAD_BYTES;
use super::*;

struct Written {
    _dir: tempfile::TempDir,
    path: PathBuf,
    /// Offsets, then the end of the file.
    offsets: Vec<u64>,
}

fn payload(index: usize) -> Vec<u8> {
    vec![index as u8 + 1; 5 + 3 * index]
}

/// `count` records; with `sync_each`, each is synced (and so followed by a mark).
fn written(count: usize, sync_each: bool) -> Written {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a.seg");
    let (mut writer, recovery) = SegmentWriter::open(&path).expect("open");
    assert_eq!(recovery, Recovery::default());
    let mut offsets = Vec::new();
    for index in 0..count {
        offsets.push(writer.append(&payload(index)).expect("append"));
        if sync_each {
            writer.sync().expect("sync");
        }
    }
    offsets.push(writer.end());
    drop(writer);
    Written {
        _dir: dir,
        path,
        offsets,
    }
}

fn read_all(path: &Path) -> Vec<Vec<u8>> {
    let payloads = super::read_all(path).expect("open");
    payloads.map(|payload| payload.expect("whole")).collect()
}

fn payloads(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(payload).collect()
}

#[test]
fn records_come_back_in_order_and_appending_goes_on() {
    let written = written(5, true);
    let (mut writer, recovery) = SegmentWriter::open(&written.path).expect("reopen");
    assert_eq!(
        recovery,
        Recovery {
            records: 5,
            lost_bytes: 0
        }
    );
    let offset = writer.append(&payload(5)).expect("append");
    writer.sync().expect("sync");
    assert_eq!(writer.synced_end(), writer.end());
    assert_eq!(read_all(&written.path), payloads(6));
    let reader = SegmentReader::open(&written.path).expect("open");
    let last: Vec<_> = reader.records(offset).map(|r| r.expect("whole")).collect();
    assert_eq!(
        last,
        [Record {
            offset,
            payload: payload(5)
        }]
    );
}

#[test]
fn pages_are_bounded_and_chain() {
    let written = written(20, true);
    let reader = SegmentReader::open(&written.path).expect("open");
    let (mut offset, mut seen) = (0, Vec::new());
    loop {
        let page = reader.read_page(offset, 40).expect("page");
        let bytes: usize = page.records.iter().map(|r| r.payload.len()).sum();
        assert!(bytes <= 40 || page.records.len() == 1, "{bytes} bytes");
        if page.records.is_empty() && page.next_offset == offset {
            break;
        }
        seen.extend(page.records.into_iter().map(|record| record.payload));
        offset = page.next_offset;
    }
    assert_eq!(seen, payloads(20));
    assert_eq!(offset, written.offsets[20]);
}

#[test]
fn a_reader_sees_what_is_flushed_and_waits_for_the_rest() {
    let written = written(1, true);
    let (mut writer, _) = SegmentWriter::open(&written.path).expect("reopen");
    let reader = SegmentReader::open(&written.path).expect("open");
    let offset = writer.append(b"new").expect("append");
    let page = reader.read_page(offset, 1000).expect("page");
    assert_eq!(
        page,
        Page {
            records: vec![],
            next_offset: offset
        }
    );
    writer.flush().expect("flush");
    let page = reader.read_page(offset, 1000).expect("page");
    assert_eq!(page.records.len(), 1);
    assert!(writer.synced_end() <= offset);
}

#[test]
fn large_records_pass_and_larger_ones_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a.seg");
    let (mut writer, _) = SegmentWriter::open(&path).expect("open");
    let large = vec![7; RECORD_BYTES_MAX];
    writer.append(&large).expect("the largest");
    writer.append(b"small").expect("a small one");
    for bytes in [0, RECORD_BYTES_MAX + 1] {
        let error = writer.append(&vec![1; bytes]).expect_err("refused");
        assert!(matches!(error, SegmentError::RecordSize { bytes: b } if b == bytes));
    }
    writer.sync().expect("refusals do not poison");
    assert_eq!(read_all(&path), [large, b"small".to_vec()]);
}

#[test]
fn a_cut_at_any_byte_keeps_every_whole_record() {
    for sync_each in [false, true] {
        let written = written(8, sync_each);
        let bytes = fs::read(&written.path).expect("read");
        for cut in written.offsets[5] as usize..=bytes.len() {
            let path = written.path.with_extension("cut");
            fs::write(&path, &bytes[..cut]).expect("write");
            let (mut writer, recovery) = SegmentWriter::open(&path).expect("open");
            let ends = |i: usize| written.offsets[i] as usize + HEAD_BYTES + payload(i).len();
            let whole = (0..8).filter(|i| ends(*i) <= cut).count();
            assert_eq!(recovery.records, whole as u64, "cut at {cut}");
            assert!(recovery.lost_bytes < 60);
            writer.append(b"after").expect("append");
            writer.sync().expect("sync");
            let mut expected = payloads(whole);
            expected.push(b"after".to_vec());
            assert_eq!(read_all(&path), expected, "cut at {cut}");
        }
    }
}

#[test]
fn any_flipped_bit_of_a_synced_record_is_refused_with_its_place() {
    let written = written(8, true);
    let bytes = fs::read(&written.path).expect("read");
    for index in [3, 7] {
        let start = written.offsets[index] as usize;
        let end = start + HEAD_BYTES + payload(index).len();
        for bit in start * 8..end * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&written.path, &flipped).expect("write");
            let error = SegmentWriter::open(&written.path).expect_err("refused");
            let fault = Fault::from(error);
            assert_eq!(fault.code, ErrorCode::StoreFailed);
            assert!(
                fault.message.contains(&format!("damaged at byte {start}")),
                "{fault}"
            );
            assert!(
                fault.hint.contains(&format!("truncate -s {start}")),
                "{fault}"
            );
            let reader = SegmentReader::open(&written.path).expect("open");
            let read: Vec<_> = reader.records(0).collect();
            assert_eq!(read.len(), index + 1);
            assert!(
                matches!(&read[index], Err(SegmentError::Damaged { offset, .. })
                if *offset == start as u64)
            );
            assert_eq!(
                fs::read(&written.path).expect("read"),
                flipped,
                "left as it was"
            );
        }
    }
}

#[test]
fn any_flipped_bit_of_a_record_that_was_not_synced_is_cut_off() {
    let written = written(4, false);
    let bytes = fs::read(&written.path).expect("read");
    let start = written.offsets[2] as usize;
    for bit in start * 8..written.offsets[3] as usize * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&written.path, &flipped).expect("write");
        let (_, recovery) = SegmentWriter::open(&written.path).expect("open");
        let lost_bytes = (bytes.len() - start) as u64;
        assert_eq!(
            recovery,
            Recovery {
                records: 2,
                lost_bytes
            },
            "bit {bit}"
        );
    }
}

#[test]
fn what_is_no_segment_is_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("notes.txt");
    fs::write(&path, "a text that somebody needs").expect("write");
    assert!(matches!(
        SegmentWriter::open(&path),
        Err(SegmentError::NotASegment { .. })
    ));
    assert!(
        fs::read_to_string(&path)
            .expect("read")
            .starts_with("a text")
    );
    assert!(matches!(
        SegmentReader::open(&path),
        Err(SegmentError::NotASegment { .. })
    ));
    let missing = SegmentReader::open(&dir.path().join("none")).expect_err("missing");
    assert_eq!(Fault::from(missing).hint, "check the path");
}

#[test]
fn a_header_cut_at_creation_is_written_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for cut in 0..SEGMENT_START as usize {
        let path = dir.path().join(format!("{cut}.seg"));
        fs::write(&path, &super::format::header()[..cut]).expect("write");
        let (mut writer, recovery) = SegmentWriter::open(&path).expect("open");
        assert_eq!(
            recovery,
            Recovery {
                records: 0,
                lost_bytes: cut as u64
            }
        );
        writer.append(b"first").expect("append");
        writer.sync().expect("sync");
        assert_eq!(read_all(&path), [b"first".to_vec()]);
    }
}

#[test]
fn an_offset_between_records_is_an_error() {
    let written = written(3, true);
    let reader = SegmentReader::open(&written.path).expect("open");
    for offset in written.offsets[0] + 1..written.offsets[1] {
        let page = reader.read_page(offset, 1000);
        let at_mark = offset == written.offsets[1] - HEAD_BYTES as u64;
        assert_eq!(page.is_err(), !at_mark, "offset {offset}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A power cut: of what was written since the last sync, any block may be there or not.
    #[test]
    fn a_power_cut_loses_nothing_that_was_synced(
        steps in prop::collection::vec((1usize..900, prop::bool::weighted(0.2)), 1..60),
        kept in prop::collection::vec(any::<bool>(), 256),
        noise in any::<u8>(),
    ) {
        const BLOCK: usize = 512;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.seg");
        let (mut writer, _) = SegmentWriter::open(&path).expect("open");
        let (mut all, mut synced_count, mut synced_bytes) = (Vec::new(), 0, SEGMENT_START);
        for (length, sync) in steps {
            let payload = vec![all.len() as u8; length];
            writer.append(&payload).expect("append");
            all.push(payload);
            if sync {
                // The mark comes after the sync and is not part of what it promises.
                synced_bytes = writer.end();
                writer.sync().expect("sync");
                synced_count = all.len();
            }
        }
        drop(writer);
        let mut bytes = fs::read(&path).expect("read");
        for (index, byte) in bytes.iter_mut().enumerate().skip(synced_bytes as usize) {
            if !kept[(index / BLOCK) % kept.len()] {
                *byte = if noise < 128 { 0 } else { noise };
            }
        }
        fs::write(&path, &bytes).expect("write");
        let (_, recovery) = SegmentWriter::open(&path).expect("a power cut is no damage");
        let read = read_all(&path);
        prop_assert_eq!(read.len() as u64, recovery.records);
        prop_assert!(read.len() >= synced_count);
        prop_assert_eq!(&read[..], &all[..read.len()]);
    }
}
