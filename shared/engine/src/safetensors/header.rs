//! The JSON header: parsed without trust, then compared with the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::Entry;
use crate::error::EngineError;

/// Longest accepted shape.
const RANK_MAX: usize = 8;

#[derive(Deserialize)]
pub(super) struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// What the header says, unchecked.
#[derive(Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, RawEntry>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else if let Some(_earlier) = header.tensors.insert(name.clone(), map.next_value()?) {
                return Err(serde::de::Error::custom(format!("{name} appears twice")));
            }
        }
        Ok(header)
    }
}

/// Compares every entry with its neighbours and with the file's length.
pub(super) fn check_entries(
    file: &Path,
    raw: BTreeMap<String, RawEntry>,
    data_start: usize,
    data_bytes: usize,
) -> Result<BTreeMap<String, Entry>, EngineError> {
    let broken = |reason: String| EngineError::SafetensorsHeader {
        file: file.to_owned(),
        reason,
    };
    let mut ranges = Vec::with_capacity(raw.len());
    let mut entries = BTreeMap::new();
    for (name, entry) in raw {
        let [begin, end] = entry.data_offsets;
        if begin > end {
            return Err(broken(format!(
                "{name} ends at {end} before it begins at {begin}"
            )));
        }
        let expected = entry_bytes(&entry).ok_or_else(|| {
            broken(format!(
                "{name}: {} of {:?} has no size",
                entry.dtype, entry.shape
            ))
        })?;
        if end - begin != expected {
            return Err(broken(format!(
                "{name} has {} bytes, its shape {expected}",
                end - begin
            )));
        }
        ranges.push((begin, end, name.clone()));
        // Offsets above the file's length are refused below, so these casts lose nothing.
        let range = (begin as usize, end as usize);
        let shape = entry.shape.iter().map(|&d| d as usize).collect();
        entries.insert(
            name,
            Entry {
                dtype: entry.dtype,
                shape,
                range,
            },
        );
    }
    ranges.sort_unstable();
    let mut position = 0u64;
    for (begin, end, name) in ranges {
        if begin != position {
            return Err(broken(format!(
                "{name} begins at {begin}, expected {position}"
            )));
        }
        if end > data_bytes as u64 {
            return Err(EngineError::Truncated {
                file: file.to_owned(),
                what: name,
                needed_bytes: (data_start as u64).saturating_add(end),
                actual_bytes: (data_start + data_bytes) as u64,
            });
        }
        position = end;
    }
    if position != data_bytes as u64 {
        let rest = data_bytes as u64 - position;
        return Err(broken(format!(
            "{rest} bytes after the last tensor belong to none"
        )));
    }
    Ok(entries)
}

/// Bytes that an entry's shape and type stand for; `None` when unknown or absurd.
fn entry_bytes(entry: &RawEntry) -> Option<u64> {
    if entry.shape.len() > RANK_MAX {
        return None;
    }
    let element: u64 = match entry.dtype.as_str() {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        _ => return None,
    };
    entry
        .shape
        .iter()
        .try_fold(element, |bytes, &dim| bytes.checked_mul(dim))
}
