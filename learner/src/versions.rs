//! The adapters of a run: on the disk in PEFT's layout, the newest ones also in memory.
//!
//! ```text
//! adapters/step-000012/adapter_config.json
//! adapters/step-000012/adapter_model.safetensors    its SHA-256 is the version's digest
//! ```
//!
//! One file serves people (`PeftModel.from_pretrained`) and workers (the very bytes that travel).

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volley_engine::adapter::Adapter;
use volley_protocol::Digest;
use volley_protocol::fault::{ErrorCode, Fault};

/// Adapters kept in memory: workers fetch the newest within milliseconds of each other, and
/// stragglers the one before.
const RECENT_MAX: usize = 3;

/// The file whose digest names the version.
const WEIGHTS: &str = "adapter_model.safetensors";

/// A handle to the adapters; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Versions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    steps: BTreeMap<Digest, u64>,
    recent: VecDeque<(Digest, Arc<Vec<u8>>)>,
}

impl Versions {
    /// The adapters in `directory`, of which these are expected. Others are left-overs of a step
    /// that was never recorded, and go.
    pub(crate) fn open(directory: &Path, known: &[(u64, Digest)]) -> Result<Self, Fault> {
        fs::create_dir_all(directory).map_err(|error| io_fault(directory, &error))?;
        for entry in fs::read_dir(directory).map_err(|error| io_fault(directory, &error))? {
            let path = entry.map_err(|error| io_fault(directory, &error))?.path();
            if !known
                .iter()
                .any(|(step, _)| path == step_directory(directory, *step))
            {
                fs::remove_dir_all(&path).map_err(|error| io_fault(&path, &error))?;
            }
        }
        let steps = known
            .iter()
            .filter(|(step, _)| step_directory(directory, *step).exists());
        let steps = steps.map(|(step, digest)| (*digest, *step)).collect();
        let state = Mutex::new(State {
            steps,
            recent: VecDeque::new(),
        });
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            state,
        })))
    }

    /// Makes a version durable. Its directory appears whole or not at all.
    pub(crate) fn add(
        &self,
        step: u64,
        adapter: &Adapter,
        bytes: Vec<u8>,
        base_model: &str,
    ) -> Result<(), Fault> {
        let digest = Digest::of(&bytes);
        let directory = step_directory(&self.0.directory, step);
        let fresh = directory.with_extension("new");
        let io = |error: std::io::Error| io_fault(&fresh, &error);
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(io)?;
        }
        adapter
            .save_peft(&fresh, base_model)
            .map_err(|error| Fault::from(&error))?;
        fs::write(fresh.join(WEIGHTS), &bytes).map_err(io)?;
        for file in fs::read_dir(&fresh).map_err(io)? {
            File::open(file.map_err(io)?.path())
                .and_then(|file| file.sync_all())
                .map_err(io)?;
        }
        if directory.exists() {
            // A replay writes what was there already.
            fs::remove_dir_all(&directory).map_err(io)?;
        }
        fs::rename(&fresh, &directory).map_err(io)?;
        File::open(&self.0.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io)?;

        let mut state = self.lock();
        state.steps.insert(digest, step);
        state.recent.push_back((digest, Arc::new(bytes)));
        while state.recent.len() > RECENT_MAX {
            state.recent.pop_front();
        }
        Ok(())
    }

    /// The bytes of a version; `None` when there is none, or the disk holds something else.
    pub(crate) async fn bytes(&self, digest: Digest) -> Option<Arc<Vec<u8>>> {
        let step = {
            let state = self.lock();
            if let Some((_, bytes)) = state.recent.iter().find(|(recent, _)| *recent == digest) {
                return Some(Arc::clone(bytes));
            }
            *state.steps.get(&digest)?
        };
        let path = step_directory(&self.0.directory, step).join(WEIGHTS);
        let read = tokio::task::spawn_blocking(move || fs::read(path))
            .await
            .ok()?
            .ok()?;
        (Digest::of(&read) == digest).then(|| Arc::new(read))
    }

    /// Size in bytes of a version that is there.
    pub(crate) fn size(&self, step: u64) -> Option<u64> {
        let path = step_directory(&self.0.directory, step).join(WEIGHTS);
        fs::metadata(path).ok().map(|file| file.len())
    }

    /// Deletes versions that nobody needs.
    pub(crate) fn delete(&self, digests: &[Digest]) {
        let mut state = self.lock();
        for digest in digests {
            state.recent.retain(|(recent, _)| recent != digest);
            if let Some(step) = state.steps.remove(digest) {
                let path = step_directory(&self.0.directory, step);
                if let Err(error) = fs::remove_dir_all(&path) {
                    tracing::warn!(path = %path.display(), %error, "an adapter is not deleted");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The tables are whole between any two operations, so a panic elsewhere spoils nothing.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn step_directory(directory: &Path, step: u64) -> PathBuf {
    directory.join(format!("step-{step:06}"))
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        format!("{}: {error}", path.display()),
    )
}
