//! Where a cluster on this machine is, and how its clients find it.
//!
//! A coordinator writes `cluster.json` into its data directory, and a pointer to that directory
//! into a directory of the user (`$XDG_RUNTIME_DIR/volley/clusters`, else
//! `$XDG_STATE_HOME/volley/clusters`, else `~/.local/state/volley/clusters`). Clients look for an
//! address in this order: `--addr`, `VOLLEY_ADDR`, the newest cluster that lives.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use volley_protocol::{Digest, ErrorCode, Fault};

use crate::env_vars::{HOME, VOLLEY_ADDR, XDG_RUNTIME_DIR, XDG_STATE_HOME};
use crate::run_dir::unix_ms;
use crate::{faults, files};

const FILE: &str = "cluster.json";

/// Only the owner may read it: it says where identities lie.
const MODE: u32 = 0o600;

/// A file of ours is far smaller; anything larger is somebody else's.
const BYTES_MAX: u64 = 64 << 10;

/// A cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Name of the cluster.
    pub cluster: String,
    /// Where its coordinator listens.
    pub address: SocketAddr,
    /// Process id of the coordinator.
    pub pid: u32,
    /// Certificate and key for clients.
    pub client_identity: PathBuf,
    /// Certificate and key for monitors.
    pub monitor_identity: PathBuf,
    /// The coordinator's data directory.
    pub data_dir: PathBuf,
    /// When this process announced it, for "the newest".
    pub started_unix_ms: u64,
}

impl ClusterFile {
    /// Writes `cluster.json` and the pointer. `identities` are those for clients and monitors.
    ///
    /// # Errors
    /// `IO_FAILED` when the data directory cannot be written. A user without a place for the
    /// pointer is warned: the data directory or address must then be named.
    pub fn announce(
        data_dir: &Path,
        identities: &[PathBuf; 2],
        address: SocketAddr,
        cluster: &str,
    ) -> Result<Self, Fault> {
        Self::announce_in(&pointer_dirs(), data_dir, identities, address, cluster)
    }

