//! An adapter's bytes: as they came from a learner, or mapped where another process of this host
//! put them. The shell looks there whenever the core asks for an adapter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use volley_engine::mapped::SharedFile;
use volley_protocol::Digest;
use volley_runtime::host_adapters::{HostAdapter, HostAdapters, Looked, Turn};

/// How long another process may fetch before this one fetches for itself: the largest adapter
/// takes about so long with 70 MB/s.
const TURN_WAIT: Duration = Duration::from_secs(30);

/// How often it is looked whether it is there.
const TURN_POLL: Duration = Duration::from_millis(2);

/// An adapter's bytes, whose digest was checked by whoever received them.
#[derive(Clone, Debug)]
pub(crate) enum AdapterBytes {
    /// From the learner.
    Owned(Arc<Vec<u8>>),
    /// The beginning of a file, so many bytes.
    Mapped(Arc<SharedFile>, usize),
}

impl AdapterBytes {
    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            // The length was held against the file's when it was mapped.
            Self::Mapped(file, length) => file.as_slice().get(..*length).unwrap_or_default(),
        }
    }

    fn map(found: &HostAdapter) -> Option<Self> {
        let file = SharedFile::map(found.file()).ok()?;
        let mapped = Self::Mapped(Arc::new(file), found.bytes());
        found.is(mapped.as_slice()).then_some(mapped)
    }
}

impl From<Vec<u8>> for AdapterBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(Arc::new(bytes))
    }
}

/// What this process does for an adapter.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing more: it is here.
    Here(AdapterBytes),
    /// It fetches, for the others too when it has the turn.
    Absent(Option<Turn>),
}

/// Looks for an adapter on this host, and waits while another process fetches it.
pub(crate) async fn look(host: HostAdapters, digest: Digest) -> Found {
    look_within(host, digest, TURN_WAIT).await
}

async fn look_within(host: HostAdapters, digest: Digest, wait: Duration) -> Found {
    let begun = Instant::now();
    loop {
        let here = host.clone();
        let looked = tokio::task::spawn_blocking(move || here.look(digest, AdapterBytes::map));
        let why = match looked.await {
            Ok(Ok(Looked::Here(bytes))) => return Found::Here(bytes),
            Ok(Ok(Looked::Yours(turn))) => return Found::Absent(Some(turn)),
            Ok(Ok(Looked::Busy)) if begun.elapsed() < wait => {
                tokio::time::sleep(TURN_POLL).await;
                continue;
            }
            Ok(Ok(Looked::Busy)) => format!("another process fetches since {} s", wait.as_secs()),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        tracing::warn!(why, digest = digest.short(), "an adapter is not shared");
        return Found::Absent(None);
    }
}

/// Puts what this process fetched there for the others.
pub(crate) fn share(host: HostAdapters, digest: Digest, bytes: AdapterBytes, turn: Turn) {
    tokio::task::spawn_blocking(move || {
        if let Err(why) = host.put(digest, bytes.as_slice(), &turn) {
            tracing::warn!(why, digest = digest.short(), "an adapter is not shared");
        }
        drop(turn);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_maps_what_the_other_fetched_or_fetches_in_the_end() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let host = HostAdapters::at(root.path().join("adapters"));
        let bytes: Vec<u8> = (0..99_999_u32).map(|n| n as u8).collect();
        let digest = Digest::of(&bytes);
        let Found::Absent(Some(turn)) = look(host.clone(), digest).await else {
            panic!("nobody has it yet");
        };
        let late = look_within(host.clone(), digest, Duration::ZERO).await;
        assert!(matches!(late, Found::Absent(None)), "{late:?}");
        let waiting = tokio::spawn(look(host.clone(), digest));
        share(host, digest, bytes.clone().into(), turn);
        let found = waiting.await.expect("no panic");
        let Found::Here(mapped @ AdapterBytes::Mapped(..)) = found else {
            panic!("{found:?}");
        };
        assert_eq!(mapped.as_slice(), bytes);
        std::fs::remove_dir_all(root.path()).expect("ours");
        assert_eq!(mapped.as_slice(), bytes, "who has mapped it keeps it");
    }

    #[tokio::test]
    async fn a_directory_of_others_costs_a_fetch() {
        let found = look(HostAdapters::at("/proc/none".into()), Digest::default()).await;
        assert!(matches!(found, Found::Absent(None)), "{found:?}");
    }
}
