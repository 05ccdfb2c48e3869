//! Packed weights in files that the processes of a machine map instead of packing their own.
//!
//! The first process that loads a model writes a file, all map it read-only and compute on it in
//! place: one copy of the weights, in the page cache, serves workers and learner alike.
//!
//! **Identity.** A file begins with a header that follows from what is wanted: the version of the
//! layout, the model's content digest, and name, number format, sizes and place of every matrix.
//! The file's name is the header's SHA-256. So a changed model, another number format or another
//! layout is another file, and a reader has nothing to parse: it knows every byte of the header
//! and compares. The layout is the same for every instruction set.
//!
//! **Integrity.** Lengths and checksums are verified before the first use; a file that fails is
//! made again. It is therefore not synced: what a power cut leaves behind fails, too. Checksums
//! are CRC-32, for accidents: whoever could forge a file as this user could forge any checksum.
//! They cost a fraction of the SHA-256 over the checkpoint that every load computes, and fetch
//! the pages that the first tokens need.
//!
//! **Never in the way.** Whatever goes wrong with the cache leads to private memory, as without
//! it, and to one sentence in [`Packing`].

mod directory;
mod file;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::cpu::pack::PackedWeights;
use crate::error::EngineError;
use directory::Directory;
pub(crate) use file::Matrix;
use file::{Layout, Trouble, Unusable};

/// Models with fewer bytes of weights are packed in milliseconds and share nothing worth a file.
const MODEL_BYTES_MIN: u64 = 16 << 20;

/// A directory of packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedCache {
    directory: PathBuf,
    model_bytes_min: u64,
}

/// Where a model's packed weights are, and how that came. It reads as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packing {
    /// In memory of this process: no cache was named, or the model is small.
    Private,
    /// In memory of this process, because the cache cannot be used.
    Refused {
        /// Why not.
        reason: String,
    },
    /// In a file that was there.
    Mapped {
        /// The file.
        file: PathBuf,
    },
    /// In a file that this process has written.
    Written {
        /// The file.
        file: PathBuf,
        /// What was wrong with the one that had been there.
        damage: Option<String>,
    },
}

impl Packing {
    /// Whether other processes can share the memory.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Mapped { .. } | Self::Written { .. })
    }

    /// Whether something is not as it should be.
    #[must_use]
    pub const fn is_trouble(&self) -> bool {
        match self {
            Self::Private | Self::Mapped { .. } => false,
            Self::Refused { .. } => true,
            Self::Written { damage, .. } => damage.is_some(),
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("packed weights are in private memory"),
            Self::Refused { reason } => {
                write!(
                    f,
                    "packed weights are not shared between processes: {reason}"
                )
            }
            Self::Mapped { file } => write!(f, "packed weights are mapped from {}", file.display()),
            Self::Written { file, damage: None } => {
                write!(
                    f,
                    "packed weights are written to {} and mapped",
                    file.display()
                )
            }
            Self::Written {
                file,
                damage: Some(damage),
            } => {
                write!(
                    f,
                    "packed weights are written again to {}, which was damaged: {damage}",
                    file.display()
                )
            }
        }
    }
}

impl PackedCache {
    /// A cache in this directory, which the first file creates.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            model_bytes_min: MODEL_BYTES_MIN,
        }
    }

    /// The same for models from this many bytes of weights on.
    #[must_use]
    pub const fn for_models_from(mut self, model_bytes_min: u64) -> Self {
        self.model_bytes_min = model_bytes_min;
        self
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many files it holds and their bytes; nothing is created.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn usage(&self) -> Result<(usize, u64), EngineError> {
        let files = match directory::list(&self.directory) {
            Ok(files) => files,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(EngineError::io(&self.directory, error)),
        };
        Ok((files.len(), files.iter().map(|file| file.bytes).sum()))
    }

    /// The matrices of a model with that digest from a file, which is made with `make` (by index)
    /// when it is not there; `None` when they are to stay in private memory.
    pub(crate) fn provide(
        &self,
        digest: &[u8; 32],
        matrices: &[Matrix],
        make: &dyn Fn(usize) -> Result<PackedWeights, EngineError>,
    ) -> Result<(Option<Vec<PackedWeights>>, Packing), EngineError> {
        let Some(layout) = Layout::new(digest, matrices) else {
            let reason = "its size cannot be counted".to_owned();
            return Ok((None, Packing::Refused { reason }));
        };
        if layout.file_bytes() < self.model_bytes_min {
            return Ok((None, Packing::Private));
        }
        match self.mapped(&layout, make) {
            Ok((weights, packing)) => Ok((Some(weights), packing)),
            Err(Trouble::Making(error)) => Err(error),
            Err(Trouble::Cache(reason)) => Ok((None, Packing::Refused { reason })),
        }
    }

    fn mapped(
        &self,
        layout: &Layout,
        make: &dyn Fn(usize) -> Result<PackedWeights, EngineError>,
    ) -> Result<(Vec<PackedWeights>, Packing), Trouble> {
        let directory = Directory::open(&self.directory)?;
        let file = self.directory.join(layout.file_name());
        if let Found::Whole(weights) = find(&file, layout)? {
            return Ok((weights, Packing::Mapped { file }));
        }
        // Workers that start together must not pack side by side: they would map one file each.
        let _turn = directory.take_turn()?;
        let damage = match find(&file, layout)? {
            Found::Whole(weights) => return Ok((weights, Packing::Mapped { file })),
            Found::Damaged(damage) => {
                // Its room is needed. Where this fails, so does the renaming below.
                let _ = std::fs::remove_file(&file);
                Some(damage)
            }
            Found::Absent => None,
        };
        directory.make_room(layout.file_bytes())?;
        let temporary = directory.temporary(layout.file_name())?;
        layout.write(&temporary.file, make)?;
        // Others see it only after it has passed the test that theirs will have to pass.
        let written = directory::open_read_only(temporary.path())
            .map_err(|error| Trouble::io("open", temporary.path(), &error))?;
        let weights = read(&written, layout).map_err(|unusable| match unusable {
            Unusable::Damaged(why) => Trouble::Cache(format!("a new file was damaged: {why}")),
            Unusable::Unreadable(what, error) => Trouble::io(what, temporary.path(), &error),
        })?;
        temporary.rename_to(&file)?;
        Ok((weights, Packing::Written { file, damage }))
    }
}

