//! Records in one SQLite file: `sqlite3 FILE 'select * from record'` shows everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use volley_protocol::codec::Blob;
use volley_protocol::{Fault, JobId, Payloads};

use super::{Batch, PayloadKey, Store};
use crate::faults;

/// Schema changes in order; the position + 1 is the version. Append only.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE record (seq INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    // Payloads of puts: `body` is `volley_protocol::payload`, `job` its sixteen bytes.
    "
    CREATE TABLE payload (
        job BLOB NOT NULL, start INTEGER NOT NULL, count INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE (job, start)) STRICT;
",
];

/// The log beside the database is copied into it when it is longer than this. Copying costs an
/// fsync of both files, so it is done seldom: SQLite's own bound of 4 MiB would slow every
/// thousandth commit.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// Another process reads with `sqlite3` now and then.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// A store in an SQLite file: write-ahead log, synced at every commit.
#[derive(Debug)]
pub struct SqliteStore {
    db: Connection,
    path: PathBuf,
    wal: PathBuf,
    wal_bytes_max: u64,
    /// The first failed write: what the file holds now is unknown until it is opened again.
    poison: Option<String>,
}

impl SqliteStore {
    /// Opens the file, creating it if needed, checks it, and brings its schema up to date.
    ///
    /// # Errors
    /// `STORE_FAILED`, with the path and what is wrong.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let wrong = |action: &str, reason: &dyn std::fmt::Display| {
            faults::store(action, path, reason)
                .with_hint("check the disk; a damaged file must be restored from a copy")
        };
        let mut db = Connection::open(path).map_err(|error| {
            faults::store("open", path, &error).with_hint("check the directory's owner and mode")
        })?;
        configure(&db).map_err(|reason| wrong("open", &reason))?;
        migrate(&mut db).map_err(|reason| wrong("use", &reason))?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        Ok(Self {
            db,
            path: path.to_owned(),
            wal: wal.into(),
            wal_bytes_max: WAL_BYTES_MAX,
            poison: None,
        })
    }

    fn write(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Fault> {
        if let Some(reason) = &self.poison {
            let reason = format!("an earlier write failed: {reason}");
            return Err(faults::store("write to", &self.path, &reason)
                .with_hint("mend the cause, then start again"));
        }
        let written = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                change(&transaction)?;
                transaction.commit()
            })
            .and_then(|()| self.checkpoint_if_large());
        written.map_err(|error| {
            self.poison = Some(error.to_string());
            faults::store("write to", &self.path, &error).with_hint(write_hint(&error))
        })
    }

    fn checkpoint_if_large(&self) -> rusqlite::Result<()> {
        let bytes = std::fs::metadata(&self.wal).map_or(0, |found| found.len());
        if bytes <= self.wal_bytes_max {
            return Ok(());
        }
        // A reader in the way is no failure: the next write tries again.
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    fn read<T>(&self, what: rusqlite::Result<T>) -> Result<T, Fault> {
        what.map_err(|error| faults::store("read", &self.path, &error))
    }
}

impl Store for SqliteStore {
    fn append(&mut self, records: &[String]) -> Result<(), Fault> {
        if records.is_empty() {
            return Ok(());
        }
        self.write(|transaction| insert(transaction, records))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            insert(transaction, &batch.records)?;
            insert_payloads(transaction, &batch.payloads)?;
            delete_payloads(transaction, &batch.done)
        })
    }

    fn load_payloads(&mut self) -> Result<BTreeMap<PayloadKey, Payloads>, Fault> {
        let load = || {
            let mut query = self
                .db
                .prepare_cached("SELECT job, start, count, body FROM payload")?;
            let rows = query.query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            rows.collect()
        };
        let rows: Vec<([u8; 16], i64, i64, Vec<u8>)> = self.read(load())?;
        let parse = |(job, start, count, body): ([u8; 16], i64, i64, Vec<u8>)| {
            let key = PayloadKey {
                job: JobId(u128::from_be_bytes(job)),
                start: start.cast_unsigned(),
            };
            let payloads = Payloads::parse(count.cast_unsigned(), Blob(body));
            let payloads = payloads.map_err(|fault| {
                let reason = format!(
                    "payloads of job {} at {start} are damaged: {}",
                    key.job, fault.message
                );
                faults::store("use", &self.path, &reason)
                    .with_hint("check the disk; a damaged file must be restored from a copy")
            })?;
            Ok((key, payloads))
        };
        rows.into_iter().map(parse).collect()
    }

    fn load(&mut self) -> Result<Vec<String>, Fault> {
        let load = || {
            let mut query = self
                .db
                .prepare_cached("SELECT body FROM record ORDER BY seq")?;
            let bodies = query.query_map([], |row| row.get(0))?;
            bodies.collect()
        };
        self.read(load())
    }

    fn replace(&mut self, records: &[String]) -> Result<(), Fault> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM record", [])?;
            insert(transaction, records)
        })
    }

    fn meta_get(&mut self, key: &str) -> Result<Option<String>, Fault> {
        let get = || {
            let mut query = self
                .db
                .prepare_cached("SELECT value FROM meta WHERE key = ?")?;
            query.query_row([key], |row| row.get(0)).optional()
        };
        self.read(get())
    }

    fn meta_set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        self.write(|transaction| {
            let set = "INSERT INTO meta (key, value) VALUES (?1, ?2)
                       ON CONFLICT (key) DO UPDATE SET value = ?2";
            transaction
                .prepare_cached(set)?
                .execute(params![key, value])
                .map(|_| ())
        })
    }
}

