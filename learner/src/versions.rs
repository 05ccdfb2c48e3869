//! The adapters of a run: on the disk in PEFT's layout, the newest ones also in memory.
//!
//! ```text
//! adapters/step-000012/adapter_config.json
//! adapters/step-000012/adapter_model.safetensors    its SHA-256 is the version's digest
//! ```
//!
//! One file serves people (`PeftModel.from_pretrained`) and workers (the very bytes that travel).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volley_engine::adapter::Adapter;
use volley_protocol::Digest;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::files;
use volley_runtime::host_adapters::HostAdapters;

/// Adapters kept in memory: workers fetch the newest within milliseconds of each other, and
/// stragglers the one before.
const RECENT_MAX: usize = 3;

/// The file whose digest names the version.
const WEIGHTS: &str = "adapter_model.safetensors";

/// What a directory's name ends with until it is whole.
const UNFINISHED: &str = ".new";

/// What its name ends with once it is no longer whole: removing it takes several steps, and a
/// process that is killed between two of them must not leave half a version under its name.
const GONE: &str = ".gone";

/// A handle to the adapters; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Versions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Where workers of this host look before they ask.
    host: Option<HostAdapters>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Steps that have the adapter of that name: several when a step had no gradient.
    steps: BTreeMap<Digest, BTreeSet<u64>>,
    recent: VecDeque<(Digest, Arc<Vec<u8>>)>,
}

impl State {
    /// A step's directory holds the adapter of this name.
    fn note(&mut self, step: u64, digest: Digest) {
        self.steps.retain(|_, steps| {
            steps.remove(&step);
            !steps.is_empty()
        });
        self.steps.entry(digest).or_default().insert(step);
    }
}

impl Versions {
    /// The adapters in `directory`, of which these are expected. Other steps are left-overs of one
    /// that was never recorded, and go; what has another name was put there by somebody else.
    pub(crate) fn open(
        directory: &Path,
        known: &[(u64, Digest)],
        host: Option<HostAdapters>,
    ) -> Result<Self, Fault> {
        fs::create_dir_all(directory).map_err(|error| io_fault(directory, &error))?;
        for entry in fs::read_dir(directory).map_err(|error| io_fault(directory, &error))? {
            let entry = entry.map_err(|error| io_fault(directory, &error))?;
            let path = entry.path();
            let is_known = known
                .iter()
                .any(|(step, _)| path == step_directory(directory, *step));
            if !is_known && is_ours(&entry) {
                tracing::info!(path = %path.display(), "a step that was not recorded is removed");
                fs::remove_dir_all(&path).map_err(|error| io_fault(&path, &error))?;
            }
        }
        let mut state = State::default();
        for (step, digest) in known {
            if step_directory(directory, *step).exists() {
                state.note(*step, *digest);
            }
        }
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            host,
            state: Mutex::new(state),
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
        write_whole(&directory, adapter, &bytes, base_model)?;
        self.share(digest, &bytes);

        let mut state = self.lock();
        state.note(step, digest);
        state.recent.push_back((digest, Arc::new(bytes)));
        while state.recent.len() > RECENT_MAX {
            state.recent.pop_front();
        }
        Ok(())
    }

    /// Saves the workers of this host the way through the network.
    fn share(&self, digest: Digest, bytes: &[u8]) {
        let Some(host) = &self.0.host else {
            return;
        };
        if let Err(why) = host.offer(digest, bytes) {
            tracing::warn!(why, digest = digest.short(), "an adapter is not shared");
        }
    }

