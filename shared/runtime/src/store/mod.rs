//! The coordinator's durable records.
//!
//! A store keeps a list of records (JSON text, written by the core) and a few named values. One
//! `append` is one transaction: whatever the caller gathered since the last one becomes durable
//! together, which is the group commit. What clients put into queues goes the same way, as bytes
//! beside the records. Bulk bytes never come here; they live in [segments](crate::segment).

use std::collections::BTreeMap;

mod inspect;
mod memory;
mod schema;
mod sqlite;
mod wal;

use volley_protocol::{Fault, JobId, Payloads};

pub use inspect::{inspect_store, repair_store};
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Name of the cluster, in [`Store::meta_get`].
pub const META_CLUSTER: &str = "cluster";
/// Epoch of the last start.
pub const META_EPOCH: &str = "epoch";
/// Address the coordinator listened on, so that a restart listens there again.
pub const META_LISTEN: &str = "listen";

/// Whose payloads: the put into that queue whose first rollout has that index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PayloadKey {
    /// Which queue.
    pub job: JobId,
    /// Index of the put's first rollout.
    pub start: u64,
}

/// What becomes durable together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Records to append.
    pub records: Vec<String>,
    /// Payloads to keep, of puts that the records tell of.
    pub payloads: Vec<(PayloadKey, Payloads)>,
    /// Payloads to delete.
    pub done: Vec<PayloadKey>,
}

impl Batch {
    /// Nothing to write?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.payloads.is_empty() && self.done.is_empty()
    }

    /// Puts another batch behind this one.
    pub fn extend(&mut self, next: Self) {
        self.records.extend(next.records);
        self.payloads.extend(next.payloads);
        self.done.extend(next.done);
    }
}

/// Where the coordinator's records live. Used by one thread; a second engine (`PostgreSQL`, for
/// fail-over between machines) has the same face.
pub trait Store: Send {
    /// Appends records in one transaction. They are durable when this returns.
    ///
    /// # Errors
    /// `STORE_FAILED`. Nothing of it may be acknowledged then, and the store takes nothing more:
    /// start again, so that what is durable is read back.
    fn append(&mut self, records: &[String]) -> Result<(), Fault>;

    /// Writes a batch in one transaction, with the same promise as [`append`](Self::append).
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn commit(&mut self, batch: &Batch) -> Result<(), Fault>;

    /// All payloads that are kept.
    ///
    /// # Errors
    /// `STORE_FAILED`, also when some are damaged.
    fn load_payloads(&mut self) -> Result<BTreeMap<PayloadKey, Payloads>, Fault>;

    /// All records, in the order in which they were appended.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    fn load(&mut self) -> Result<Vec<String>, Fault>;

    /// Puts other records in the place of all there are, in one transaction: compaction. Payloads
    /// stay as they are.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn replace(&mut self, records: &[String]) -> Result<(), Fault>;

    /// A named value.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    fn meta_get(&mut self, key: &str) -> Result<Option<String>, Fault>;

    /// Sets a named value; durable when this returns.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn meta_set(&mut self, key: &str, value: &str) -> Result<(), Fault>;
}

/// Raises the epoch by one and tells the new one; the first is 1.
///
/// # Errors
/// `STORE_FAILED`, also when the stored epoch is no number.
pub fn next_epoch(store: &mut dyn Store) -> Result<volley_protocol::Epoch, Fault> {
    let last = match store.meta_get(META_EPOCH)? {
        None => 0,
        Some(text) => text.parse::<u64>().map_err(|_| {
            let message = format!("the stored epoch is `{text}`, which is no number");
            Fault::new(volley_protocol::ErrorCode::StoreFailed, message)
        })?,
    };
    let next = last.saturating_add(1);
    store.meta_set(META_EPOCH, &next.to_string())?;
    Ok(volley_protocol::Epoch(next))
}

#[cfg(test)]
mod tests {
    use volley_protocol::payload::PayloadWriter;

    use super::*;

    /// What every engine must do.
    fn conforms(store: &mut dyn Store) {
        let records = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(store.load(), Ok(vec![]));
        store
            .append(&records(&["{\"a\":1}", "{\"b\":\"ü\\u0000\"}"]))
            .expect("append");
        store.append(&[]).expect("nothing");
        store.append(&records(&["{}"])).expect("append");
        assert_eq!(
            store.load(),
            Ok(records(&["{\"a\":1}", "{\"b\":\"ü\\u0000\"}", "{}"]))
        );
        store.replace(&records(&["{\"all\":1}"])).expect("replace");
        store.append(&records(&["{\"then\":2}"])).expect("append");
        assert_eq!(store.load(), Ok(records(&["{\"all\":1}", "{\"then\":2}"])));
        payloads_conform(store);
        assert_eq!(store.meta_get(META_CLUSTER), Ok(None));
        store.meta_set(META_CLUSTER, "one").expect("set");
        store.meta_set(META_CLUSTER, "two").expect("set");
        assert_eq!(store.meta_get(META_CLUSTER), Ok(Some("two".into())));
        assert_eq!(next_epoch(store).map(|e| e.0), Ok(1));
        assert_eq!(next_epoch(store).map(|e| e.0), Ok(2));
        store.meta_set(META_EPOCH, "many").expect("set");
        assert!(
            next_epoch(store)
                .expect_err("no number")
                .message
                .contains("`many`")
        );
    }

    fn payloads_conform(store: &mut dyn Store) {
        let key = |start| PayloadKey {
            job: JobId(u128::MAX - 1),
            start,
        };
        let payloads = |texts: &[&str]| {
            let mut writer = PayloadWriter::default();
            assert!(texts.iter().all(|text| writer.push(text.as_bytes())));
            Payloads::parse(texts.len() as u64, writer.take()).expect("own bytes")
        };
        let (one, two) = (payloads(&["a", "", "\0c"]), payloads(&["d"]));
        let batch = Batch {
            records: vec!["{\"put\":1}".into()],
            payloads: vec![(key(0), one.clone()), (key(1 << 40), two.clone())],
            done: vec![],
        };
        store.commit(&batch).expect("commit");
        let kept = BTreeMap::from([(key(0), one), (key(1 << 40), two.clone())]);
        assert_eq!(store.load_payloads(), Ok(kept));
        store.replace(&["{}".into()]).expect("replace");
        let batch = Batch {
            done: vec![key(0), key(77)],
            ..Batch::default()
        };
        store.commit(&batch).expect("commit");
        let kept = BTreeMap::from([(key(1 << 40), two)]);
        assert_eq!(store.load_payloads(), Ok(kept));
        assert_eq!(store.load(), Ok(vec!["{}".to_owned()]));
    }

    #[test]
    fn both_engines_conform() {
        let dir = tempfile::tempdir().expect("temporary directory");
        conforms(&mut MemoryStore::default());
        conforms(&mut SqliteStore::open(&dir.path().join("s.sqlite")).expect("open"));
    }
}