/// What stands under a file's name.
enum Found {
    Absent,
    Damaged(String),
    Whole(Vec<PackedWeights>),
}

/// Looks for a file. What the operating system refuses is no damage: others may be using it.
fn find(path: &Path, layout: &Layout) -> Result<Found, Trouble> {
    let file = match directory::open_read_only(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        // Links are not followed, so this is one, and not a file of ours.
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Ok(Found::Damaged("it is a link".to_owned()));
        }
        Err(error) => return Err(Trouble::io("open", path, &error)),
    };
    match read(&file, layout) {
        Ok(weights) => {
            // The oldest go first when room is needed. Only a hint: an error changes nothing.
            let _ = file.set_modified(std::time::SystemTime::now());
            Ok(Found::Whole(weights))
        }
        Err(Unusable::Damaged(why)) => Ok(Found::Damaged(why)),
        Err(Unusable::Unreadable(what, error)) => Err(Trouble::io(what, path, &error)),
    }
}

/// Checks a file, maps it, and returns its matrices.
fn read(file: &File, layout: &Layout) -> Result<Vec<PackedWeights>, Unusable> {
    directory::check_ownership(file)?;
    let bytes = Arc::new(layout.map(file)?);
    layout.weights(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_not_damaged() {
        let root = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(&[7; 32], &[]).expect("small");
        let plain = root.path().join("plain");
        std::fs::write(&plain, "").expect("writable");
        let Err(Trouble::Cache(reason)) = find(&plain.join("below"), &layout) else {
            panic!("it cannot be there");
        };
        assert!(reason.starts_with("cannot open"), "{reason}");
        assert!(matches!(find(&plain, &layout), Ok(Found::Damaged(_))));
        let absent = find(&root.path().join("absent"), &layout);
        assert!(matches!(absent, Ok(Found::Absent)));
    }

    /// A process whose address space is limited, as `ulimit -v` does.
    #[cfg(target_os = "linux")]
    mod limited {
        use super::*;
        use crate::cpu::pack::Format;

        const MATRIX: [usize; 2] = [4096, 4096];

        fn provided(directory: &Path) -> Packing {
            let [n, k] = MATRIX;
            let matrix = Matrix {
                name: "zeros".to_owned(),
                format: Format::F32,
                n,
                k,
            };
            let zeros = |_| Ok(PackedWeights::pack(&vec![0.0; n * k], n, k));
            let provided = PackedCache::new(directory).provide(&[7; 32], &[matrix], &zeros);
            provided.expect("nothing fails that is needed").1
        }

        /// Runs one of these tests alone in a process, whose limits it may change.
        fn alone(test: &str, directory: &Path) {
            let tests = std::env::current_exe().expect("it runs");
            let mut command = std::process::Command::new(tests);
            command.args(["--exact", "--nocapture", test]);
            let output = command.env("VOLLEY_TEST_DIRECTORY", directory).output();
            let output = output.expect("it starts");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}");
            assert!(said.contains("1 passed"), "{said}");
        }

        #[test]
        fn who_cannot_map_a_file_leaves_it_to_the_others() {
            let root = tempfile::tempdir().expect("a folder");
            let Packing::Written { file, damage: None } = provided(root.path()) else {
                panic!("nothing was there");
            };
            alone("packed::tests::limited::little_address_space", root.path());
            assert_eq!(provided(root.path()), Packing::Mapped { file });
        }

        /// The main function of the process that cannot map.
        #[test]
        #[expect(clippy::disallowed_methods, reason = "a test's child")]
        fn little_address_space() {
            use rustix::process::{Resource, Rlimit, setrlimit};

            let Some(directory) = std::env::var_os("VOLLEY_TEST_DIRECTORY") else {
                return;
            };
            let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
            let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
            let kib = size.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            let most = (kib.expect("a number") << 10) + (16 << 20);
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(Resource::As, limit).expect("less is allowed");
            let Packing::Refused { reason } = provided(Path::new(&directory)) else {
                panic!("a file of 64 MiB fits nowhere");
            };
            assert!(reason.contains("cannot map"), "{reason}");
        }
    }
}
