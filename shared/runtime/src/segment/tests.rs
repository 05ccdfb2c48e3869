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
            ..Recovery::default()
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
                fault.hint.contains("volley journal repair") && fault.hint.contains("a.seg"),
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
                lost_bytes,
                ..Recovery::default()
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
                lost_bytes: cut as u64,
                ..Recovery::default()
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

#[test]
fn a_seal_counts_what_is_before_it_and_a_further_record_breaks_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a.seg");
    let (mut writer, _) = SegmentWriter::open(&path).expect("open");
    for index in 0..4 {
        writer.append(&payload(index)).expect("append");
    }
    writer.seal().expect("seal");
    let end = writer.end();
    writer.seal().expect("once is enough");
    assert_eq!(writer.end(), end);
    drop(writer);
    assert!(inspect(&path).expect("inspect").sealed);

    let (mut writer, recovery) = SegmentWriter::open(&path).expect("open");
    assert!(recovery.sealed && recovery.records == 4);
    assert_eq!(writer.end(), end, "opening it writes nothing");
    writer.append(&payload(4)).expect("append");
    writer.sync().expect("sync");
    drop(writer);
    assert!(!inspect(&path).expect("inspect").sealed);
    assert_eq!(read_all(&path), payloads(5));

    let (mut writer, _) = SegmentWriter::open(&path).expect("open");
    writer.seal().expect("seal");
    writer.sync().expect("sync");
    drop(writer);
    let (_, recovery) = SegmentWriter::open(&path).expect("open");
    assert!(recovery.sealed && recovery.records == 5);
}

#[test]
fn a_sealed_file_whose_records_were_exchanged_is_refused() {
    let sealed = |texts: [&str; 3]| {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.seg");
        let (mut writer, _) = SegmentWriter::open(&path).expect("open");
        for text in texts {
            writer.append(text.as_bytes()).expect("append");
        }
        writer.seal().expect("seal");
        drop(writer);
        fs::read(&path).expect("read")
    };
    // A block of an earlier file in the same place: every record of it is whole.
    let (mut mixed, other) = (sealed(["a", "b", "c"]), sealed(["a", "x", "c"]));
    let second = SEGMENT_START as usize + HEAD_BYTES + 1;
    mixed[second..second + HEAD_BYTES + 1].copy_from_slice(&other[second..second + HEAD_BYTES + 1]);
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a.seg");
    fs::write(&path, &mixed).expect("write");
    let error = SegmentWriter::open(&path).expect_err("refused");
    assert!(error.to_string().contains("seals other records"), "{error}");
}

#[test]
fn opening_a_file_again_and_again_does_not_lengthen_it() {
    let written = written(3, true);
    drop(SegmentWriter::open(&written.path).expect("open"));
    let length = fs::metadata(&written.path).expect("there").len();
    for _ in 0..3 {
        drop(SegmentWriter::open(&written.path).expect("open"));
    }
    assert_eq!(fs::metadata(&written.path).expect("there").len(), length);
}

/// A file that `volley` 0.1.0 wrote, before there were seals and gaps.
const VERSION_1: &[u8] = include_bytes!("../../tests/fixtures/results-v1.seg");

#[test]
fn a_file_of_the_first_version_is_read_and_continued() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a.seg");
    fs::write(&path, VERSION_1).expect("write");
    assert_eq!(inspect(&path).expect("inspect").records, 6);
    let (mut writer, recovery) = SegmentWriter::open(&path).expect("open");
    assert_eq!((recovery.records, recovery.lost_bytes), (6, 0));
    writer.append(b"seventh").expect("append");
    writer.seal().expect("it has no seals, which is no error");
    drop(writer);
    let found = inspect(&path).expect("inspect");
    assert_eq!(
        (found.records, found.sealed, found.damage),
        (7, false, None)
    );
    let mut later = VERSION_1.to_vec();
    later[8] = 9;
    let crc = crc32fast::hash(&later[..12]);
    later[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &later).expect("write");
    let fault = Fault::from(SegmentWriter::open(&path).expect_err("from the future"));
    assert!(
        fault.message.contains("format 9, this build reads 2"),
        "{fault}"
    );
    assert!(fault.hint.contains("the build that wrote it"), "{fault}");
}

#[test]
fn a_repair_gives_up_what_is_damaged_and_nothing_else() {
    let written = written(8, true);
    let mut damaged = fs::read(&written.path).expect("read");
    let whole: Vec<Record> = SegmentReader::open(&written.path)
        .expect("open")
        .records(0)
        .map(|record| record.expect("whole"))
        .collect();
    for index in [2, 3, 6] {
        damaged[written.offsets[index] as usize + HEAD_BYTES] ^= 1;
    }
    fs::write(&written.path, &damaged).expect("write");
    let found = inspect(&written.path).expect("inspect");
    let damage = found.damage.expect("damage");
    assert_eq!((damage.offset, found.records), (written.offsets[2], 2));

    let repaired = repair(&written.path).expect("repair").expect("damaged");
    assert_eq!(fs::read(&repaired.copy).expect("kept"), damaged);
    // The marks between the records of 2 and 3 stand: two gaps, then one.
    let record = |i: usize| {
        let end = written.offsets[i] + (HEAD_BYTES + payload(i).len()) as u64;
        (written.offsets[i], end)
    };
    assert_eq!(repaired.given_up, [record(2), record(3), record(6)]);
    assert_eq!((repaired.now.records, repaired.now.gaps), (5, 3));
    assert_eq!(
        repair(&written.path).expect("inspect"),
        None,
        "it is whole now"
    );

    let (mut writer, recovery) = SegmentWriter::open(&written.path).expect("open");
    assert_eq!((recovery.records, recovery.gaps), (5, 3));
    writer.append(b"after").expect("append");
    writer.seal().expect("seal");
    drop(writer);
    let reader = SegmentReader::open(&written.path).expect("open");
    let read: Vec<Record> = reader.records(0).map(|r| r.expect("whole")).collect();
    let kept = whole
        .iter()
        .enumerate()
        .filter(|(i, _)| ![2, 3, 6].contains(i));
    let kept: Vec<Record> = kept.map(|(_, record)| record.clone()).collect();
    assert_eq!(read[..5], kept, "each in its place");
    assert_eq!(read[5].payload, b"after");
}

#[test]
fn any_flipped_bit_can_be_repaired_at_the_cost_of_its_record_alone() {
    let written = written(6, true);
    let bytes = fs::read(&written.path).expect("read");
    for bit in written.offsets[3] as usize * 8..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.seg");
        fs::write(&path, &flipped).expect("write");
        let repaired = repair(&path).expect("repair");
        let (_, recovery) = SegmentWriter::open(&path).expect("open");
        let read = read_all(&path);
        // The last mark is what tells damage from a torn write, so damage to it is a torn write.
        let lost_one = repaired.is_some_and(|repaired| {
            let offsets = &written.offsets[3..6];
            offsets.contains(&repaired.given_up[0].0)
        });
        assert_eq!(read.len(), if lost_one { 5 } else { 6 }, "bit {bit}");
        assert_eq!(recovery.lost_bytes == 0, bit / 8 < bytes.len() - HEAD_BYTES);
        assert!(read.iter().all(|payload| payloads(6).contains(payload)));
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
