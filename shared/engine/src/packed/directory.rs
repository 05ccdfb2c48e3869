//! The directory of packed files: whose it is, whose turn it is, and how large it may become.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use super::file::{Trouble, Unusable};

/// What packed files end with.
pub(super) const SUFFIX: &str = ".packed";

/// What files end with that are being written.
const TEMPORARY: &str = ".tmp";

/// Most bytes of all files together: two formats of a model of eight billion weights, or of a
/// learner's and a worker's files for it.
const BYTES_MAX: u64 = 64 << 30;

/// The cache takes at most one part in so many of what would be free without it: half, so that as
/// much is left to everything else, and a learner of eight billion weights in bfloat16 (two files,
/// 31 GiB) needs 62 GiB and not twice that.
const PART_OF_FREE: u64 = 2;

/// Files that were used since are not removed: processes of a run that is about to start may still
/// come for them, and would pack their own.
const YOUNG: Duration = Duration::from_hours(1);

/// How long to wait for another process that packs. Packing takes seconds per gigabyte; whoever
/// waits longer than this packs for itself.
const TURN_WAIT: Duration = Duration::from_mins(10);
const TURN_POLL: Duration = Duration::from_millis(20);

/// A directory that only this user can write in.
pub(super) struct Directory<'a> {
    path: &'a Path,
}

/// While it lives, no other process writes or removes files.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: File,
}

impl<'a> Directory<'a> {
    /// Opens a directory, or creates it for this user alone.
    pub(super) fn open(path: &'a Path) -> Result<Self, Trouble> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
        created.map_err(|error| Trouble::io("create", path, &error))?;
        // Not through a link: it could be exchanged for one by whoever owns the parent.
        let found = fs::symlink_metadata(path);
        let found = found.map_err(|error| Trouble::io("look at", path, &error))?;
        let refused = |why: &str| Err(Trouble::Cache(format!("{} {why}", path.display())));
        if !found.is_dir() {
            return refused("is not a directory");
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return refused("belongs to another user");
        }
        if found.mode() & 0o022 != 0 {
            return refused("can be written by other users");
        }
        Ok(Self { path })
    }

    /// Waits until no other process packs. A process that dies gives its turn back.
    pub(super) fn take_turn(&self) -> Result<Turn, Trouble> {
        self.take_turn_within(TURN_WAIT)
    }

    fn take_turn_within(&self, wait: Duration) -> Result<Turn, Trouble> {
        let path = self.path.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(NO_SURPRISES);
        let lock = options.open(&path);
        let lock = lock.map_err(|error| Trouble::io("open", &path, &error))?;
        let begun = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Turn { _lock: lock }),
                Err(TryLockError::WouldBlock) if begun.elapsed() < wait => {
                    std::thread::sleep(TURN_POLL);
                }
                Err(TryLockError::WouldBlock) => {
                    let reason = format!("another process packs since {} s", wait.as_secs());
                    return Err(Trouble::Cache(reason));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Trouble::io("lock", &path, &error));
                }
            }
        }
    }

    /// Removes the files that were not used for longest until another of `bytes` fits; none when
    /// it would not fit even then.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), Trouble> {
        self.remove_remains()?;
        let disk = rustix::fs::statvfs(self.path).map_err(io::Error::from);
        let disk = disk.map_err(|error| Trouble::io("measure", self.path, &error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        self.make_room_beside(bytes, free)
    }

    /// Removes what processes left behind that died while they wrote: this one has the turn, so
    /// nobody writes.
    fn remove_remains(&self) -> Result<(), Trouble> {
        let files = self.files()?;
        let remains = |file: &&Listed| file.path.extension().is_some_and(|e| e == &TEMPORARY[1..]);
        files.iter().filter(remains).try_for_each(Listed::remove)
    }

    fn make_room_beside(&self, bytes: u64, free: u64) -> Result<(), Trouble> {
        let files = self.files()?;
        let mut cached: u64 = files.iter().map(|file| file.bytes).sum();
        let most = BYTES_MAX.min(free.saturating_add(cached) / PART_OF_FREE);
        let now = SystemTime::now();
        // A file from the future counts as new.
        let age = |file: &Listed| now.duration_since(file.used).unwrap_or_default();
        let (old, young): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| age(file) >= YOUNG);
        let stays: u64 = young.iter().map(|file| file.bytes).sum();
        if stays.saturating_add(bytes) > most {
            let reason = format!(
                "{} would have to hold {} MiB beside {} MiB in use, and may hold {} MiB",
                self.path.display(),
                bytes >> 20,
                stays >> 20,
                most >> 20,
            );
            return Err(Trouble::Cache(reason));
        }
        for file in old {
            if cached.saturating_add(bytes) <= most {
                break;
            }
            file.remove()?;
            cached -= file.bytes;
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<Listed>, Trouble> {
        list(self.path).map_err(|error| Trouble::io("list", self.path, &error))
    }

    /// A new file that becomes `name` later.
    pub(super) fn temporary(&self, name: String) -> Result<Temporary, Trouble> {
        let path = self
            .path
            .join(format!("{name}.{}{TEMPORARY}", std::process::id()));
        // Remains of a dead process with the same id; this one has the turn.
        let _ = fs::remove_file(&path);
        let mut options = OpenOptions::new();
        // Nothing ever writes into it again.
        options.write(true).create_new(true).mode(0o400);
        let file = options.open(&path);
        let file = file.map_err(|error| Trouble::io("create", &path, &error))?;
        let path = Some(path);
        Ok(Temporary { file, path })
    }
}

/// A file that is being written, removed unless it is renamed.
pub(super) struct Temporary {
    pub(super) file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or_else(|| Path::new(""))
    }

    pub(super) fn rename_to(mut self, to: &Path) -> Result<(), Trouble> {
        let renamed = fs::rename(self.path(), to);
        renamed.map_err(|error| Trouble::io("rename a file to", to, &error))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort; what remains is removed when room is made.
            let _ = fs::remove_file(path);
        }
    }
}

