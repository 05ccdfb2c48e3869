//! One process per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use volley_protocol::{ErrorCode, Fault};

use crate::faults;

const LOCK_FILE: &str = "LOCK";

/// Holds a data directory until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    path: PathBuf,
}

impl DirLock {
    /// Takes the directory, creating it if needed.
    ///
    /// # Errors
    /// `DATA_DIR_LOCKED`, with the pid of the process that has it, or `IO_FAILED`.
    pub fn acquire(dir: &Path) -> Result<Self, Fault> {
        std::fs::create_dir_all(dir).map_err(|e| faults::io("create", dir, &e))?;
        let path = dir.join(LOCK_FILE);
        let failed = |error: std::io::Error| faults::io("lock", &path, &error);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(dir, &mut file)),
            Err(errno) => return Err(failed(errno.into())),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file, path })
    }

    /// The lock file. It stays when the lock is released: its content is only a hint.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn locked(dir: &Path, file: &mut File) -> Fault {
    let mut text = String::new();
    // The holder may be about to write it.
    let _ = file.take(32).read_to_string(&mut text);
    let holder = match text.trim() {
        "" => "unknown",
        pid => pid,
    };
    Fault::new(
        ErrorCode::DataDirLocked,
        format!(
            "{} is in use by another process, pid={holder}",
            dir.display()
        ),
    )
    .with_hint("stop that process, or choose another directory with --data-dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("a/b");
        let lock = DirLock::acquire(&data).expect("first");
        let fault = DirLock::acquire(&data).expect_err("second");
        assert_eq!(fault.code, ErrorCode::DataDirLocked);
        let pid = format!("pid={}", std::process::id());
        assert!(fault.message.contains(&pid), "{fault}");
        drop(lock);
        let lock = DirLock::acquire(&data).expect("free again");
        assert!(lock.path().ends_with("LOCK"));
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let fault = DirLock::acquire(Path::new("/proc/no/such")).expect_err("no directory there");
        assert_eq!(fault.code, ErrorCode::IoFailed);
        assert!(fault.message.contains("/proc/no/such"), "{fault}");
    }
}
