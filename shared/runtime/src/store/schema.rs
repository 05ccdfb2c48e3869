//! The tables of a store, and how an older file becomes one of today.
//!
//! 1. `record` and `meta`.
//! 2. `payload`, of puts: `body` is `volley_protocol::payload`, `job` its sixteen bytes.
//! 3. Each row has a checksum: SQLite has none for its pages, and a flipped bit inside a text is a
//!    text still.

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// What brings a store from one version to the next.
enum Migration {
    Sql(&'static str),
    Code(fn(&Transaction<'_>) -> rusqlite::Result<()>),
}

/// Schema changes in order; the position + 1 is the version. Append only.
const MIGRATIONS: &[Migration] = &[
    Migration::Sql(
        "
    CREATE TABLE record (seq INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    ),
    Migration::Sql(
        "
    CREATE TABLE payload (
        job BLOB NOT NULL, start INTEGER NOT NULL, count INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE (job, start)) STRICT;
",
    ),
    Migration::Code(add_checksums),
];

/// The version of this build.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Brings the schema up to date, in one transaction.
pub(super) fn migrate(db: &mut Connection) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let behavior = TransactionBehavior::Immediate;
    let transaction = db.transaction_with_behavior(behavior).map_err(text)?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS migration (
                 version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT",
        )
        .map_err(text)?;
    let found = version(&transaction)?;
    for (version, migration) in (1u32..).zip(MIGRATIONS).skip(found as usize) {
        match migration {
            Migration::Sql(sql) => transaction.execute_batch(sql),
            Migration::Code(code) => code(&transaction),
        }
        .map_err(text)?;
        let note = "INSERT INTO migration VALUES (?, datetime('now'))";
        transaction.execute(note, [version]).map_err(text)?;
    }
    transaction.commit().map_err(text)
}

/// The version of a store, unless it is of a later build.
pub(super) fn version(db: &Connection) -> Result<u32, String> {
    let newest = "SELECT coalesce(max(version), 0) FROM migration";
    let found: u32 = db
        .query_row(newest, [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if found > VERSION {
        return Err(format!(
            "its schema is version {found}, this build knows {VERSION}: use the build that wrote it"
        ));
    }
    Ok(found)
}

/// Checksum of a row of `record`: a body in another place is another row.
pub(super) fn record_crc(seq: i64, body: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(body.as_bytes());
    hasher.finalize()
}

/// Checksum of a row of `meta`.
pub(super) fn meta_crc(key: &str, value: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(value.as_bytes());
    hasher.finalize()
}

/// Checksum of a row of `payload`.
pub(super) fn payload_crc(job: &[u8; 16], start: i64, count: i64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(job);
    hasher.update(&start.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn add_checksums(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE record ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE meta ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE payload ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;",
    )?;
    let last: i64 =
        transaction.query_row("SELECT coalesce(max(seq), 0) FROM record", [], |r| r.get(0))?;
    let mut read = transaction.prepare("SELECT body FROM record WHERE seq = ?")?;
    let mut set = transaction.prepare("UPDATE record SET crc = ?2 WHERE seq = ?1")?;
    // Row by row: a log of any length needs no memory.
    for seq in 1..=last {
        let body: String = read.query_row([seq], |row| row.get(0))?;
        set.execute(params![seq, record_crc(seq, &body)])?;
    }
    let mut all = transaction.prepare("SELECT key, value FROM meta")?;
    let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows = rows.collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    for (key, value) in rows {
        let set = "UPDATE meta SET crc = ?2 WHERE key = ?1";
        transaction.execute(set, params![key, meta_crc(&key, &value)])?;
    }
    let mut all = transaction.prepare("SELECT rowid FROM payload")?;
    let ids = all.query_map([], |row| row.get(0))?;
    let ids = ids.collect::<rusqlite::Result<Vec<i64>>>()?;
    for id in ids {
        let row = "SELECT job, start, count, body FROM payload WHERE rowid = ?";
        let crc = transaction.query_row(row, [id], |row| {
            let (job, body): ([u8; 16], Vec<u8>) = (row.get(0)?, row.get(3)?);
            Ok(payload_crc(&job, row.get(1)?, row.get(2)?, &body))
        })?;
        let set = "UPDATE payload SET crc = ?2 WHERE rowid = ?1";
        transaction.execute(set, params![id, crc])?;
    }
    Ok(())
}