/// A file of the cache.
pub(super) struct Listed {
    path: PathBuf,
    used: SystemTime,
    pub(super) bytes: u64,
}

impl Listed {
    fn remove(&self) -> Result<(), Trouble> {
        fs::remove_file(&self.path).map_err(|error| Trouble::io("remove", &self.path, &error))
    }
}

/// The files of a cache, those first that were not used for longest; nothing else that stands in
/// its directory.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Listed>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(is_ours) {
            continue;
        }
        // Gone since it was listed.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_file() {
            files.push(Listed {
                path: entry.path(),
                used: metadata.modified()?,
                bytes: metadata.len(),
            });
        }
    }
    files.sort_by_key(|file| file.used);
    Ok(files)
}

/// A SHA-256 in hexadecimal, the suffix, and perhaps a process id and the sign of a file that is
/// being written.
fn is_ours(name: &str) -> bool {
    let Some((digest, rest)) = name.split_at_checked(64) else {
        return false;
    };
    let rest = rest.strip_prefix(SUFFIX);
    digest.bytes().all(|byte| byte.is_ascii_hexdigit())
        && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(TEMPORARY))
}

/// A link is refused, and a pipe does not wait for a writer.
const NO_SURPRISES: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;

pub(super) fn open_read_only(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(NO_SURPRISES).open(path)
}

