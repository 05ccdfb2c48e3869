//! What a store keeps, and what it says when its file is not what it wrote.

use volley_protocol::ErrorCode;

use super::*;

fn records(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("{{\"n\":{n}}}")).collect()
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("coordinator.sqlite");
    let mut store = SqliteStore::open(&path).expect("open");
    store.append(&records(0..3)).expect("append");
    // A copy of the files is what a crash leaves: nothing was closed.
    let crashed = dir.path().join("crashed.sqlite");
    std::fs::copy(&path, &crashed).expect("copy");
    std::fs::copy(&store.wal, dir.path().join("crashed.sqlite-wal")).expect("copy");
    assert_eq!(
        SqliteStore::open(&crashed).expect("open").load(),
        Ok(records(0..3))
    );
    drop(store);
    assert_eq!(
        SqliteStore::open(&path).expect("open").load(),
        Ok(records(0..3))
    );
}

#[test]
fn every_commit_is_synced() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SqliteStore::open(&dir.path().join("s")).expect("open");
    let pragma = |name: &str| -> String {
        let query = format!("SELECT CAST(({name}) AS TEXT) FROM pragma_{name}");
        store
            .db
            .query_row(&query, [], |row| row.get(0))
            .expect(name)
    };
    assert_eq!(
        (pragma("journal_mode"), pragma("synchronous")),
        ("wal".into(), "2".into())
    );
}

#[test]
fn a_long_log_is_copied_into_the_file() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = SqliteStore::open(&dir.path().join("s")).expect("open");
    (store.wal_bytes_max, store.checkpoint_at_bytes) = (100_000, 100_000);
    for n in 0..100 {
        store.append(&records(n * 40..n * 40 + 40)).expect("append");
        let bytes = std::fs::metadata(&store.wal).expect("log").len();
        assert!(bytes <= 100_000, "{bytes} bytes after {n}");
    }
    assert_eq!(store.load().map(|r| r.len()), Ok(4000));
}

#[test]
fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    std::fs::write(&path, vec![b'x'; 8192]).expect("write");
    let fault = SqliteStore::open(&path).expect_err("no database");
    assert_eq!(fault.code, ErrorCode::StoreFailed);
    assert!(
        fault.message.contains(path.to_str().expect("text")),
        "{fault}"
    );
    let fault = SqliteStore::open(&dir.path().join("no/dir/s")).expect_err("no directory");
    assert!(fault.message.contains("no/dir"), "{fault}");
}

#[test]
fn a_later_schema_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let store = SqliteStore::open(&path).expect("open");
    let later = "INSERT INTO migration VALUES (99, 'later')";
    store.db.execute_batch(later).expect("insert");
    drop(store);
    let fault = SqliteStore::open(&path).expect_err("from the future");
    assert!(fault.message.contains("version 99"), "{fault}");
}

#[test]
fn damaged_payloads_are_told_of() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = SqliteStore::open(&dir.path().join("s")).expect("open");
    let crc = payload_crc(&[0; 16], 5, 2, &[1, 2]);
    let bad = format!("INSERT INTO payload VALUES (zeroblob(16), 5, 2, x'0102', {crc})");
    store.db.execute_batch(&bad).expect("insert");
    let fault = store.load_payloads().expect_err("too short");
    assert_eq!(fault.code, ErrorCode::StoreFailed);
    assert!(fault.message.contains("at 5 are damaged"), "{fault}");
    let flipped = "UPDATE payload SET body = x'0103'";
    store.db.execute_batch(flipped).expect("update");
    let fault = store.load_payloads().expect_err("flipped");
    assert!(fault.message.contains("match their checksum"), "{fault}");
}

