//! The bytes of one file of packed weights.
//!
//! ```text
//! magic, version, lanes, byte order, number of matrices, digest of the model
//! per matrix: format, length of name, name, n, k, offset, bytes         zeros to a page
//! per matrix: its panels, in the byte order of the machine              zeros to a page
//! per matrix: CRC-32 of its pages
//! ```
//!
//! Matrices begin on pages: panels are read in rows of 64 bytes, which then are cache lines.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::cpu::LANES;
use crate::cpu::pack::{Format, PackedWeights};
use crate::error::EngineError;
use crate::mapped::Bytes;

const MAGIC: [u8; 16] = *b"volley packed\r\n\0";

/// Rises with every change to what packed weights of a given checkpoint look like: to this
/// format, to the order of the panels, to the rounding. A test holds the bytes.
const VERSION: u32 = 1;

/// Reads as another number where the bytes have the other order.
const BYTE_ORDER: u32 = 0x0102_0304;

/// Every machine that this runs on has pages of this size, or of a multiple.
const PAGE: usize = 4096;

/// Bytes of one checksum.
const SUM: usize = size_of::<u32>();

/// One matrix of a file: its name there, its number format and its sizes.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// Why no file could be made.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The matrices themselves cannot be made.
    Making(EngineError),
    /// The cache cannot be used; the model can.
    Cache(String),
}

/// Why a file is not used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It is not what was written, or not ours: another takes its place.
    Damaged(String),
    /// The operating system refused what is named. That says nothing about the file, which
    /// others may be using.
    Unreadable(&'static str, io::Error),
}

impl Trouble {
    pub(super) fn io(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::Cache(format!("cannot {what} {}: {error}", path.display()))
    }
}

/// What a file with certain matrices looks like.
pub(super) struct Layout {
    header: Vec<u8>,
    places: Vec<Place>,
    file_bytes: usize,
}

struct Place {
    format: Format,
    shape: [usize; 2],
    /// Whole pages.
    pages: Range<usize>,
    bytes: usize,
}

impl Layout {
    /// Lays the matrices of a model out; `None` when no file can be that large.
    pub(super) fn new(digest: &[u8; 32], matrices: &[Matrix]) -> Option<Self> {
        // Its length must be known before the places are, which stand in it.
        let entries = matrices.iter().map(|matrix| 2 + matrix.name.len() + 4 * 8);
        let header_bytes = MAGIC.len() + 4 * 4 + digest.len() + entries.sum::<usize>();
        let mut header = Vec::with_capacity(header_bytes.next_multiple_of(PAGE));
        header.extend(MAGIC);
        let count = u32::try_from(matrices.len()).ok()?;
        for word in [VERSION, LANES as u32, BYTE_ORDER, count] {
            header.extend(word.to_ne_bytes());
        }
        header.extend(digest);
        let mut at = header_bytes.next_multiple_of(PAGE);
        let mut places = Vec::with_capacity(matrices.len());
        for Matrix { name, format, n, k } in matrices {
            let bytes = format.bytes(*n, *k)?;
            let end = at.checked_add(bytes)?.checked_next_multiple_of(PAGE)?;
            header.push(match format {
                Format::F32 => 0,
                Format::Bf16 => 1,
            });
            header.push(u8::try_from(name.len()).ok()?);
            header.extend(name.as_bytes());
            for number in [*n, *k, at, bytes] {
                header.extend((number as u64).to_ne_bytes());
            }
            places.push(Place {
                format: *format,
                shape: [*n, *k],
                pages: at..end,
                bytes,
            });
            at = end;
        }
        debug_assert_eq!(header.len(), header_bytes, "the entries have these sizes");
        header.resize(header_bytes.next_multiple_of(PAGE), 0);
        Some(Self {
            header,
            file_bytes: at.checked_add(SUM * places.len())?,
            places,
        })
    }

    /// The file's name: equal names, equal headers.
    pub(super) fn file_name(&self) -> String {
        let digest = Sha256::digest(&self.header);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        hex + super::directory::SUFFIX
    }

    pub(super) const fn file_bytes(&self) -> u64 {
        self.file_bytes as u64
    }