/// A file that somebody else made or may change is not used.
pub(super) fn check_ownership(file: &File) -> Result<(), Unusable> {
    let found = file.metadata();
    let found = found.map_err(|error| Unusable::Unreadable("look at", error))?;
    let owner = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != owner || found.mode() & 0o022 != 0 {
        let why = "it is not a file that this user alone can change";
        return Err(Unusable::Damaged(why.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn reason(trouble: Trouble) -> String {
        match trouble {
            Trouble::Cache(reason) => reason,
            Trouble::Making(error) => panic!("{error}"),
        }
    }

    fn file(directory: &Path, digit: char, bytes: u64, hours: u64) -> PathBuf {
        let name: String = std::iter::repeat_n(digit, 64).collect();
        let path = directory.join(name + SUFFIX);
        let file = File::create(&path).expect("writable");
        file.set_len(bytes).expect("sparse");
        let used = SystemTime::now() - Duration::from_hours(hours);
        file.set_modified(used).expect("ours");
        path
    }

    /// A cache of three files, and a file of somebody else.
    fn crowd(root: &Path) -> [PathBuf; 4] {
        let [old, older, young] =
            [('a', 5), ('b', 9), ('c', 0)].map(|(digit, h)| file(root, digit, 1 << 20, h));
        let foreign = root.join("notes.packed");
        fs::rename(file(root, 'd', 1 << 20, 99), &foreign).expect("ours");
        [old, older, young, foreign]
    }

    /// Room for so many megabytes is half of twice as many; three are cached.
    const fn free_for(megabytes: u64) -> u64 {
        (2 * megabytes - 3) << 20
    }

    #[test]
    fn the_oldest_leave_and_the_young_stay() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let all = crowd(root.path());
        let there = || all.each_ref().map(|path| path.exists());
        let directory = Directory::open(root.path()).expect("ours");
        let make = |room| directory.make_room_beside(1 << 20, room);
        make(free_for(4)).expect("all fit");
        assert_eq!(there(), [true, true, true, true]);
        make(free_for(3)).expect("one leaves");
        assert_eq!(there(), [true, false, true, true]);
    }

    #[test]
    fn what_cannot_fit_costs_no_other_file() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let all = crowd(root.path());
        let there = || all.each_ref().map(|path| path.exists());
        let directory = Directory::open(root.path()).expect("ours");
        // The young one stays, and the room of the others would not be enough.
        for (bytes, free) in [(1, 0), (3, free_for(3)), (BYTES_MAX >> 20, u64::MAX)] {
            let full = directory.make_room_beside(bytes << 20, free);
            let full = reason(full.expect_err("no room"));
            let expected = format!("hold {bytes} MiB beside 1 MiB in use, and may hold");
            assert!(full.contains(&expected), "{full}");
            assert_eq!(there(), [true, true, true, true]);
        }
        let two = directory.make_room_beside(2 << 20, free_for(3));
        two.expect("two leave");
        assert_eq!(there(), [false, false, true, true]);
    }

    #[test]
    fn remains_of_the_dead_leave_whether_or_not_there_is_room() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let all = crowd(root.path());
        let directory = Directory::open(root.path()).expect("ours");
        for bytes in [0, BYTES_MAX] {
            // As young as can be: whoever has the turn knows that its writer is dead.
            let remains = PathBuf::from(format!("{}.77{TEMPORARY}", all[0].display()));
            fs::write(&remains, "half a matrix").expect("writable");
            let room = directory.make_room(bytes);
            assert_eq!(room.is_ok(), bytes == 0);
            assert!(!remains.exists());
        }
        assert_eq!(all.map(|path| path.exists()), [true; 4]);
    }

    #[test]
    fn directories_of_others_are_not_used() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("a/b");
        Directory::open(&path).expect("created");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(&path), mode(&root.path().join("a"))), (0o700, 0o700));
        let refused = |path: &Path| reason(Directory::open(path).err().expect("refused"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).expect("ours");
        assert!(refused(&path).contains("other users"));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).expect("a link");
        assert!(refused(&link).contains("not a directory"));
        assert!(refused(Path::new("/proc/none")).contains("/proc/none"));
        let plain = root.path().join("plain");
        fs::write(&plain, "").expect("writable");
        assert!(refused(&plain).contains("plain"));
    }

    #[test]
    fn turns_are_taken_one_by_one() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(root.path()).expect("ours");
        let turn = directory.take_turn().expect("nobody is there");
        let wait = Duration::from_millis(50);
        let waited = directory.take_turn_within(wait).expect_err("taken");
        assert!(reason(waited).contains("another process"));
        drop(turn);
        directory.take_turn_within(wait).expect("free again");
    }

    #[test]
    fn only_our_own_names_are_ours() {
        let digest: String = std::iter::repeat_n('0', 64).collect();
        for (name, ours) in [
            (format!("{digest}.packed"), true),
            (format!("{digest}.packed.12.tmp"), true),
            (format!("{digest}.packed.12"), false),
            (format!("{digest}.json"), false),
            (digest.replace('0', "g") + ".packed", false),
            (format!("{}é.packed", &digest[1..]), false),
            ("lock".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_ours(&name), ours, "{name}");
        }
    }
}
