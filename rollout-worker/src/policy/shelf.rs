//! Adapters in memory. A thread of its own reads new ones, so that a version that arrives does not
//! hold up a decode step; the policy thread takes them from here when an episode begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use volley_engine::adapter::Adapter;
use volley_engine::model::Model;
use volley_protocol::Digest;
use volley_protocol::adapter::AdapterVersion;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::vital::Vital;

use super::{PolicyEvent, Report};
use crate::adapter_bytes::AdapterBytes;

/// How far the reading thread stands back behind the decoding ones: the running episodes do not
/// need the new version.
pub const ADAPTER_READER_NICENESS: i32 = 10;

type Adapters = Mutex<BTreeMap<Digest, Arc<Adapter>>>;

/// The shelf, and the way to have something put on it. What waits to be read is bounded by what
/// the worker core asks its learner for.
pub(crate) struct AdapterShelf {
    adapters: Arc<Adapters>,
    arrivals: mpsc::Sender<(AdapterVersion, AdapterBytes)>,
}

impl AdapterShelf {
    /// An empty shelf. `report` is told of every adapter that is ready, or cannot be used.
    pub(crate) fn new(model: Arc<Model>, report: Report) -> Result<Self, Fault> {
        let adapters = Arc::new(Adapters::default());
        let (arrivals, inbox) = mpsc::channel();
        let shelf = Arc::clone(&adapters);
        let read = move || {
            // Without it no new version would ever be played, in a worker that looks alive.
            let _vital = Vital("adapters");
            read_all(&inbox, &model, &shelf, &report);
        };
        std::thread::Builder::new()
            .name("adapters".into())
            .spawn(read)
            .map_err(|error| {
                let message = format!("no thread for adapters: {error}");
                Fault::new(ErrorCode::Internal, message)
            })?;
        Ok(Self { adapters, arrivals })
    }

    /// Has bytes read and prepared.
    pub(crate) fn add(&self, version: AdapterVersion, bytes: AdapterBytes) {
        if self.arrivals.send((version, bytes)).is_err() {
            tracing::error!(?version, "the thread that reads adapters has left");
        }
    }

    /// An adapter that was reported as ready and not dropped since.
    pub(crate) fn get(&self, digest: Digest) -> Option<Arc<Adapter>> {
        locked(&self.adapters).get(&digest).cloned()
    }

    /// Forgets an adapter; episodes that play with it keep it.
    pub(crate) fn remove(&self, digest: Digest) {
        locked(&self.adapters).remove(&digest);
    }
}

fn read_all(
    inbox: &mpsc::Receiver<(AdapterVersion, AdapterBytes)>,
    model: &Model,
    shelf: &Adapters,
    report: &Report,
) {
    // Without the permission to stand back it reads all the same.
    let _ = rustix::process::nice(ADAPTER_READER_NICENESS);
    while let Ok((version, bytes)) = inbox.recv() {
        report(
            match Adapter::from_bytes(model.config(), bytes.as_slice()) {
                Ok(adapter) => {
                    adapter.prepare(model.compute());
                    locked(shelf).insert(version.digest, Arc::new(adapter));
                    PolicyEvent::AdapterReady(version)
                }
                Err(error) => PolicyEvent::AdapterFailed {
                    version,
                    fault: Fault::from(&error),
                },
            },
        );
    }
}

/// A map that somebody left in the middle of an insertion is still a map.
fn locked(adapters: &Adapters) -> MutexGuard<'_, BTreeMap<Digest, Arc<Adapter>>> {
    adapters.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use volley_engine::adapter::LoraConfig;
    use volley_protocol::adapter::AdapterVersion;
    use volley_protocol::ids::RunId;

    use super::*;

    fn version(step: u64) -> AdapterVersion {
        AdapterVersion {
            run: RunId(1),
            lineage: 0,
            step,
            digest: Digest([step as u8; 32]),
        }
    }

    #[test]
    fn what_is_ready_can_be_taken_and_what_is_damaged_is_told() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3-tiny");
        let model = Arc::new(Model::load(&dir).expect("the fixture loads"));
        let config = LoraConfig::all_linear(4, 8.0);
        let adapter = Adapter::init(model.config(), &config, 1).expect("valid");
        let bytes = adapter.to_bytes();
        let (told, events) = mpsc::channel();
        let report: Report = Arc::new(move |event| drop(told.send(event)));
        let shelf = AdapterShelf::new(model, report).expect("a thread");

        shelf.add(version(1), bytes.clone().into());
        let event = events.recv().expect("it is told");
        assert!(matches!(event, PolicyEvent::AdapterReady(v) if v == version(1)));
        let held = shelf.get(version(1).digest).expect("it is ready");
        assert_eq!(*held, adapter);

        shelf.add(version(2), bytes[..bytes.len() / 2].to_vec().into());
        let event = events.recv().expect("it is told");
        let PolicyEvent::AdapterFailed { version: v, fault } = event else {
            panic!("{event:?}");
        };
        assert_eq!((v, shelf.get(v.digest)), (version(2), None));
        assert!(!fault.message.is_empty());

        shelf.remove(version(1).digest);
        assert_eq!(shelf.get(version(1).digest), None);
        assert_eq!(*held, adapter, "who plays with it keeps it");
        shelf.add(version(1), bytes.into());
        events.recv().expect("it is told");
        assert!(shelf.get(version(1).digest).is_some());
    }
}
