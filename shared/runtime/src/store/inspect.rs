//! Looks at a store without changing it, and keeps what is whole of a damaged one.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use volley_protocol::codec::Blob;
use volley_protocol::{Fault, JobId, Payloads};

use super::schema::{self, meta_crc, payload_crc, record_crc};
use super::sqlite::wal_of;
use super::{Batch, PayloadKey, SqliteStore, Store as _, wal};
use crate::journal::{Entry, Mended, State};
use crate::segment::set_aside;
use crate::{faults, files};

/// First schema with payloads.
const PAYLOADS_SINCE: u32 = 2;

/// First schema whose rows have checksums.
const CHECKSUMS_SINCE: u32 = 3;

/// Records of one transaction of a repair.
const RECORDS_AT_ONCE: usize = 4096;

/// What a store holds, row by row.
#[derive(Debug, Default)]
struct Rows {
    records: Vec<String>,
    meta: Vec<(String, String)>,
    payloads: Vec<(PayloadKey, Payloads)>,
    /// What is not as it was written.
    wrong: Vec<String>,
}

/// Compares every checksum of a store. `each` is shown every whole record and says what is wrong
/// with it, if anything.
///
/// # Errors
/// When there is no such file; what is wrong inside is part of the entry.
pub fn inspect_store(
    path: &Path,
    mut each: impl FnMut(&str) -> Result<(), String>,
) -> Result<Entry, Fault> {
    let size = |path: &Path| fs::metadata(path).map(|found| found.len());
    let bytes = size(path).map_err(|error| faults::io("read", path, &error))?;
    let log = wal_of(path);
    let bytes = bytes + size(&log).unwrap_or(0);
    let damage = wal::damage(path, &log).map_err(|error| faults::io("read", &log, &error))?;
    let rows = read_only(path).and_then(|db| rows(&db));
    let mut entry = Entry::damaged(path, "store", bytes, "");
    entry.state = match (damage, rows) {
        (Some(damage), rows) => {
            entry.records = rows.map_or(0, |rows| rows.records.len() as u64);
            State::Damaged {
                offset: Some(damage.offset),
                what: format!("{}: {}", log.display(), damage.what),
            }
        }
        (None, Err(what)) => State::Damaged { offset: None, what },
        (None, Ok(mut rows)) => {
            entry.records = rows.records.len() as u64;
            for (at, record) in rows.records.iter().enumerate() {
                if let Err(what) = each(record) {
                    rows.wrong.push(format!("record {}: {what}", at + 1));
                }
            }
            match rows.wrong.into_iter().next() {
                Some(what) => State::Damaged { offset: None, what },
                None => State::Whole,
            }
        }
    };
    Ok(entry)
}

/// Keeps the whole rows of a damaged store; `None` for one that is not damaged. Files are copied
/// aside first. Only for a store that nobody has open.
///
/// # Errors
/// `STORE_FAILED`, `IO_FAILED`; the store is as it was then.
pub fn repair_store(path: &Path) -> Result<Option<Mended>, Fault> {
    if !inspect_store(path, |_| Ok(()))?.is_damaged() {
        return Ok(None);
    }
    let io = |action: &'static str| move |error| faults::io(action, path, &error);
    let log = wal_of(path);
    let copy = set_aside(path).map_err(io("copy"))?;
    if log.exists() {
        // Named so that the copy opens with its log.
        let aside = wal_of(&copy);
        fs::copy(&log, &aside).map_err(io("copy"))?;
        fs::File::open(&aside)
            .and_then(|file| file.sync_all())
            .map_err(io("sync"))?;
    }
    let rows = match read_only(path).and_then(|db| rows(&db)) {
        Ok(rows) => rows,
        Err(what) => {
            let lost = format!("cannot be repaired: {what}; restore it from a copy");
            return Ok(Some(Mended {
                path: path.to_owned(),
                copy: None,
                lost,
            }));
        }
    };
    let fresh = write_anew(path, &rows)?;
    // An old log would be applied to the new file.
    for extra in [log, shm_of(path)] {
        if extra.exists() {
            fs::remove_file(&extra).map_err(io("remove the log of"))?;
        }
    }
    fs::rename(&fresh, path).map_err(io("replace"))?;
    files::sync_parent(path).map_err(io("sync"))?;
    let lost = match &rows.wrong[..] {
        [] => "what was committed behind the damage of the log is lost".to_owned(),
        wrong => format!("lost: {}", wrong.join(", ")),
    };
    let lost = format!("{lost}; {} records are whole", rows.records.len());
    Ok(Some(Mended {
        path: path.to_owned(),
        copy: Some(copy),
        lost,
    }))
}

