//! A hundred thousand power cuts, kills, failed syncs and full disks, in memory.
//!
//! The disk keeps what was synced; of what was written since, each block of 512 bytes is kept or
//! not by the draw. A failed sync leaves pages that the kernel believes to be clean, so a later
//! sync reports success without writing them: readers see bytes that the next power cut takes.
//!
//! The promise: whatever was told to be safe (by a sync, or because it was there when the file was
//! opened) is there after everything that follows, in its order, and nothing else is.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::format::SEGMENT_START;
use super::medium::{Medium, Source};
use super::*;

const BLOCK: usize = 512;

/// Cuts of one run: some seconds.
const CUTS: u32 = 100_000;

/// Life goes on in a fresh file after this many bytes, or walking it would take all the time.
const FILE_BYTES: u64 = 4 << 10;

const SEED: u64 = 0x5eed_d15c;

/// SplitMix64.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One file on a disk that fails.
#[derive(Debug, Default)]
struct Disk {
    /// What readers see.
    cache: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    /// Blocks that differ, as far as the kernel knows.
    dirty: std::collections::BTreeSet<usize>,
    draw: Option<Draw>,
    /// Calls until one fails, if any is to.
    fails_in: Option<u64>,
}

impl Disk {
    fn fails(&mut self) -> bool {
        if let Some(left) = &mut self.fails_in {
            *left = left.wrapping_sub(1);
            return *left == u64::MAX;
        }
        false
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / BLOCK..to.div_ceil(BLOCK));
    }

    fn store(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        let before = self.cache.len();
        if end > before {
            self.cache.resize(end, 0);
            self.touch(before, end);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        self.touch(offset, end);
    }

    /// Brings these blocks to the disk.
    fn write_back(&mut self, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            let from = block * BLOCK;
            let to = (from + BLOCK).min(self.cache.len());
            if from >= to {
                continue;
            }
            if self.durable.len() < to {
                self.durable.resize(to, 0);
            }
            self.durable[from..to].copy_from_slice(&self.cache[from..to]);
        }
    }

    fn some_dirty(&mut self) -> Vec<usize> {
        let mut draw = self.draw.take().expect("a disk of a test");
        let some = self.dirty.iter().copied().filter(|_| draw.one_in(2));
        let some = some.collect();
        self.draw = Some(draw);
        some
    }

    fn power_cut(&mut self) {
        let some = self.some_dirty();
        self.write_back(some);
        self.cache.clone_from(&self.durable);
        self.dirty.clear();
    }
}

#[derive(Clone, Debug)]
struct Handle(Arc<Mutex<Disk>>);

impl Handle {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("one thread")
    }
}

impl Source for Handle {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.disk();
        let rest = disk.cache.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk().cache.len() as u64)
    }
}

impl Medium for Handle {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.fails() {
            // A short write: some of it is there.
            let most = bytes.len() as u64 + 1;
            let kept = disk.draw.as_mut().map_or(0, |draw| draw.below(most));
            disk.store(&bytes[..kept as usize], offset as usize);
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        disk.store(bytes, offset as usize);
        Ok(())
    }