    fn announce_in(
        pointer_dirs: &[PathBuf],
        data_dir: &Path,
        identities: &[PathBuf; 2],
        address: SocketAddr,
        cluster: &str,
    ) -> Result<Self, Fault> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| faults::io("resolve", path, &error))
        };
        let file = Self {
            cluster: cluster.to_owned(),
            address,
            pid: std::process::id(),
            client_identity: absolute(&identities[0])?,
            monitor_identity: absolute(&identities[1])?,
            data_dir: absolute(data_dir)?,
            started_unix_ms: unix_ms(),
        };
        let path = file.data_dir.join(FILE);
        let written = files::write_atomic(&path, &file.to_json(), MODE);
        written.map_err(|error| faults::io("write", &path, &error))?;
        if !pointer_dirs.iter().any(|dir| file.point_from(dir)) {
            tracing::warn!(
                "no directory for the pointer to this cluster; clients must name its address"
            );
        }
        Ok(file)
    }

    /// The cluster of a data directory, whether it lives or not.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE` when nothing was announced there.
    pub fn read(data_dir: &Path) -> Result<Self, Fault> {
        read_file(&data_dir.join(FILE)).map_err(|reason| {
            let message = format!(
                "no cluster is announced in {}: {reason}",
                data_dir.display()
            );
            nothing_found(message)
        })
    }

    /// The cluster to talk to. `addr` is what `--addr` says; without it and without `VOLLEY_ADDR`
    /// it is the newest cluster of this user that lives. The address wins; which identities fit
    /// it is taken from the clusters known here.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE`, with what to do; `INVALID_REQUEST` for what is no address.
    pub fn discover(addr: Option<&str>) -> Result<Self, Fault> {
        let told = addr.map(str::to_owned).or_else(|| VOLLEY_ADDR.text());
        Self::discover_in(&pointer_dirs(), told.as_deref())
    }

    fn discover_in(pointer_dirs: &[PathBuf], told: Option<&str>) -> Result<Self, Fault> {
        let mut known = Self::known_in(pointer_dirs);
        let Some(told) = told else {
            known.retain(Self::is_alive);
            return known
                .pop()
                .ok_or_else(|| nothing_found("no cluster runs here".to_owned()));
        };
        let addresses = resolve(told)?;
        let found = known
            .into_iter()
            .rfind(|file| addresses.contains(&file.address));
        found.ok_or_else(|| {
            let message = format!("no certificate for the cluster at {told} is known here");
            Fault::new(ErrorCode::CoordinatorUnreachable, message)
                .with_hint("name the certificate of that cluster with --identity")
        })
    }

    /// Every cluster that this user has announced, oldest first, dead ones too.
    #[must_use]
    pub fn known() -> Vec<Self> {
        Self::known_in(&pointer_dirs())
    }

    fn known_in(pointer_dirs: &[PathBuf]) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for dir in pointer_dirs {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let pointers = entries.map(|entry| entry.path());
            let json = pointers.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
            found.extend(json.filter_map(|path| read_file(&path).ok()));
        }
        found.sort_by(|a, b| {
            (a.started_unix_ms, &a.data_dir).cmp(&(b.started_unix_ms, &b.data_dir))
        });
        found.dedup();
        found
    }

    /// Does its coordinator's process exist?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        // Another user's process answers "not permitted": it exists.
        pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }

    /// Takes the announcement back; what is left behind by a crash is ignored by its dead pid.
    pub fn withdraw(self) {
        self.withdraw_in(&pointer_dirs());
    }

    fn withdraw_in(self, pointer_dirs: &[PathBuf]) {
        let pointers = pointer_dirs.iter().map(|dir| dir.join(self.pointer_name()));
        for path in pointers.chain([self.data_dir.join(FILE)]) {
            // Somebody may have announced another life of this directory meanwhile.
            if read_file(&path).is_ok_and(|file| file == self) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Writes the pointer into `dir`, and takes dead ones out.
    fn point_from(&self, dir: &Path) -> bool {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        if made.is_err() {
            return false;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if read_file(&entry.path()).is_ok_and(|file| !file.is_alive()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        files::write_atomic(&dir.join(self.pointer_name()), &self.to_json(), MODE).is_ok()
    }

    /// One pointer per data directory: a restart replaces its own.
    fn pointer_name(&self) -> String {
        let digest = Digest::of(self.data_dir.as_os_str().as_encoded_bytes());
        format!("{}.json", digest.short())
    }

    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        debug_assert!(
            !json.is_empty(),
            "strings and numbers always have a JSON form"
        );
        json.push(b'\n');
        json
    }
}

fn read_file(path: &Path) -> Result<ClusterFile, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > BYTES_MAX {
        return Err(format!("{length} bytes are no cluster file"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn resolve(told: &str) -> Result<Vec<SocketAddr>, Fault> {
    let resolved = told.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    resolved.map_err(|error| {
        Fault::new(
            ErrorCode::InvalidRequest,
            format!("`{told}` is no address: {error}"),
        )
        .with_hint("an address is HOST:PORT, such as 127.0.0.1:7400")
    })
}

fn nothing_found(message: String) -> Fault {
    Fault::new(ErrorCode::CoordinatorUnreachable, message).with_hint("start one: volley up")
}

/// Directories of pointers, the preferred one first. All are read, the first that works is
/// written: a login without a runtime directory finds what one with it has started.
fn pointer_dirs() -> Vec<PathBuf> {
    let runtime = XDG_RUNTIME_DIR.directory();
    let state = XDG_STATE_HOME.directory();
    let home = HOME.directory().map(|home| home.join(".local/state"));
    let dirs = [runtime, state, home];
    dirs.into_iter()
        .flatten()
        .map(|dir| dir.join("volley/clusters"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Machine {
        root: tempfile::TempDir,
        pointers: Vec<PathBuf>,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("temporary directory");
            let blocked = PathBuf::from("/proc/no/such/place");
            let pointers = vec![blocked, root.path().join("state/volley/clusters")];
            Self { root, pointers }
        }

        fn announce(&self, name: &str, port: u16) -> ClusterFile {
            let data = self.root.path().join(name);
            fs::create_dir_all(&data).expect("data directory");
            let identities = [data.join("client"), data.join("monitor")];
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            ClusterFile::announce_in(&self.pointers, &data, &identities, address, name)
                .expect("announce")
        }

        fn discover(&self, told: Option<&str>) -> Result<ClusterFile, Fault> {
            ClusterFile::discover_in(&self.pointers, told)
        }
    }

    #[test]
    fn the_newest_living_cluster_is_found() {
        let machine = Machine::new();
        let mut first = machine.announce("one", 7001);
        let second = machine.announce("two", 7002);
        assert_eq!(machine.discover(None).map(|f| f.cluster), Ok("two".into()));
        assert_eq!(ClusterFile::read(&second.data_dir), Ok(second.clone()));
        let path = second.data_dir.join(FILE);
        let mode = fs::metadata(path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // "one" is announced again, later.
        std::thread::sleep(std::time::Duration::from_millis(3));
        first = machine.announce("one", first.address.port());
        assert_eq!(machine.discover(None).map(|f| f.cluster), Ok("one".into()));
        first.withdraw_in(&machine.pointers);
        assert_eq!(machine.discover(None).map(|f| f.cluster), Ok("two".into()));
        second.withdraw_in(&machine.pointers);
        let fault = machine.discover(None).expect_err("nothing lives");
        assert_eq!(fault.code, ErrorCode::CoordinatorUnreachable);
        assert_eq!(fault.hint, "start one: volley up");
    }

    #[test]
    fn dead_and_foreign_entries_are_ignored() {
        let machine = Machine::new();
        let mut dead = machine.announce("dead", 7001);
        dead.pid = 4_000_000; // above the kernel's largest
        assert!(!dead.is_alive());
        let dir = &machine.pointers[1];
        let pointer = dir.join(dead.pointer_name());
        fs::write(&pointer, dead.to_json()).expect("write");
        fs::write(dir.join("noise.json"), "{").expect("write");
        fs::write(dir.join("notes.txt"), "x").expect("write");
        assert!(machine.discover(None).is_err());
        let _living = machine.announce("living", 7002);
        assert!(!pointer.exists(), "a dead entry is taken out");
        assert!(dir.join("noise.json").exists(), "what is not ours stays");
    }

    #[test]
    fn an_address_wins_over_the_newest() {
        let machine = Machine::new();
        machine.announce("one", 7001);
        machine.announce("two", 7002);
        let found = machine.discover(Some("127.0.0.1:7001"));
        assert_eq!(found.map(|f| f.cluster), Ok("one".into()));
        let fault = machine.discover(Some("127.0.0.1:9")).expect_err("unknown");
        assert!(fault.hint.contains("--identity"), "{fault}");
        let fault = machine.discover(Some("nonsense")).expect_err("no address");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
    }
}