    /// Writes a file; `make` returns the matrices, which are in memory one at a time.
    pub(super) fn write(
        &self,
        to: &File,
        make: &dyn Fn(usize) -> Result<PackedWeights, EngineError>,
    ) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::Cache(format!("writing a file failed: {error}"));
        let mut to = to;
        to.write_all(&self.header).map_err(failed)?;
        let mut sums = Vec::with_capacity(SUM * self.places.len());
        for (index, place) in self.places.iter().enumerate() {
            let weights = make(index).map_err(Trouble::Making)?;
            let panels = weights.as_bytes();
            let made = (weights.format(), [weights.n(), weights.k()], panels.len());
            assert_eq!(made, (place.format, place.shape, place.bytes), "as planned");
            let zeros = &[0; PAGE][..place.pages.len() - panels.len()];
            let mut sum = crc32fast::Hasher::new();
            for part in [panels, zeros] {
                sum.update(part);
                to.write_all(part).map_err(failed)?;
            }
            sums.extend(sum.finalize().to_le_bytes());
        }
        to.write_all(&sums).map_err(failed)
    }

    /// Maps a file that is exactly as this layout says; otherwise what differs.
    pub(super) fn map(&self, file: &File) -> Result<Bytes, Unusable> {
        let damaged = |why: &str| Err(Unusable::Damaged(why.to_owned()));
        let found = file.metadata();
        let found = found.map_err(|error| Unusable::Unreadable("look at", error))?;
        let (length, expected) = (found.len(), self.file_bytes());
        if length != expected {
            return damaged(&format!("it has {length} bytes instead of {expected}"));
        }
        let bytes = Bytes::of(file).map_err(|error| Unusable::Unreadable("map", error))?;
        let all = bytes.as_slice();
        // Its length may have changed in between; then the parts are not there.
        let part = |range: Range<usize>| all.get(range).unwrap_or_default();
        if part(0..self.header.len()) != self.header {
            return damaged("its header is another");
        }
        let sums = part(self.file_bytes - SUM * self.places.len()..self.file_bytes);
        let sums = sums.as_chunks::<SUM>().0;
        let right = |(place, sum): (&Place, &[u8; SUM])| {
            crc32fast::hash(part(place.pages.clone())).to_le_bytes() == *sum
        };
        if sums.len() != self.places.len() || !self.places.iter().zip(sums).all(right) {
            return damaged("a checksum is wrong");
        }
        Ok(bytes)
    }

    /// The matrices of a mapped file, where they are.
    pub(super) fn weights(&self, bytes: &Arc<Bytes>) -> Result<Vec<PackedWeights>, Unusable> {
        let found = self.places.iter().map(|place| {
            PackedWeights::in_place(place.format, place.shape, bytes, place.pages.start)
        });
        let found: Option<_> = found.collect();
        found.ok_or_else(|| Unusable::Damaged("its matrices do not lie in it".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n: usize, k: usize, format: Format) -> Matrix {
        Matrix {
            name: format!("{n}x{k}"),
            format,
            n,
            k,
        }
    }

    #[test]
    fn places_are_whole_pages_one_after_the_other() {
        let matrices = [
            matrix(17, 3, Format::F32),
            matrix(1, 1, Format::Bf16),
            matrix(1000, 77, Format::Bf16),
        ];
        let layout = Layout::new(&[7; 32], &matrices).expect("small");
        let mut at = layout.header.len();
        for place in &layout.places {
            assert_eq!((place.pages.start, place.pages.start % PAGE), (at, 0));
            assert!(place.bytes <= place.pages.len() && place.pages.len() < place.bytes + PAGE);
            at = place.pages.end;
        }
        assert_eq!(layout.file_bytes, at + 3 * SUM);
        let bytes: Vec<_> = layout.places.iter().map(|place| place.bytes).collect();
        assert_eq!(bytes, [2 * 3 * 64, 64, 63 * 39 * 64]);
    }

    #[test]
    fn whatever_differs_gives_another_name() {
        let name = |digest: u8, matrix: Matrix| {
            let layout = Layout::new(&[digest; 32], &[matrix]);
            layout.expect("small").file_name()
        };
        let mut names = vec![
            name(1, matrix(2, 4, Format::F32)),
            name(2, matrix(2, 4, Format::F32)),
            name(1, matrix(4, 2, Format::F32)),
            name(1, matrix(2, 4, Format::Bf16)),
        ];
        let mut renamed = matrix(2, 4, Format::F32);
        renamed.name.push('T');
        names.push(name(1, renamed));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn sizes_that_overflow_have_no_layout() {
        for [n, k] in [
            [usize::MAX, 1],
            [usize::MAX, usize::MAX],
            [1 << 40, 1 << 40],
        ] {
            assert!(Layout::new(&[0; 32], &[matrix(n, k, Format::F32)]).is_none());
        }
        let half = matrix(1 << 32, 1 << 29, Format::F32);
        let many = vec![half; 9];
        assert!(Layout::new(&[0; 32], &many).is_none());
    }
}
