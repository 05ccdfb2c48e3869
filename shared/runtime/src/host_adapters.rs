//! Adapters of this host: a version's bytes come over the network once, and the other processes
//! map the file that the first one wrote.
//!
//! ```text
//! adapters/                   0700, of this user
//!   0 .. f                    lock files, by the first digit of a digest: whose turn it is to fetch
//!   DIGEST.adapter            0400: the bytes, then magic, length and CRC-32 of the bytes
//!   DIGEST.adapter.PID.tmp    being written
//! ```
//!
//! Whoever writes a file has checked that the bytes have the digest; it is never written again,
//! only renamed into its place and unlinked. So a reader trusts the name of a file that this user
//! alone could write, and checks what may happen to a file afterwards: nothing here is synced, so
//! that a power cut can leave holes, which the checksum finds. A SHA-256 in every reader would cost
//! more than the bytes' way does. Who runs as the same user could as well change the process.
//!
//! A directory that cannot be used costs every process a fetch, and nothing else.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use volley_protocol::Digest;
use volley_protocol::limits::ADAPTER_BYTES_MAX;

use crate::cache_dir;
use crate::conversation::same_host;

const SUFFIX: &str = ".adapter";
const TEMPORARY: &str = ".tmp";

/// Most bytes of all files together: two of the largest adapters, or the versions of many steps of
/// ordinary ones. What left can be fetched again.
pub const HOST_ADAPTERS_BYTES_MAX: u64 = 2 * ADAPTER_BYTES_MAX as u64;

/// The files take at most one part in so many of what would be free without them.
const PART_OF_FREE: u64 = 2;

/// What stands behind the bytes: magic, length, CRC-32. Behind, so that the bytes begin on a page.
const MAGIC: [u8; 8] = *b"vlyadpt\x01";
const FOOTER: usize = MAGIC.len() + 8 + 4;

/// A link is refused, and a pipe does not wait for a writer.
const NO_SURPRISES: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;

/// The directory that the processes of this user share on this host.
#[derive(Clone, Debug)]
pub struct HostAdapters {
    path: PathBuf,
}

/// While it lives, no other process fetches or writes adapters whose digest begins alike. A process
/// that dies gives its turn back.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
    digit: char,
}

/// A file that is there, of which everything but the bytes was looked at.
#[derive(Debug)]
pub struct HostAdapter {
    file: File,
    bytes: usize,
    checksum: u32,
}

impl HostAdapter {
    /// To be mapped or read; the adapter is at its beginning.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Length of the adapter.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Are these the bytes that were written?
    #[must_use]
    pub fn is(&self, adapter: &[u8]) -> bool {
        adapter.len() == self.bytes && crc32fast::hash(adapter) == self.checksum
    }
}

/// What came of looking for an adapter.
#[derive(Debug)]
pub enum Looked<T> {
    /// It is here.
    Here(T),
    /// It is not, and nobody else fetches it: it is this process's turn.
    Yours(Turn),
    /// Another process fetches it, or one whose digest begins alike.
    Busy,
}

