//! Records in one SQLite file: `sqlite3 FILE 'select * from record'` shows everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use volley_protocol::codec::Blob;
use volley_protocol::{Fault, JobId, Payloads};

use super::schema::{self, meta_crc, payload_crc, record_crc};
use super::{Batch, PayloadKey, Store, wal};
use crate::faults;

/// The log beside the database is copied into it when it is longer than this. Copying costs an
/// fsync of both files, so it is done seldom: SQLite's own bound of 4 MiB would slow every
/// thousandth commit.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// A file that is larger than this and more than half empty is written anew when it is opened.
const SHRINK_BYTES_MIN: i64 = 16 << 20;

/// Another process reads with `sqlite3` now and then.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// A store in an SQLite file: write-ahead log, synced at every commit.
#[derive(Debug)]
pub struct SqliteStore {
    db: Connection,
    path: PathBuf,
    wal: PathBuf,
    wal_bytes_max: u64,
    /// The log is copied when it is longer than this: later if a reader was in the way.
    checkpoint_at_bytes: u64,
    /// Number of the next record; they are numbered from 1 without a gap.
    next_seq: i64,
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
            faults::store(action, path, reason).with_hint(damage_hint(path))
        };
        let wal = wal_of(path);
        match wal::damage(path, &wal) {
            Ok(None) => {}
            Ok(Some(damage)) => {
                let what = format!("it is damaged at byte {}: {}", damage.offset, damage.what);
                return Err(faults::store("use", &wal, &what).with_hint(damage_hint(path)));
            }
            Err(error) => {
                let hint = faults::io_hint(&error);
                return Err(faults::store("read", &wal, &error).with_hint(hint));
            }
        }
        let mut db = Connection::open(path).map_err(|error| {
            faults::store("open", path, &error).with_hint("check the directory's owner and mode")
        })?;
        configure(&db).map_err(|reason| wrong("open", &reason))?;
        schema::migrate(&mut db).map_err(|reason| wrong("use", &reason))?;
        // What earlier lives committed leaves the log, so that damage to the log costs this life's
        // commits at most, and never the tables. A reader in the way is no failure.
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        let copied = db.query_row(query, [], |_| Ok(()));
        copied.map_err(|error| wrong("use", &error))?;
        let last = db.query_row("SELECT coalesce(max(seq), 0) FROM record", [], |row| {
            row.get(0)
        });
        let last: i64 = last.map_err(|error| wrong("read", &error))?;
        let store = Self {
            db,
            path: path.to_owned(),
            wal,
            wal_bytes_max: WAL_BYTES_MAX,
            checkpoint_at_bytes: WAL_BYTES_MAX,
            next_seq: last + 1,
            poison: None,
        };
        store.shrink();
        Ok(store)
    }

    /// Gives the room of what was deleted back. Takes as much room again while it works, so that
    /// it may fail where the store does not.
    fn shrink(&self) {
        let number = |pragma: &str| -> rusqlite::Result<i64> {
            let query = format!("SELECT {pragma} FROM pragma_{pragma}");
            self.db.query_row(&query, [], |row| row.get(0))
        };
        let shrunk = (|| {
            let (pages, free) = (number("page_count")?, number("freelist_count")?);
            if pages * number("page_size")? > SHRINK_BYTES_MIN && free > pages / 2 {
                self.db.execute_batch("VACUUM")?;
            }
            Ok::<(), rusqlite::Error>(())
        })();
        if let Err(error) = shrunk {
            tracing::warn!(path = %self.path.display(), %error, "the store keeps its size");
        }
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
            // Closing would sync the log that could not be synced, be told that all is well, and
            // delete it. The next life reads what is there.
            let kept = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            let _ = self.db.set_db_config(kept, true);
            faults::store("write to", &self.path, &told(&error)).with_hint(write_hint(&error))
        })
    }

    fn checkpoint_if_large(&mut self) -> rusqlite::Result<()> {
        let bytes = std::fs::metadata(&self.wal).map_or(0, |found| found.len());
        if bytes <= self.checkpoint_at_bytes {
            return Ok(());
        }
        // A reader in the way is no failure and not waited for: the log grows some more.
        self.db.busy_timeout(Duration::ZERO)?;
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: bool = self.db.query_row(query, [], |row| row.get(0))?;
        self.db.busy_timeout(BUSY_WAIT)?;
        let more = if busy { bytes } else { 0 };
        self.checkpoint_at_bytes = self.wal_bytes_max + more;
        Ok(())
    }

    fn damaged(&self, what: &str) -> Fault {
        faults::store("use", &self.path, &format!("it is damaged: {what}"))
            .with_hint(damage_hint(&self.path))
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
        let first = self.next_seq;
        self.write(|transaction| insert(transaction, first, records))?;
        self.next_seq += records.len() as i64;
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.next_seq;
        self.write(|transaction| {
            insert(transaction, first, &batch.records)?;
            insert_payloads(transaction, &batch.payloads)?;
            delete_payloads(transaction, &batch.done)
        })?;
        self.next_seq += batch.records.len() as i64;
        Ok(())
    }

    fn load_payloads(&mut self) -> Result<BTreeMap<PayloadKey, Payloads>, Fault> {
        let load = || {
            let mut query = self
                .db
                .prepare_cached("SELECT job, start, count, body, crc FROM payload")?;
            let rows = query.query_map([], |row| {
                let body: Vec<u8> = row.get(3)?;
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, body, row.get(4)?))
            })?;
            rows.collect()
        };
        let rows: Vec<PayloadRow> = self.read(load())?;
        let parse = |(job, start, count, body, crc): PayloadRow| {
            let key = PayloadKey {
                job: JobId(u128::from_be_bytes(job)),
                start: start.cast_unsigned(),
            };
            let damaged = |why: &str| {
                let job = key.job;
                self.damaged(&format!(
                    "payloads of job {job} at {start} are damaged: {why}"
                ))
            };
            if crc != i64::from(payload_crc(&job, start, count, &body)) {
                return Err(damaged("they do not match their checksum"));
            }
            let payloads = Payloads::parse(count.cast_unsigned(), Blob(body));
            let payloads = payloads.map_err(|fault| damaged(&fault.message))?;
            Ok((key, payloads))
        };
        rows.into_iter().map(parse).collect()
    }

    fn load(&mut self) -> Result<Vec<String>, Fault> {
        let query = "SELECT seq, body, crc FROM record ORDER BY seq";
        let mut bodies = Vec::new();
        let load = (|| {
            let mut query = self.db.prepare_cached(query)?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let (seq, body, crc): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                if seq != bodies.len() as i64 + 1 || crc != i64::from(record_crc(seq, &body)) {
                    return Ok(Some(bodies.len() + 1));
                }
                bodies.push(body);
            }
            Ok::<_, rusqlite::Error>(None)
        })();
        match self.read(load)? {
            None if bodies.len() as i64 + 1 == self.next_seq => Ok(bodies),
            None => Err(self.damaged("its last records are missing")),
            Some(seq) => Err(self.damaged(&format!("record {seq} is not as it was written"))),
        }
    }

    fn replace(&mut self, records: &[String]) -> Result<(), Fault> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM record", [])?;
            insert(transaction, 1, records)
        })?;
        self.next_seq = records.len() as i64 + 1;
        Ok(())
    }

    fn meta_get(&mut self, key: &str) -> Result<Option<String>, Fault> {
        let get = || {
            let mut query = self
                .db
                .prepare_cached("SELECT value, crc FROM meta WHERE key = ?")?;
            let row = query.query_row([key], |row| Ok((row.get(0)?, row.get(1)?)));
            row.optional()
        };
        let found: Option<(String, i64)> = self.read(get())?;
        let Some((value, crc)) = found else {
            return Ok(None);
        };
        if crc != i64::from(meta_crc(key, &value)) {
            return Err(self.damaged(&format!("`{key}` is not as it was written")));
        }
        Ok(Some(value))
    }

    fn meta_set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        self.write(|transaction| {
            let set = "INSERT INTO meta (key, value, crc) VALUES (?1, ?2, ?3)
                       ON CONFLICT (key) DO UPDATE SET value = ?2, crc = ?3";
            transaction
                .prepare_cached(set)?
                .execute(params![key, value, meta_crc(key, value)])
                .map(|_| ())
        })
    }
}