fn write_anew(path: &Path, rows: &Rows) -> Result<PathBuf, Fault> {
    let fresh = path.with_extension("repairing");
    for left in [fresh.clone(), wal_of(&fresh), shm_of(&fresh)] {
        // Of an earlier attempt.
        let _ = fs::remove_file(left);
    }
    let mut store = SqliteStore::open(&fresh)?;
    for records in rows.records.chunks(RECORDS_AT_ONCE) {
        store.append(records)?;
    }
    for payloads in &rows.payloads {
        // One by one: each may be as large as a frame.
        let payloads = vec![payloads.clone()];
        store.commit(&Batch {
            payloads,
            ..Batch::default()
        })?;
    }
    for (key, value) in &rows.meta {
        store.meta_set(key, value)?;
    }
    // Closing copies the log into the file.
    drop(store);
    let synced = fs::File::open(&fresh).and_then(|file| file.sync_all());
    synced.map_err(|error| faults::io("sync", &fresh, &error))?;
    Ok(fresh)
}

fn shm_of(path: &Path) -> PathBuf {
    let mut shm = path.as_os_str().to_owned();
    shm.push("-shm");
    shm.into()
}

/// Opens the store so that nothing is written. Without a log SQLite would create an empty one.
fn read_only(path: &Path) -> Result<Connection, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let has_log = fs::metadata(wal_of(path)).is_ok_and(|log| log.len() > 0);
    let Some(name) = path.to_str().filter(|_| !has_log) else {
        return Connection::open_with_flags(path, flags).map_err(text);
    };
    let escaped = name
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let uri = format!("file:{escaped}?immutable=1");
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).map_err(text)
}

fn rows(db: &Connection) -> Result<Rows, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let mut rows = Rows::default();
    let verdict: String = db
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(text)?;
    if verdict != "ok" {
        rows.wrong.push(verdict);
    }
    let version = schema::version(db)?;
    let has_checksums = version >= CHECKSUMS_SINCE;
    let column = if has_checksums { "crc" } else { "0" };
    let last = "SELECT coalesce(max(seq), 0) FROM record";
    let last: i64 = db.query_row(last, [], |row| row.get(0)).map_err(text)?;
    let query = format!("SELECT body, {column} FROM record WHERE seq = ?");
    let mut query = db.prepare(&query).map_err(text)?;
    for seq in 1..=last {
        // One by one: behind a page that cannot be read may be others that can.
        let row = query.query_row([seq], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        });
        match row {
            Ok((body, crc)) if !has_checksums || crc == i64::from(record_crc(seq, &body)) => {
                rows.records.push(body);
            }
            Ok(_) | Err(_) => rows.wrong.push(format!("record {seq}")),
        }
    }
    meta(db, column, &mut rows).map_err(text)?;
    if version >= PAYLOADS_SINCE {
        payloads(db, column, &mut rows).map_err(text)?;
    }
    Ok(rows)
}

fn meta(db: &Connection, column: &str, rows: &mut Rows) -> rusqlite::Result<()> {
    let mut query = db.prepare(&format!("SELECT key, value, {column} FROM meta"))?;
    let found = query.query_map([], |row| {
        let crc: i64 = row.get(2)?;
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, crc))
    })?;
    for row in found {
        match row {
            Ok((key, value, crc)) if column == "0" || crc == i64::from(meta_crc(&key, &value)) => {
                rows.meta.push((key, value));
            }
            Ok((key, ..)) => rows.wrong.push(format!("`{}`", key.escape_debug())),
            Err(error) => rows.wrong.push(error.to_string()),
        }
    }
    Ok(())
}

fn payloads(db: &Connection, column: &str, rows: &mut Rows) -> rusqlite::Result<()> {
    let query = format!("SELECT job, start, count, body, {column} FROM payload");
    let mut query = db.prepare(&query)?;
    let found = query.query_map([], |row| {
        let body: Vec<u8> = row.get(3)?;
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, body, row.get(4)?))
    })?;
    for row in found {
        let (job, start, count, body, crc): ([u8; 16], i64, i64, Vec<u8>, i64) = match row {
            Ok(row) => row,
            Err(error) => {
                rows.wrong.push(error.to_string());
                continue;
            }
        };
        let whole = column == "0" || crc == i64::from(payload_crc(&job, start, count, &body));
        let key = PayloadKey {
            job: JobId(u128::from_be_bytes(job)),
            start: start.cast_unsigned(),
        };
        match Payloads::parse(count.cast_unsigned(), Blob(body)) {
            Ok(payloads) if whole => rows.payloads.push((key, payloads)),
            Ok(_) | Err(_) => {
                let job = key.job;
                rows.wrong
                    .push(format!("the payloads of job {job} from {start} on"));
            }
        }
    }
    Ok(())
}
