//! A store that forgets: for tests, and for `durability = "memory"`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volley_protocol::{ErrorCode, Fault, Payloads};

use super::{Batch, PayloadKey, Store};

/// Records in memory. Clones share them, so that a test can restart a coordinator on "the same
/// disk".
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<String>,
    payloads: BTreeMap<PayloadKey, Payloads>,
    meta: BTreeMap<String, String>,
    appends: u64,
    failure: Option<String>,
}

impl MemoryStore {
    /// From now on every write fails with this reason, as a full disk does.
    pub fn fail_writes(&self, reason: impl Into<String>) {
        self.lock().failure = Some(reason.into());
    }

    /// Transactions so far: how well the caller groups its commits.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.lock().appends
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, change: impl FnOnce(&mut Inner)) -> Result<(), Fault> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.failure {
            let message = format!("cannot write to the store in memory: {reason}");
            return Err(Fault::new(ErrorCode::StoreFailed, message));
        }
        inner.appends += 1;
        change(&mut inner);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn append(&mut self, records: &[String]) -> Result<(), Fault> {
        self.write(|inner| inner.records.extend_from_slice(records))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Fault> {
        self.write(|inner| {
            inner.records.extend_from_slice(&batch.records);
            inner.payloads.extend(batch.payloads.iter().cloned());
            batch
                .done
                .iter()
                .for_each(|key| drop(inner.payloads.remove(key)));
        })
    }

    fn load_payloads(&mut self) -> Result<BTreeMap<PayloadKey, Payloads>, Fault> {
        Ok(self.lock().payloads.clone())
    }

    fn load(&mut self) -> Result<Vec<String>, Fault> {
        Ok(self.lock().records.clone())
    }

    fn replace(&mut self, records: &[String]) -> Result<(), Fault> {
        self.write(|inner| inner.records = records.to_vec())
    }

    fn meta_get(&mut self, key: &str) -> Result<Option<String>, Fault> {
        Ok(self.lock().meta.get(key).cloned())
    }

    fn meta_set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        self.write(|inner| {
            inner.meta.insert(key.to_owned(), value.to_owned());
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_disk_and_failures_stay() {
        let mut first = MemoryStore::default();
        first.append(&["{}".to_owned()]).expect("append");
        let mut second = first.clone();
        assert_eq!(second.load().map(|r| r.len()), Ok(1));
        assert_eq!(second.transactions(), 1);
        first.fail_writes("disk full");
        let fault = second.append(&["{}".to_owned()]).expect_err("fails");
        assert_eq!(fault.code, ErrorCode::StoreFailed);
        assert!(fault.message.contains("disk full"));
        assert_eq!(second.load().map(|r| r.len()), Ok(1));
    }
}
