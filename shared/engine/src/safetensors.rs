//! Reading and writing safetensors files, written for files that nobody vouches for.
//!
//! Layout: `u64` little-endian header length, a JSON object `name -> {dtype, shape,
//! data_offsets}`, then the tensors' bytes. A file is accepted only when its header is at
//! most [`HEADER_BYTES_MAX`] long and names no tensor twice, when every tensor's byte range
//! is exactly as long as its shape and type say, and when the ranges tile the data section
//! without gap, overlap or rest. Nothing is allocated from a number in the file before that
//! number was compared with the file's length.

mod header;
mod origin;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use header::{Header, check_entries};
use origin::Origin;
pub use write::{TensorData, serialize, write};

use crate::error::EngineError;
use crate::mapped::Bytes;

/// Longest accepted header. The largest published checkpoints need well under 1 MiB per
/// shard; the bound keeps a hostile length from becoming an allocation.
pub const HEADER_BYTES_MAX: u64 = 8 << 20;

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

    /// Fails if an element is NaN or infinite: nothing could be computed with it, and what was
    /// computed would say nothing about why.
    pub fn expect_finite(self) -> Result<Self, EngineError> {
        // All bits of the exponent.
        let nonfinite = |bits: u32, exponent: u32| bits & exponent == exponent;
        let pairs = || self.bytes.as_chunks::<2>().0.iter();
        let half = |b: &[u8; 2]| u32::from(u16::from_le_bytes(*b));
        let index = match self.dtype {
            Dtype::F32 => {
                let mut all = self.bytes.as_chunks::<4>().0.iter();
                all.position(|b| nonfinite(u32::from_le_bytes(*b), 0x7f80_0000))
            }
            Dtype::Bf16 => pairs().position(|b| nonfinite(half(b), 0x7f80)),
            Dtype::F16 => pairs().position(|b| nonfinite(half(b), 0x7c00)),
        };
        match index {
            None => Ok(self),
            Some(index) => Err(EngineError::TensorNonfinite {
                file: self.file.to_owned(),
                tensor: self.name.to_owned(),
                index,
            }),
        }
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
    /// `None` when the bytes came from memory.
    origin: Option<Origin>,
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
        let failed = |error| EngineError::io(path, error);
        let origin = Origin::open(path).map_err(failed)?;
        let bytes = Bytes::of(origin.file()).map_err(failed)?;
        let parsed = Self::parse(path.to_owned(), bytes)?;
        Ok(Self {
            origin: Some(origin),
            ..parsed
        })
    }

    /// Whether the open file is still the one that was opened: what was read since then belongs
    /// together. Another file under its name does not count.
    ///
    /// # Errors
    ///
    /// Something has written into it, or it cannot be looked at.
    pub fn check_unchanged(&self) -> Result<(), EngineError> {
        let Some(origin) = &self.origin else {
            return Ok(());
        };
        match origin.is_unchanged() {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::ModelChanged {
                file: self.path.clone(),
            }),
            Err(error) => Err(EngineError::io(&self.path, error)),
        }
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
            origin: None,
            data_start,
            entries,
            metadata: header.metadata,
        })
    }
}

fn known_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .find(|dtype| dtype.name() == name)
}