fn insert(transaction: &Transaction<'_>, first: i64, records: &[String]) -> rusqlite::Result<()> {
    let insert = "INSERT INTO record (seq, body, crc) VALUES (?1, ?2, ?3)";
    let mut insert = transaction.prepare_cached(insert)?;
    (first..).zip(records).try_for_each(|(seq, body)| {
        let row = params![seq, body, record_crc(seq, body)];
        insert.execute(row).map(|_| ())
    })
}

/// A row of `payload`, with its checksum.
type PayloadRow = ([u8; 16], i64, i64, Vec<u8>, i64);

fn insert_payloads(
    transaction: &Transaction<'_>,
    payloads: &[(PayloadKey, Payloads)],
) -> rusqlite::Result<()> {
    let statement = "INSERT INTO payload (job, start, count, body, crc) VALUES (?, ?, ?, ?, ?)";
    let mut insert = transaction.prepare_cached(statement)?;
    payloads.iter().try_for_each(|(key, payloads)| {
        let (job, start) = columns(*key);
        let count = (payloads.count() as u64).cast_signed();
        let body = payloads.as_bytes();
        let crc = payload_crc(&job, start, count, body);
        insert
            .execute(params![job, start, count, body, crc])
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

/// The log beside a database.
pub(super) fn wal_of(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

/// What to do about a damaged store.
fn damage_hint(path: &Path) -> String {
    let directory = crate::files::parent_of(path).display();
    format!(
        "check the disk and restore the file from a copy; `volley journal verify {directory}` says \
         what is damaged, `volley journal repair {directory}` keeps what is whole"
    )
}

/// SQLite says "disk I/O error" whatever happened; its code tells which call failed.
fn told(error: &rusqlite::Error) -> String {
    let call = match error.sqlite_error().map(|error| error.extended_code) {
        Some(rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC) => "sync",
        Some(rusqlite::ffi::SQLITE_IOERR_WRITE) => "write",
        Some(rusqlite::ffi::SQLITE_IOERR_READ | rusqlite::ffi::SQLITE_IOERR_SHORT_READ) => "read",
        Some(rusqlite::ffi::SQLITE_IOERR_TRUNCATE) => "cut",
        _ => return error.to_string(),
    };
    format!("{error} ({call} failed)")
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
mod tests;
