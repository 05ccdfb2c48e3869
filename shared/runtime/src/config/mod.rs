//! Configuration files: TOML, no key that is not known, every complaint with its place.

mod document;
mod suggest;
mod units;

use std::path::Path;

use serde::de::DeserializeOwned;
use volley_protocol::Fault;

pub use document::Document;
pub use suggest::nearest;
pub use units::{Bytes, DurationMs};

/// Reads a TOML file into a type. The type refuses unknown keys by itself
/// (`#[serde(deny_unknown_fields)]`); this says where they are and what was probably meant.
///
/// # Errors
/// `CONFIG_INVALID` with `file:line:column`, or `IO_FAILED`.
pub fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, Fault> {
    Document::read(path)?.parse()
}