    fn set_length(&mut self, length: u64) -> io::Result<()> {
        let (mut disk, length) = (self.disk(), length as usize);
        let before = disk.cache.len();
        disk.cache.resize(length, 0);
        // A file's length is durable with its next sync; here, at once: blocks that are gone
        // cannot come back, which is the harder case for a reader that trusts the length.
        disk.durable.truncate(length);
        disk.dirty.retain(|block| block * BLOCK < length);
        if length > before {
            disk.touch(before, length);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.fails() {
            let some = disk.some_dirty();
            disk.write_back(some);
            disk.dirty.clear();
            return Err(io::Error::from_raw_os_error(5));
        }
        let all = std::mem::take(&mut disk.dirty);
        disk.write_back(all);
        Ok(())
    }

    fn source(&self) -> io::Result<Box<dyn Source>> {
        Ok(Box::new(self.clone()))
    }
}

/// What a role has said about one file.
#[derive(Debug, Default)]
struct Promises {
    /// Everything that was ever appended, in order.
    appended: Vec<Vec<u8>>,
    /// So many of them are safe.
    safe: usize,
}

/// Opens the file as a role does after its start, and compares it with what was promised.
fn open(disk: &Handle, promises: &mut Promises, seed: u64, cut: u32) -> SegmentWriter {
    let path = Path::new("sim.seg");
    let opened = SegmentWriter::open_on(Box::new(disk.clone()), path);
    let (writer, recovery) = opened.unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: {e}"));
    let reader = SegmentReader::of(Box::new(disk.clone()), path);
    let read: Vec<Vec<u8>> = reader
        .records(SEGMENT_START)
        .map(|record| record.expect("whole").payload)
        .collect();
    let place = format!("seed {seed}, cut {cut}");
    assert_eq!(read.len() as u64, recovery.records, "{place}");
    assert!(read.len() >= promises.safe, "{place}: lost what was safe");
    assert!(
        read == promises.appended[..read.len()],
        "{place}: other records"
    );
    // The role tells its peers what it found.
    promises.appended.truncate(read.len());
    promises.safe = read.len();
    writer
}

/// Writes until something happens.
fn live(mut writer: SegmentWriter, disk: &Handle, promises: &mut Promises, draw: &mut Draw) {
    if draw.one_in(3) {
        disk.disk().fails_in = Some(draw.below(6));
    }
    for _ in 0..draw.below(8) {
        let payload = vec![promises.appended.len() as u8; 1 + draw.below(180) as usize];
        promises.appended.push(payload.clone());
        if writer.append(&payload).is_err() {
            break;
        }
        let done = match draw.below(10) {
            0..6 => writer.sync(),
            6 => writer.flush(),
            7 => writer.seal(),
            _ => continue,
        };
        if done.is_err() {
            break;
        }
        if writer.synced_end() == writer.end() {
            promises.safe = promises.appended.len();
        }
    }
    disk.disk().fails_in = None;
    if draw.one_in(2) {
        // Killed: what was gathered in memory is gone, what was written is in the cache.
        std::mem::forget(writer);
    } else {
        drop(writer);
    }
    if !draw.one_in(4) {
        disk.disk().power_cut();
    }
}

#[test]
fn nothing_that_was_safe_is_lost_by_a_hundred_thousand_power_cuts() {
    let mut draw = Draw(SEED);
    let (mut disk, mut promises) = (fresh(&mut draw), Promises::default());
    let (mut kept, mut files) = (0, 1);
    for cut in 0..CUTS {
        let writer = open(&disk, &mut promises, SEED, cut);
        kept += promises.safe;
        if writer.end() > FILE_BYTES {
            (disk, promises) = (fresh(&mut draw), Promises::default());
            files += 1;
            continue;
        }
        live(writer, &disk, &mut promises, &mut draw);
    }
    // The draw has met what it should: records that survived, in many files.
    assert!(kept > CUTS as usize && files > 1_000, "{kept} {files}");
}

fn fresh(draw: &mut Draw) -> Handle {
    let disk = Disk {
        draw: Some(Draw(draw.next())),
        ..Disk::default()
    };
    Handle(Arc::new(Mutex::new(disk)))
}

#[test]
fn a_sync_that_failed_in_an_earlier_life_is_made_good() {
    let disk = fresh(&mut Draw(1));
    let mut promises = Promises::default();
    let mut writer = open(&disk, &mut promises, 1, 0);
    writer.append(b"unsafe").expect("append");
    disk.disk().fails_in = Some(1);
    writer.sync().expect_err("the disk says no");
    disk.disk().fails_in = None;
    // Worst case: nothing of it reached the disk, and the kernel thinks that it is clean.
    disk.disk().durable.truncate(SEGMENT_START as usize);
    std::mem::forget(writer);
    promises.appended.push(b"unsafe".to_vec());
    drop(open(&disk, &mut promises, 1, 1));
    assert_eq!(
        promises.safe, 1,
        "the next life found it and told its peers"
    );
    disk.disk().power_cut();
    drop(open(&disk, &mut promises, 1, 2));
    assert_eq!(promises.safe, 1);
}