/// A store of the schema before checksums, with payloads.
#[test]
fn a_store_of_the_second_schema_is_brought_up_to_date() {
    use volley_protocol::payload::PayloadWriter;
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let mut writer = PayloadWriter::default();
    assert!(writer.push(b"one") && writer.push(b"two"));
    let payloads = Payloads::parse(2, writer.take()).expect("own bytes");
    let old = Connection::open(&path).expect("open");
    old.execute_batch(
        "CREATE TABLE record (seq INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
         CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE payload (
             job BLOB NOT NULL, start INTEGER NOT NULL, count INTEGER NOT NULL, body BLOB NOT NULL,
             UNIQUE (job, start)) STRICT;
         CREATE TABLE migration (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT;
         INSERT INTO migration VALUES (1, 'then'), (2, 'later');
         INSERT INTO record (body) VALUES ('{\"n\":0}');",
    )
    .expect("what an earlier build left");
    let row = params![9_u128.to_be_bytes(), 4, 2, payloads.as_bytes()];
    old.execute("INSERT INTO payload VALUES (?, ?, ?, ?)", row)
        .expect("insert");
    drop(old);
    let mut store = SqliteStore::open(&path).expect("open");
    assert_eq!(store.load(), Ok(records(0..1)));
    let job = JobId(9);
    let kept = BTreeMap::from([(PayloadKey { job, start: 4 }, payloads)]);
    assert_eq!(store.load_payloads(), Ok(kept));
}

#[test]
fn a_failed_write_is_the_last_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let mut store = SqliteStore::open(&path).expect("open");
    store.append(&records(0..1)).expect("append");
    store
        .db
        .pragma_update(None, "max_page_count", 5)
        .expect("a small disk");
    let large = vec!["x".repeat(100_000)];
    let fault = store.append(&large).expect_err("full");
    assert!(fault.hint.contains("free space"), "{fault}");
    store
        .db
        .pragma_update(None, "max_page_count", 1_000_000)
        .expect("a large disk");
    let fault = store.append(&records(1..2)).expect_err("poisoned");
    assert!(fault.message.contains("an earlier write failed"), "{fault}");
    drop(store);
    let mut again = SqliteStore::open(&path).expect("open");
    assert_eq!(again.load(), Ok(records(0..1)));
}

/// A store that `volley` 0.1.0 wrote: a coordinator that played one job.
const VERSION_1: &[u8] = include_bytes!("../../../tests/fixtures/store-v1.db");

#[test]
fn a_store_of_the_first_schema_is_opened_and_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    std::fs::write(&path, VERSION_1).expect("write");
    let mut store = SqliteStore::open(&path).expect("open");
    let before = store.load().expect("read");
    assert_eq!(before.len(), 5);
    assert_eq!(before[0], "{\"Epoch\":1}");
    assert!(before[1].starts_with("{\"JobAccepted\"") && before[4].contains("\"Done\""));
    let listen = store.meta_get(super::super::META_LISTEN).expect("read");
    assert_eq!(listen.as_deref(), Some("127.0.0.1:59470"));
    assert_eq!(schema::version(&store.db), Ok(schema::VERSION));
    store.append(&records(0..1)).expect("append");
    drop(store);
    let mut again = SqliteStore::open(&path).expect("open");
    assert_eq!(again.load().expect("read")[..5], before[..]);
    assert_eq!(again.load().expect("read").len(), 6);
}

/// Ten commits of different lengths; the files as a crash leaves them, and what each commit holds.
fn crashed(dir: &Path, checkpointed: bool) -> (PathBuf, Vec<String>, Vec<u64>) {
    let path = dir.join("live");
    let mut store = SqliteStore::open(&path).expect("open");
    store
        .db
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .expect("an empty log");
    let (mut all, mut ends) = (Vec::new(), vec![0]);
    for n in 0..10 {
        let body = |i: u32| format!("{{\"n\":{n},\"i\":{i},\"text\":\"{}\"}}", "x".repeat(700));
        let commit: Vec<String> = (0..=n % 4).map(body).collect();
        store.append(&commit).expect("append");
        all.extend(commit);
        ends.push(std::fs::metadata(&store.wal).expect("log").len());
    }
    if checkpointed {
        store
            .db
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .expect("checkpoint");
    }
    let copy = dir.join("copy");
    std::fs::copy(&path, &copy).expect("copy");
    std::fs::copy(&store.wal, wal_of(&copy)).expect("copy");
    (copy, all, ends)
}

/// How many records there are after so many commits.
fn records_after(commits: usize) -> usize {
    (0..commits).map(|n| n % 4 + 1).sum()
}

/// Opens a copy of the store with this log.
fn opened_with(from: &Path, log: &[u8]) -> Result<Vec<String>, Fault> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    std::fs::copy(from, &path).expect("copy");
    std::fs::write(wal_of(&path), log).expect("write");
    SqliteStore::open(&path)?.load()
}

