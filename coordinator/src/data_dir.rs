//! The coordinator's directory: one process works in it, and it holds everything that outlives one.
//!
//! ```text
//! lock  coordinator.db  results/  ca/ (0600)  identities/ (0600)  reset.key  cluster.json
//! ```

use std::path::{Path, PathBuf};

use volley_link::{ClusterCa, Identity, ResetKey, Role};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::files;
use volley_runtime::greeting::link_fault;
use volley_runtime::lock::DirLock;

/// Roles whose identities are issued for people who start processes by hand.
const HANDED_OUT: [Role; 4] = [Role::Worker, Role::Learner, Role::Client, Role::Monitor];

/// A locked data directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: DirLock,
}

impl DataDir {
    /// Creates the directory if needed and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        std::fs::create_dir_all(path).map_err(|error| io_fault(path, &error))?;
        let lock = DirLock::acquire(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join(crate::journal::STORE_FILE)
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.path.join("results")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the identity of a role lies.
    pub(crate) fn identity_path(&self, role: Role) -> PathBuf {
        self.path
            .join("identities")
            .join(format!("{role}.identity"))
    }

    /// The cluster's authority: loaded, or created on the first start.
    pub(crate) fn authority(&self, cluster: &str) -> Result<ClusterCa, Fault> {
        let directory = self.path.join("ca");
        if directory.exists() {
            return ClusterCa::load(&directory).map_err(|error| link_fault(&error));
        }
        let ca = ClusterCa::create(cluster).map_err(|error| link_fault(&error))?;
        let fresh = self.path.join("ca.new");
        let moved = std::fs::create_dir_all(&fresh)
            .map_err(|error| io_fault(&fresh, &error))
            .and_then(|()| ca.save(&fresh).map_err(|error| link_fault(&error)))
            // A directory appears whole or not at all: what peers were given must outlive a power cut.
            .and_then(|()| {
                let renamed = files::sync_dir(&fresh)
                    .and_then(|()| std::fs::rename(&fresh, &directory))
                    .and_then(|()| files::sync_parent(&directory));
                renamed.map_err(|error| io_fault(&directory, &error))
            });
        moved.map(|()| ca)
    }

    /// Fresh identities for processes that people start by hand.
    pub(crate) fn hand_out(&self, ca: &ClusterCa) -> Result<(), Fault> {
        let directory = self.path.join("identities");
        std::fs::create_dir_all(&directory).map_err(|error| io_fault(&directory, &error))?;
        for role in HANDED_OUT {
            let identity: Identity = ca
                .issue(role, role.as_str())
                .map_err(|error| link_fault(&error))?;
            identity
                .save(&self.identity_path(role))
                .map_err(|error| link_fault(&error))?;
        }
        Ok(())
    }

    /// The secret that lets a restarted listener tell old peers at once that it was restarted.
    pub(crate) fn reset_key(&self) -> Result<ResetKey, Fault> {
        let path = self.path.join("reset.key");
        match std::fs::read(&path) {
            Ok(bytes) => ResetKey::from_bytes(&bytes).map_err(|error| link_fault(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = ResetKey::generate();
                files::write_atomic(&path, key.as_bytes(), 0o600)
                    .map_err(|error| io_fault(&path, &error))?;
                Ok(key)
            }
            Err(error) => Err(io_fault(&path, &error)),
        }
    }
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
}