    /// The bytes of a version; `None` when there is none, or the disk holds something else.
    pub(crate) async fn bytes(&self, digest: Digest) -> Option<Arc<Vec<u8>>> {
        let step = {
            let state = self.lock();
            if let Some((_, bytes)) = state.recent.iter().find(|(recent, _)| *recent == digest) {
                return Some(Arc::clone(bytes));
            }
            // Their bytes are equal.
            *state.steps.get(&digest)?.last()?
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

    /// Does the disk hold the version of this name?
    pub(crate) fn is_whole(&self, step: u64, digest: Digest) -> bool {
        let path = step_directory(&self.0.directory, step).join(WEIGHTS);
        fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == digest)
    }

    /// Deletes versions that nobody needs.
    pub(crate) fn delete(&self, digests: &[Digest]) {
        let mut state = self.lock();
        for digest in digests {
            state.recent.retain(|(recent, _)| recent != digest);
            if let Some(Err(why)) = self.0.host.as_ref().map(|host| host.remove(*digest)) {
                tracing::warn!(why, "a shared adapter is not deleted");
            }
            for step in state.steps.remove(digest).unwrap_or_default() {
                let path = step_directory(&self.0.directory, step);
                if let Err(error) = remove_whole(&path) {
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

/// Writes an adapter, whose bytes these are, to a directory that is there whole or not at all.
pub(crate) fn write_whole(
    directory: &Path,
    adapter: &Adapter,
    bytes: &[u8],
    base_model: &str,
) -> Result<(), Fault> {
    let fresh = beside(directory, UNFINISHED);
    let io = |error: std::io::Error| io_fault(&fresh, &error);
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(io)?;
    }
    adapter
        .save_peft(&fresh, base_model)
        .map_err(|error| Fault::from(&error))?;
    fs::write(fresh.join(WEIGHTS), bytes).map_err(io)?;
    for file in fs::read_dir(&fresh).map_err(io)? {
        File::open(file.map_err(io)?.path())
            .and_then(|file| file.sync_all())
            .map_err(io)?;
    }
    files::sync_dir(&fresh).map_err(io)?;
    if directory.exists() {
        // A replay writes what was there already.
        remove_whole(directory).map_err(io)?;
    }
    fs::rename(&fresh, directory).map_err(io)?;
    let parent = directory.parent().unwrap_or(directory);
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(io)
}

/// Removes a directory of [`write_whole`]; what a kill leaves of it goes at the next start.
fn remove_whole(directory: &Path) -> std::io::Result<()> {
    let gone = beside(directory, GONE);
    if gone.exists() {
        fs::remove_dir_all(&gone)?;
    }
    fs::rename(directory, &gone)?;
    fs::remove_dir_all(&gone)
}

/// The path with that at the end of its name.
fn beside(directory: &Path, ending: &str) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

/// Is it a directory that a learner makes: a step's, or one that is not whole yet or any more?
fn is_ours(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name();
    let step = name.to_str().and_then(|name| {
        let unfinished = name.strip_suffix(UNFINISHED);
        let name = unfinished
            .or_else(|| name.strip_suffix(GONE))
            .unwrap_or(name);
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (name == step_name(step)).then_some(step)
    });
    // A link is not followed: its target is somebody else's.
    step.is_some() && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn step_directory(directory: &Path, step: u64) -> PathBuf {
    directory.join(step_name(step))
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        format!("{}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of versions whose weights are these.
    fn directory(steps: &[(u64, &[u8])]) -> (tempfile::TempDir, Vec<(u64, Digest)>) {
        let directory = tempfile::tempdir().expect("directory");
        for (step, bytes) in steps {
            let path = step_directory(directory.path(), *step);
            fs::create_dir(&path).expect("a new directory");
            fs::write(path.join(WEIGHTS), bytes).expect("written");
        }
        let known = steps.iter().map(|(step, b)| (*step, Digest::of(b)));
        (directory, known.collect())
    }

    #[tokio::test]
    async fn steps_with_equal_bytes_share_a_name_and_go_together() {
        let (directory, known) = directory(&[(1, b"a"), (2, b"a"), (3, b"b")]);
        let versions = Versions::open(directory.path(), &known, None).expect("open");
        let (twice, once) = (Digest::of(b"a"), Digest::of(b"b"));
        let bytes = versions.bytes(twice).await.expect("there");
        assert_eq!(*bytes, b"a");
        versions.delete(&[twice]);
        assert!(versions.bytes(twice).await.is_none());
        assert_eq!(
            [1, 2, 3].map(|step| versions.size(step)),
            [None, None, Some(1)]
        );
        assert!(versions.bytes(once).await.is_some());
    }

    #[test]
    fn only_left_overs_of_steps_are_removed() {
        let (directory, known) = directory(&[(1, b"a"), (2, b"b")]);
        let path = |name: &str| directory.path().join(name);
        let strange = [
            "step-000003.bak",
            "step-12",
            "step-000004x",
            "best",
            "step-+00005",
        ];
        let ours = [
            "step-000001.gone",
            "step-000003",
            "step-000004.new",
            "step-1000000",
        ];
        for name in strange.iter().chain(&ours) {
            fs::create_dir(path(name)).expect("a new directory");
        }
        fs::write(path("step-000009"), "a file").expect("written");
        std::os::unix::fs::symlink(path("best"), path("step-000008")).expect("a link");
        Versions::open(directory.path(), &known[..1], None).expect("open");
        assert!(strange.iter().all(|name| path(name).exists()));
        assert!(path("step-000009").exists() && path("step-000008").exists());
        assert!(!ours.iter().any(|name| path(name).exists()));
        assert!(path("step-000001").exists() && !path("step-000002").exists());
    }

    #[test]
    fn a_step_made_again_leaves_its_former_name() {
        let mut state = State::default();
        state.note(1, Digest::of(b"a"));
        state.note(1, Digest::of(b"b"));
        assert_eq!(state.steps.len(), 1);
        assert!(state.steps[&Digest::of(b"b")].contains(&1));
    }
}
