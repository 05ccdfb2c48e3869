//! What a segment lies on: a file, or in tests a disk that fails and loses power.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes that can be read anywhere, also while somebody appends.
pub(super) trait Source: Debug + Send + Sync {
    /// Reads some bytes at `offset`; 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// How many there are.
    fn length(&self) -> io::Result<u64>;
}

/// Bytes that can be changed and made durable. The segment's writer is the only one to do so.
pub(super) trait Medium: Debug + Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or lengthens.
    fn set_length(&mut self, length: u64) -> io::Result<()>;
    /// Returns when everything written so far is durable.
    fn sync(&mut self) -> io::Result<()>;
    /// The same bytes for reading.
    fn source(&self) -> io::Result<Box<dyn Source>>;
}

impl Source for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|found| found.len())
    }
}

impl Medium for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_length(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn source(&self) -> io::Result<Box<dyn Source>> {
        Ok(Box::new(self.try_clone()?))
    }
}