impl HostAdapters {
    /// As the environment says; `None` when processes of this host shall not share, or there is no
    /// place.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        same_host().bulk.then(cache_dir::adapters)?.map(Self::at)
    }

    /// Those in that directory, which is made when it is needed.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Looks for an adapter; `take` maps or reads its file and says `None` when the bytes are not
    /// those that were written. Such a file is removed.
    ///
    /// # Errors
    /// Why the directory cannot be used.
    pub fn look<T>(
        &self,
        digest: Digest,
        take: impl Fn(&HostAdapter) -> Option<T>,
    ) -> Result<Looked<T>, String> {
        self.open()?;
        if let Some(here) = self.find(digest, &take) {
            return Ok(Looked::Here(here));
        }
        let Some(turn) = self.turn(digest)? else {
            return Ok(Looked::Busy);
        };
        // It may have come between the look and the turn.
        Ok(match self.find(digest, &take) {
            Some(here) => Looked::Here(here),
            None => Looked::Yours(turn),
        })
    }

    /// Puts bytes there, of which the caller knows that they have this digest.
    ///
    /// # Errors
    /// Why they are not there.
    pub fn put(&self, digest: Digest, bytes: &[u8], turn: &Turn) -> Result<(), String> {
        let name = digest.to_string();
        if !name.starts_with(turn.digit) {
            return Err(format!("it is not the turn of {}", digest.short()));
        }
        self.make_room((bytes.len() + FOOTER) as u64, turn)?;
        let path = self.path.join(name + SUFFIX);
        let temporary = named(&path, &format!(".{}{TEMPORARY}", std::process::id()));
        let failed = |error: io::Error| {
            // Best effort; what remains is removed when room is made.
            let _ = fs::remove_file(&temporary);
            told("write", &temporary, &error)
        };
        write(&temporary, bytes).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    /// Puts bytes there unless they are there or on their way.
    ///
    /// # Errors
    /// Why they are not there.
    pub fn offer(&self, digest: Digest, bytes: &[u8]) -> Result<(), String> {
        let same = |found: &HostAdapter| (found.bytes == bytes.len()).then_some(());
        match self.look(digest, same)? {
            Looked::Yours(turn) => self.put(digest, bytes, &turn),
            Looked::Here(()) | Looked::Busy => Ok(()),
        }
    }

    /// Removes an adapter that nobody will come for any more; who has mapped it keeps it.
    ///
    /// # Errors
    /// Why it is still there.
    pub fn remove(&self, digest: Digest) -> Result<(), String> {
        remove(&self.path.join(digest.to_string() + SUFFIX))
    }

    /// Makes the directory for this user alone, or looks whether it is so.
    fn open(&self) -> Result<(), String> {
        let path = &self.path;
        let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
        created.map_err(|error| told("create", path, &error))?;
        // Not through a link: it could be exchanged for one by whoever owns the parent.
        let found = fs::symlink_metadata(path).map_err(|error| told("look at", path, &error))?;
        let owner = rustix::process::geteuid().as_raw();
        if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
            let shown = path.display();
            return Err(format!("{shown} is not a directory of this user alone"));
        }
        Ok(())
    }

    fn find<T>(&self, digest: Digest, take: impl Fn(&HostAdapter) -> Option<T>) -> Option<T> {
        let path = self.path.join(digest.to_string() + SUFFIX);
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(NO_SURPRISES).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an adapter is not usable");
                return None;
            }
        };
        let taken = opened(file).ok().and_then(|found| {
            let taken = take(&found)?;
            // The least lately used leave first. A file that cannot say so leaves earlier.
            let _ = found.file.set_modified(SystemTime::now());
            Some(taken)
        });
        if taken.is_none() {
            tracing::warn!(path = %path.display(), "a damaged adapter is removed");
            // If another process has put a good one there meanwhile, that one is fetched again.
            let _ = fs::remove_file(&path);
        }
        taken
    }

    fn turn(&self, digest: Digest) -> Result<Option<Turn>, String> {
        let digit = char::from_digit(u32::from(digest.0[0] >> 4), 16).unwrap_or('0');
        let path = self.path.join(digit.to_string());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(NO_SURPRISES);
        let lock = options.open(&path);
        let lock = lock.map_err(|error| told("open", &path, &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Turn { _lock: lock, digit })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(told("lock", &path, &error)),
        }
    }

    /// Removes what the dead left behind, and the files that were not used for longest until
    /// another of `bytes` fits.
    fn make_room(&self, bytes: u64, turn: &Turn) -> Result<(), String> {
        let disk = rustix::fs::statvfs(&self.path).map_err(io::Error::from);
        let disk = disk.map_err(|error| told("measure", &self.path, &error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        self.make_room_beside(bytes, free, turn)
    }

    fn make_room_beside(&self, bytes: u64, free: u64, turn: &Turn) -> Result<(), String> {
        let failed = |error: io::Error| told("list", &self.path, &error);
        let mut files = Vec::new();
        for listed in fs::read_dir(&self.path).map_err(failed)? {
            let listed = listed.map_err(failed)?;
            let name = listed.file_name();
            let kind = name.to_str().and_then(is_ours);
            let (Some(is_temporary), Ok(found)) = (kind, listed.metadata()) else {
                continue;
            };
            // Nobody else writes in this turn.
            if is_temporary && name.to_str().is_some_and(|n| n.starts_with(turn.digit)) {
                remove(&listed.path())?;
            } else if found.is_file() {
                let used = found.modified().map_err(failed)?;
                files.push((used, found.len(), listed.path(), is_temporary));
            }
        }
        files.sort();
        let mut held: u64 = files.iter().map(|(_, length, ..)| length).sum();
        let most = HOST_ADAPTERS_BYTES_MAX.min(free.saturating_add(held) / PART_OF_FREE);
        if bytes > most {
            let shown = self.path.display();
            return Err(format!("{shown} may hold {most} bytes, not {bytes}"));
        }
        for (_, length, path, _) in files.iter().filter(|(.., is_temporary)| !is_temporary) {
            if held.saturating_add(bytes) <= most {
                break;
            }
            // Who has mapped it keeps it.
            remove(path)?;
            held -= length;
        }
        Ok(())
    }
}

/// Looks at everything but the bytes of a file.
fn opened(file: File) -> io::Result<HostAdapter> {
    let bad = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let found = file.metadata()?;
    let owner = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != owner || found.mode() & 0o022 != 0 {
        return bad("it is not a file that this user alone can change");
    }
    let length = found.len().checked_sub(FOOTER as u64);
    let Some(length) = length.filter(|length| *length <= ADAPTER_BYTES_MAX as u64) else {
        return bad("its length is wrong");
    };
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, length)?;
    let (told, checksum) = footer.split_at(FOOTER - 4);
    if told != [&MAGIC[..], &length.to_le_bytes()].concat() {
        return bad("it does not end as it should");
    }
    let checksum = checksum.try_into().map(u32::from_le_bytes);
    Ok(HostAdapter {
        file,
        bytes: length as usize,
        checksum: checksum.map_err(io::Error::other)?,
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Nothing ever writes into it again.
    options.write(true).create_new(true).mode(0o400);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    let mut footer = Vec::with_capacity(FOOTER);
    footer.extend(MAGIC);
    footer.extend((bytes.len() as u64).to_le_bytes());
    footer.extend(crc32fast::hash(bytes).to_le_bytes());
    file.write_all(&footer)
}

fn named(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Is it a name that is given here, and that of a file that is being written?
fn is_ours(name: &str) -> Option<bool> {
    let (digest, rest) = name.split_at_checked(64)?;
    let rest = rest.strip_prefix(SUFFIX)?;
    let is_temporary = rest.ends_with(TEMPORARY);
    let digits = digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (digits && (rest.is_empty() || is_temporary)).then_some(is_temporary)
}

/// Removes a file, unless another process did.
fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(told("remove", path, &error)),
        _ => Ok(()),
    }
}

fn told(what: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

#[cfg(test)]
mod tests;
