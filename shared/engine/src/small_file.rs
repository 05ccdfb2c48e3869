//! Reading the configurations beside weights, which are small in every published folder.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::error::EngineError;

/// Longest accepted file. The longest published ones, which list the tensors of shards, take half
/// a megabyte; what a file becomes in memory is at most some twenty times as long.
const BYTES_MAX: u64 = 8 << 20;

/// Reads a file of at most [`BYTES_MAX`] bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    let file = File::open(path).map_err(|error| EngineError::io(path, error))?;
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| EngineError::io(path, error))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(EngineError::ConfigInvalid {
            file: path.to_owned(),
            reason: format!("it is longer than {BYTES_MAX} bytes"),
        });
    }
    Ok(bytes)
}
