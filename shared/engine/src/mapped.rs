//! Bytes of a file: mapped, or owned when they came from elsewhere.
#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe; this is the only place that does it"
)]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::Mmap;

/// Read-only bytes.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A mapped file.
    Mapped(Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps an open file; an empty one (which cannot be mapped) becomes an empty buffer.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is read-only and every view of it borrows from `self`, so all that
        // remains is that the mapped inode keeps its content. Checkpoints are replaced by rename,
        // never written in place. Packed files are created without write permission in a
        // directory that nobody else may enter, and afterwards only renamed and unlinked, which
        // leaves the inode of a mapping alone. The same holds for the adapters that processes of a
        // host share (`host_adapters.rs` of the runtime). Whoever overrides that as the same user could as
        // well kill the process, and a truncation does (SIGBUS); an advisory lock would not stop
        // it.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self::Mapped(map))
    }

    /// Wraps bytes in memory.
    pub(crate) const fn owned(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A file of this user that is never written again, only renamed and unlinked: its bytes, which
/// all processes share that map it.
#[derive(Debug)]
pub struct SharedFile(Bytes);

impl SharedFile {
    /// Maps an open file.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn map(file: &File) -> io::Result<Self> {
        Bytes::of(file).map(Self)
    }

    /// All of its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// A list of numbers: owned, or in place in bytes that others hold too.
#[derive(Debug, Clone)]
pub(crate) struct Elements<T>(Place<T>);

#[derive(Debug, Clone)]
enum Place<T> {
    Owned(Vec<T>),
    /// The range lies inside the bytes, is aligned for `T` and holds whole elements.
    Shared(Arc<Bytes>, Range<usize>),
}

impl<T: Pod> Elements<T> {
    /// The elements in that range; `None` when it is outside, misaligned or ends in an element.
    pub(crate) fn in_place(bytes: &Arc<Bytes>, range: Range<usize>) -> Option<Self> {
        let found = bytes.as_slice().get(range.clone())?;
        bytemuck::try_cast_slice::<u8, T>(found).ok()?;
        Some(Self(Place::Shared(Arc::clone(bytes), range)))
    }
}

impl<T> From<Vec<T>> for Elements<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(Place::Owned(elements))
    }
}

impl<T: Pod> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Owned(elements) => elements,
            // Checked when it was made; neither the bytes nor the range have changed since.
            Place::Shared(bytes, range) => bytemuck::cast_slice(&bytes.as_slice()[range.clone()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_hold_no_whole_elements_are_refused() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), [1u8; 64]).expect("writable");
        let bytes = Arc::new(Bytes::of(file.as_file()).expect("it is mapped"));
        let elements = |range| Elements::<[u32; 4]>::in_place(&bytes, range);
        let whole = elements(16..48).expect("aligned and inside");
        assert_eq!(&*whole, [[0x0101_0101; 4]; 2]);
        for range in [2..18, 0..20, 48..80, 65..81, usize::MAX - 15..usize::MAX] {
            assert!(elements(range.clone()).is_none(), "{range:?}");
        }
        // Ranges that end before they begin come from an overflow.
        let reversed = Range { start: 32, end: 16 };
        assert!(elements(reversed).is_none());
    }
}
