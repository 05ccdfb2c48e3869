//! Reading and writing safetensors files, written for files that nobody vouches for.
//!
//! Layout: `u64` little-endian header length, a JSON object `name -> {dtype, shape,
//! data_offsets}`, then the tensors' bytes. A file is accepted only when its header is at
//! most [`HEADER_BYTES_MAX`] long and names no tensor twice, when every tensor's byte range
//! is exactly as long as its shape and type say, and when the ranges tile the data section
//! without gap, overlap or rest. Nothing is allocated from a number in the file before that
//! number was compared with the file's length.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::error::EngineError;
use crate::mapped::Bytes;

/// Longest accepted header. The largest published checkpoints need well under 1 MiB per
/// shard; the bound keeps a hostile length from becoming an allocation.
pub const HEADER_BYTES_MAX: u64 = 8 << 20;
/// Longest accepted shape.
const RANK_MAX: usize = 8;

/// Number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The format's name in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

/// One tensor of an open file.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    file: &'a Path,
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Stored number format.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Row-major shape.
    #[must_use]
    pub const fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The stored bytes, little-endian.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Fails unless the tensor has exactly this shape.
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, EngineError> {
        if self.shape == expected {
            return Ok(self);
        }
        Err(EngineError::TensorShape {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected: expected.to_vec(),
            actual: self.shape.to_vec(),
        })
    }

    /// The elements as f32, row-major. Every stored value is represented exactly.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self
                .bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Dtype::F16 => {
                let half: Vec<f16> = self
                    .bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|b| f16::from_le_bytes(*b))
                    .collect();
                half.to_f32_vec()
            }
            Dtype::Bf16 => self
                .bf16_bits()
                .map(|bits| f32::from_bits(u32::from(bits) << 16))
                .collect(),
        }
    }

    /// The bit patterns of a bfloat16 tensor; `None` for the other formats.
    #[must_use]
    pub fn to_bf16_bits(&self) -> Option<Vec<u16>> {
        (self.dtype == Dtype::Bf16).then(|| self.bf16_bits().collect())
    }

    fn bf16_bits(&self) -> impl Iterator<Item = u16> {
        self.bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
    }
}

/// An open, validated safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    data_start: usize,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    range: (usize, usize),
}

impl SafetensorsFile {
    /// Maps and validates the file at `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        Self::parse(path.to_owned(), Bytes::map(path)?)
    }

    /// Validates bytes that are already in memory; `path` names them in errors.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, EngineError> {
        Self::parse(path.into(), Bytes::owned(bytes))
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The `__metadata__` map.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Everything in the file, header included.
    #[must_use]
    pub fn file_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Looks a tensor of floats up by name.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, EngineError> {
        let (name, entry, bytes) = self.entry(name)?;
        let dtype = known_dtype(&entry.dtype)
            .ok_or_else(|| self.wrong_dtype(name, entry, "F32, F16 and BF16"))?;
        Ok(TensorView {
            file: &self.path,
            name,
            dtype,
            shape: &entry.shape,
            bytes,
        })
    }

    /// The elements of a tensor of integers (I32, I64 or U8), row-major.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>, EngineError> {
        let (name, entry, bytes) = self.entry(name)?;
        let words = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| i64::from(i32::from_le_bytes(*b)));
        match entry.dtype.as_str() {
            "I32" => Ok(words.collect()),
            "I64" => Ok(bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b))
                .collect()),
            "U8" => Ok(bytes.iter().map(|b| i64::from(*b)).collect()),
            _ => Err(self.wrong_dtype(name, entry, "I32, I64 and U8")),
        }
    }

    /// The shape of a tensor of any type.
    pub fn shape(&self, name: &str) -> Result<&[usize], EngineError> {
        self.entry(name).map(|(_, entry, _)| entry.shape.as_slice())
    }

    fn entry(&self, name: &str) -> Result<(&String, &Entry, &[u8]), EngineError> {
        let Some((name, entry)) = self.entries.get_key_value(name) else {
            return Err(EngineError::TensorMissing {
                file: self.path.clone(),
                tensor: name.to_owned(),
            });
        };
        let data = &self.bytes.as_slice()[self.data_start..];
        Ok((name, entry, &data[entry.range.0..entry.range.1]))
    }

    fn wrong_dtype(&self, name: &str, entry: &Entry, readable: &'static str) -> EngineError {
        EngineError::TensorDtype {
            file: self.path.clone(),
            tensor: name.to_owned(),
            dtype: entry.dtype.clone(),
            readable,
        }
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Self, EngineError> {
        let all = bytes.as_slice();
        let actual_bytes = all.len() as u64;
        let truncated = |what: &str, needed_bytes: u64| EngineError::Truncated {
            file: path.clone(),
            what: what.to_owned(),
            needed_bytes,
            actual_bytes,
        };
        let Some(length) = all.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
            return Err(truncated("the header length", 8));
        };
        if length > HEADER_BYTES_MAX {
            let reason = format!("header of {length} bytes, at most {HEADER_BYTES_MAX} are read");
            return Err(EngineError::SafetensorsHeader { file: path, reason });
        }
        let data_start = 8 + length as usize;
        let Some(json) = all.get(8..data_start) else {
            return Err(truncated("the header", data_start as u64));
        };
        let header: Header =
            serde_json::from_slice(json).map_err(|e| EngineError::SafetensorsHeader {
                file: path.clone(),
                reason: e.to_string(),
            })?;
        let data_bytes = all.len() - data_start;
        let entries = check_entries(&path, header.tensors, data_start, data_bytes)?;
        Ok(Self {
            path,
            bytes,
            data_start,
            entries,
            metadata: header.metadata,
        })
    }
}

