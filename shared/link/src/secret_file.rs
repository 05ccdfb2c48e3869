//! Files that only their owner may read.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::error::LinkError;

/// Group and others.
const FOREIGN_BITS: u32 = 0o077;

/// Writes `bytes` with mode 0600: into a sibling first, then renamed, so that neither a half
/// written secret nor one with another mode ever has the final name.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), LinkError> {
    let failed = |source| LinkError::File {
        doing: "write",
        path: path.to_owned(),
        source,
    };
    let mut sibling = path.as_os_str().to_owned();
    sibling.push(format!(".{:016x}.new", rand::random::<u64>()));
    let sibling = Path::new(&sibling);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(sibling)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(sibling, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(sibling);
    }
    written.map_err(failed)
}

/// Reads at most `max` bytes of a file that nobody else may read.
pub(crate) fn read(path: &Path, max: usize) -> Result<Vec<u8>, LinkError> {
    let failed = |source| LinkError::File {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & FOREIGN_BITS != 0 {
        return Err(LinkError::KeyFileExposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, max)
        .map_err(failed)?
        .ok_or_else(|| LinkError::IdentityInvalid {
            what: path.display().to_string(),
            detail: format!("it is larger than {max} bytes"),
        })
}

/// Everything `reader` has, or `None` if that is more than `max`.
pub(crate) fn read_bounded(reader: impl Read, max: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then_some(bytes))
}