fn insert(transaction: &Transaction<'_>, records: &[String]) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT INTO record (body) VALUES (?)")?;
    records
        .iter()
        .try_for_each(|body| insert.execute([body]).map(|_| ()))
}

fn insert_payloads(
    transaction: &Transaction<'_>,
    payloads: &[(PayloadKey, Payloads)],
) -> rusqlite::Result<()> {
    let statement = "INSERT INTO payload (job, start, count, body) VALUES (?, ?, ?, ?)";
    let mut insert = transaction.prepare_cached(statement)?;
    payloads.iter().try_for_each(|(key, payloads)| {
        let (job, start) = columns(*key);
        let count = (payloads.count() as u64).cast_signed();
        insert
            .execute(params![job, start, count, payloads.as_bytes()])
            .map(|_| ())
    })
}

fn delete_payloads(transaction: &Transaction<'_>, keys: &[PayloadKey]) -> rusqlite::Result<()> {
    let statement = "DELETE FROM payload WHERE job = ? AND start = ?";
    let mut delete = transaction.prepare_cached(statement)?;
    keys.iter().try_for_each(|key| {
        let (job, start) = columns(*key);
        delete.execute(params![job, start]).map(|_| ())
    })
}

/// Big-endian, so that rows sort as ids do and look like them in hexadecimal.
fn columns(key: PayloadKey) -> ([u8; 16], i64) {
    (key.job.0.to_be_bytes(), key.start.cast_signed())
}

/// Durability first: see the decision on the store (D6).
fn configure(db: &Connection) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    db.busy_timeout(BUSY_WAIT).map_err(text)?;
    let mode: String = db
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(text)?;
    if mode != "wal" {
        return Err(format!(
            "its file system allows no write-ahead log (mode is {mode})"
        ));
    }
    db.pragma_update(None, "synchronous", "FULL")
        .map_err(text)?;
    // On macOS a plain fsync leaves the bytes in the drive's cache.
    db.pragma_update(None, "fullfsync", true).map_err(text)?;
    db.pragma_update(None, "wal_autocheckpoint", 0)
        .map_err(text)?;
    let verdict: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(text)?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(format!("it is damaged: {verdict}"))
    }
}

fn migrate(db: &mut Connection) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let behavior = TransactionBehavior::Immediate;
    let transaction = db.transaction_with_behavior(behavior).map_err(text)?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS migration (
                 version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT",
        )
        .map_err(text)?;
    let found: u32 = transaction
        .query_row(
            "SELECT coalesce(max(version), 0) FROM migration",
            [],
            |row| row.get(0),
        )
        .map_err(text)?;
    if found as usize > MIGRATIONS.len() {
        return Err(format!(
            "its schema is version {found}, this build knows {}: use the build that wrote it",
            MIGRATIONS.len()
        ));
    }
    for (version, migration) in (1u32..).zip(MIGRATIONS).skip(found as usize) {
        transaction.execute_batch(migration).map_err(text)?;
        let note = "INSERT INTO migration VALUES (?, datetime('now'))";
        transaction.execute(note, [version]).map_err(text)?;
    }
    transaction.commit().map_err(text)
}

fn write_hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => "free space on that file system, then start again",
        Some(rusqlite::ErrorCode::ReadOnly) => "check owner and mode of that path",
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            "another program writes to that file; end it, then start again"
        }
        _ => "check the disk, then start again",
    }
}

#[cfg(test)]
mod tests {
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
        store.wal_bytes_max = 100_000;
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
    fn a_store_of_the_first_schema_is_brought_up_to_date() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("s");
        let old = Connection::open(&path).expect("open");
        old.execute_batch(MIGRATIONS[0]).expect("first schema");
        old.execute_batch(
            "CREATE TABLE migration (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT;
             INSERT INTO migration VALUES (1, 'then');
             INSERT INTO record (body) VALUES ('{\"n\":0}');",
        )
        .expect("what an earlier build left");
        drop(old);
        let mut store = SqliteStore::open(&path).expect("open");
        assert_eq!(store.load(), Ok(records(0..1)));
        assert_eq!(store.load_payloads(), Ok(BTreeMap::new()));
    }

    #[test]
    fn damaged_payloads_are_told_of() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut store = SqliteStore::open(&dir.path().join("s")).expect("open");
        let bad = "INSERT INTO payload VALUES (zeroblob(16), 5, 2, x'0102')";
        store.db.execute_batch(bad).expect("insert");
        let fault = store.load_payloads().expect_err("too short");
        assert_eq!(fault.code, ErrorCode::StoreFailed);
        assert!(fault.message.contains("at 5 are damaged"), "{fault}");
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
}