/// Compares every entry with its neighbours and with the file's length.
fn check_entries(
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

fn known_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .find(|dtype| dtype.name() == name)
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct Header {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
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

/// One tensor to be written.
#[derive(Debug, Clone)]
pub struct TensorData<'a> {
    /// Its name.
    pub name: String,
    /// Row-major shape; its product is `data.len()`.
    pub shape: Vec<usize>,
    /// Number format to store; values are rounded to nearest even.
    pub dtype: Dtype,
    /// The values.
    pub data: &'a [f32],
}

/// The bytes of a file with these tensors, in this order. Equal input gives equal bytes.
pub fn serialize(
    tensors: &[TensorData<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, EngineError> {
    let mut fields = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        fields.push(format!("\"__metadata__\":{}", serde_json::json!(metadata)));
    }
    let mut end = 0usize;
    for tensor in tensors {
        if tensor.shape.iter().product::<usize>() != tensor.data.len() {
            let what = format!(
                "{} has {} values for shape {:?}",
                tensor.name,
                tensor.data.len(),
                tensor.shape
            );
            return Err(EngineError::InvalidArgument { what });
        }
        let begin = end;
        end += tensor.data.len() * tensor.dtype.bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end],
        });
        fields.push(format!("{}:{entry}", serde_json::json!(tensor.name)));
    }
    let mut header = format!("{{{}}}", fields.join(","));
    // The format asks for 8-byte alignment of the data, padded with spaces.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = Vec::with_capacity(8 + header.len() + end);
    out.extend_from_slice(&(header.len() as u64).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    for tensor in tensors {
        append_values(&mut out, tensor);
    }
    Ok(out)
}

/// Writes a file with these tensors: to a neighbour first, then renamed, so that a reader
/// never meets half a file.
pub fn write(
    path: &Path,
    tensors: &[TensorData<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), EngineError> {
    let bytes = serialize(tensors, metadata)?;
    let partial = path.with_extension("partial");
    let io = |source| EngineError::io(path, source);
    let mut file = File::create(&partial).map_err(io)?;
    file.write_all(&bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

fn append_values(out: &mut Vec<u8>, tensor: &TensorData<'_>) {
    match tensor.dtype {
        Dtype::F32 => tensor
            .data
            .iter()
            .for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Dtype::F16 => {
            tensor
                .data
                .iter()
                .for_each(|v| out.extend_from_slice(&f16::from_f32(*v).to_le_bytes()));
        }
        Dtype::Bf16 => {
            tensor
                .data
                .iter()
                .for_each(|v| out.extend_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
    }
}