#[test]
fn a_log_cut_anywhere_keeps_every_whole_commit() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (copy, all, ends) = crashed(dir.path(), false);
    let log = std::fs::read(wal_of(&copy)).expect("read");
    let borders = ends
        .iter()
        .flat_map(|end| [end.saturating_sub(1), *end, end + 1]);
    let cuts: std::collections::BTreeSet<u64> =
        (0..log.len() as u64).step_by(512).chain(borders).collect();
    for cut in cuts.into_iter().filter(|cut| *cut <= log.len() as u64) {
        let read = opened_with(&copy, &log[..cut as usize]).expect("a torn tail is no damage");
        let commits = ends
            .iter()
            .filter(|end| **end <= cut)
            .count()
            .saturating_sub(1);
        assert_eq!(read, all[..records_after(commits)], "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_before_the_last_commit_is_refused_with_its_place() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (copy, all, ends) = crashed(dir.path(), false);
    let log = std::fs::read(wal_of(&copy)).expect("read");
    // Every byte of every header; of the pages one in 97.
    let frame = (log.len() - 32) / ((log.len() - 32) / 4120);
    assert_eq!(frame, 4120, "pages of 4096 bytes");
    let in_header = |at: usize| at < 32 || (at - 32) % frame < 24;
    let last = ends[ends.len() - 2] as usize;
    let mut refused = 0;
    for at in (0..log.len()).filter(|at| in_header(*at) || at % 97 == 0) {
        let mut flipped = log.clone();
        flipped[at] ^= 1 << (at % 8);
        match opened_with(&copy, &flipped) {
            Ok(read) => {
                // Not told from a torn write: the last commit alone.
                assert!(at >= last, "a flip at {at} went unnoticed");
                assert_eq!(read, all[..records_after(9)], "flip at {at}");
            }
            Err(fault) => {
                let begins = if at < 32 { 0 } else { at - (at - 32) % frame };
                let place = format!("s-wal: it is damaged at byte {begins}:");
                assert!(fault.message.contains(&place), "flip at {at}: {fault}");
                assert!(fault.hint.contains("volley journal repair"), "{fault}");
                refused += 1;
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn a_power_cut_within_a_commit_is_no_damage() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (copy, all, ends) = crashed(dir.path(), false);
    let log = std::fs::read(wal_of(&copy)).expect("read");
    let mut draw: u64 = 7;
    for round in 0..300 {
        let commit = round % 10;
        let (from, to) = (ends[commit].max(32) as usize, ends[commit + 1] as usize);
        let mut torn = log[..to].to_vec();
        // Of the commit under way each sector is there or not: empty, or an older log's.
        for sector in from / 512..to.div_ceil(512) {
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963);
            if draw >> 62 != 0 {
                let range = (sector * 512).max(from)..((sector + 1) * 512).min(to);
                torn[range].fill(if draw >> 60 & 1 == 0 { 0 } else { 0x37 });
            }
        }
        let read = opened_with(&copy, &torn).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let all_of_it = read.len() == records_after(commit + 1);
        assert!(
            all_of_it || read.len() == records_after(commit),
            "round {round}"
        );
        assert_eq!(read, all[..read.len()], "round {round}");
    }
}

#[test]
fn a_flipped_bit_of_the_database_never_changes_what_is_read() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (copy, all, _) = crashed(dir.path(), true);
    let whole = std::fs::read(&copy).expect("read");
    let (mut refused, mut harmless) = (0, 0);
    for at in (0..whole.len()).step_by(41).chain(0..100) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&copy, &flipped).expect("write");
        match opened_with(&copy, &[]) {
            Ok(read) => {
                assert_eq!(read, all, "flip at {at}");
                harmless += 1;
            }
            Err(fault) => {
                assert_eq!(fault.code, ErrorCode::StoreFailed, "{fault}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_reader_in_the_way_of_a_checkpoint_delays_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let mut store = SqliteStore::open(&path).expect("open");
    (store.wal_bytes_max, store.checkpoint_at_bytes) = (50_000, 50_000);
    store.append(&records(0..1)).expect("append");
    let reader = Connection::open(&path).expect("open");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM record;")
        .expect("a reader");
    for n in 0..40 {
        store.append(&records(n * 40..n * 40 + 40)).expect("append");
    }
    let grown = std::fs::metadata(&store.wal).expect("log").len();
    assert!(
        grown > 50_000 && store.checkpoint_at_bytes > 50_000,
        "{grown}"
    );
    reader.execute_batch("COMMIT").expect("done");
    for n in 0..80 {
        store.append(&records(n * 40..n * 40 + 40)).expect("append");
    }
    assert_eq!(store.checkpoint_at_bytes, 50_000);
    assert!(std::fs::metadata(&store.wal).expect("log").len() <= 60_000);
}

#[test]
fn a_file_that_is_mostly_empty_is_written_anew() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let mut store = SqliteStore::open(&path).expect("open");
    for _ in 0..24 {
        store.append(&["y".repeat(1 << 20)]).expect("append");
    }
    store.replace(&records(0..3)).expect("compaction");
    drop(store);
    assert!(std::fs::metadata(&path).expect("there").len() > SHRINK_BYTES_MIN as u64);
    let mut store = SqliteStore::open(&path).expect("open");
    assert_eq!(store.load(), Ok(records(0..3)));
    drop(store);
    assert!(std::fs::metadata(&path).expect("there").len() < 100_000);
}

#[test]
fn a_damaged_store_is_inspected_and_keeps_its_whole_rows() {
    use super::super::{inspect_store, repair_store};
    use crate::journal::State;
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s.db");
    let mut store = SqliteStore::open(&path).expect("open");
    store.append(&records(0..40)).expect("append");
    store.meta_set("listen", "here").expect("set");
    let mut writer = volley_protocol::payload::PayloadWriter::default();
    assert!(writer.push(b"one"));
    let payloads = Payloads::parse(1, writer.take()).expect("own bytes");
    let job = JobId(9);
    let put = (PayloadKey { job, start: 4 }, payloads);
    let batch = Batch {
        payloads: vec![put.clone()],
        ..Batch::default()
    };
    store.commit(&batch).expect("commit");
    let fine = inspect_store(&path, |_| Ok(())).expect("inspect, also while it is open");
    assert_eq!((fine.records, fine.state), (40, State::Whole));
    assert_eq!(repair_store(&path).expect("inspect"), None);
    drop(store);
    inspect_store(&path, |_| Ok(())).expect("inspect");
    let there = std::fs::read_dir(dir.path()).expect("list").count();
    assert_eq!(there, 1, "looking at it leaves nothing behind");

    let mut bytes = std::fs::read(&path).expect("read");
    let needle = b"{\"n\":23}";
    let at = bytes
        .windows(needle.len())
        .position(|found| found == needle)
        .expect("a row");
    bytes[at + 6] ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    let fault = SqliteStore::open(&path)
        .and_then(|mut store| store.load())
        .expect_err("refused");
    assert!(
        fault.message.contains("record 24 is not as it was written"),
        "{fault}"
    );
    let entry = inspect_store(&path, |_| Ok(())).expect("inspect");
    assert!(
        matches!(&entry.state, State::Damaged { what, .. } if what == "record 24"),
        "{entry:?}"
    );

    let mended = repair_store(&path).expect("repair").expect("damaged");
    assert_eq!(mended.lost, "lost: record 24; 39 records are whole");
    let copy = mended.copy.expect("kept");
    assert_eq!(std::fs::read(copy).expect("read"), bytes);
    let mut store = SqliteStore::open(&path).expect("open");
    let kept: Vec<String> = records(0..23).into_iter().chain(records(24..40)).collect();
    assert_eq!(store.load(), Ok(kept));
    assert_eq!(store.meta_get("listen"), Ok(Some("here".into())));
    assert_eq!(store.load_payloads(), Ok(BTreeMap::from([put])));
}

#[test]
fn a_damaged_log_is_repaired_to_what_stands_before_the_damage() {
    use super::super::{inspect_store, repair_store};
    let dir = tempfile::tempdir().expect("temporary directory");
    let (copy, all, ends) = crashed(dir.path(), false);
    let log = wal_of(&copy);
    let mut bytes = std::fs::read(&log).expect("read");
    bytes[ends[4] as usize + 1000] ^= 1;
    std::fs::write(&log, &bytes).expect("write");
    let entry = inspect_store(&copy, |_| Ok(())).expect("inspect");
    assert!(entry.is_damaged());
    let mended = repair_store(&copy).expect("repair").expect("damaged");
    assert!(
        mended.lost.contains("behind the damage of the log"),
        "{}",
        mended.lost
    );
    let mut store = SqliteStore::open(&copy).expect("open");
    assert_eq!(store.load().expect("read"), all[..records_after(4)]);
}
