//! SQLite's write-ahead log, looked at before SQLite does.
//!
//! SQLite believes a log up to the first frame whose checksum is wrong and forgets the rest. That
//! is right for a torn last commit, which nobody was told of. It is wrong for a damaged frame in
//! the middle: with `synchronous=FULL` a commit is synced before the next one begins, so what stands
//! before a whole later commit was acknowledged. Then the store is refused.
//!
//! ```text
//! file   [32 header: magic, version, page size, sequence, 2 salts, 2 checksums] frame*
//! frame  [u32 page][u32 pages after commit, or 0][2 salts][2 checksums][page]
//! ```
//!
//! All numbers are big-endian. A frame's checksum continues the one of the frame before it, which
//! stands in that frame: so each frame can be checked alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::segment::Damage;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// The last bit tells the byte order of the checksums.
const MAGIC: u32 = 0x377f_0682;

const PAGE_BYTES_MIN: u32 = 512;
const PAGE_BYTES_MAX: u32 = 65_536;

type Sum = [u32; 2];

/// The first damage before a commit that was synced; `None` when SQLite may read the log.
///
/// # Errors
/// What the system says; a log that is not there is no error.
pub(super) fn damage(database: &Path, wal: &Path) -> io::Result<Option<Damage>> {
    let file = match File::open(wal) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length < (HEADER_BYTES + FRAME_HEADER_BYTES) as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let Some(log) = Log::of(&header) else {
        return Ok(headless(database, &file, length, &header)?.then(|| Damage {
            offset: 0,
            what: "the header of the log does not match its checksum, and commits follow it"
                .to_owned(),
        }));
    };
    log.walk(&file, length)
}

/// What the header says.
struct Log {
    page_bytes: usize,
    little_endian: bool,
    salts: [u8; 8],
    seed: Sum,
}

struct Frame {
    commits: bool,
    /// Its salts are the log's, but for a flipped bit or two.
    is_ours: bool,
    /// As it is stored and as it should be: one of the two is what the next frame continues.
    sums: [Sum; 2],
    /// Right, if the frame before is.
    follows: bool,
}

impl Log {
    fn of(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, page_bytes) = (word(header, 0), word(header, 8));
        let seed = [word(header, 24), word(header, 28)];
        let known = magic & !1 == MAGIC && page_bytes.is_power_of_two();
        let known = known && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
        let little_endian = magic & 1 == 0;
        if !known || checksum([0, 0], &header[..24], little_endian) != seed {
            return None;
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        Some(Self {
            page_bytes: page_bytes as usize,
            little_endian,
            salts,
            seed,
        })
    }

    fn frame_bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES + self.page_bytes) as u64
    }

    fn frame(&self, bytes: &[u8], before: [Sum; 2]) -> Frame {
        let stored = [word(bytes, 16), word(bytes, 20)];
        let due = before.map(|before| {
            let sum = checksum(before, &bytes[..8], self.little_endian);
            checksum(sum, &bytes[FRAME_HEADER_BYTES..], self.little_endian)
        });
        let salts = bytes[8..16].iter().zip(&self.salts);
        let differs: u32 = salts.map(|(a, b)| (a ^ b).count_ones()).sum();
        Frame {
            commits: word(bytes, 4) != 0,
            is_ours: differs <= 2,
            sums: [stored, due[0]],
            follows: differs == 0 && due.contains(&stored),
        }
    }

    /// Looks for a frame that is wrong, a commit at or after it, and a right frame after that.
    fn walk(&self, file: &File, length: u64) -> io::Result<Option<Damage>> {
        let mut bytes = vec![0; self.frame_bytes() as usize];
        let (mut at, mut before) = (HEADER_BYTES as u64, [self.seed; 2]);
        let (mut broken, mut commit_behind): (Option<u64>, bool) = (None, false);
        while at + self.frame_bytes() <= length {
            file.read_exact_at(&mut bytes, at)?;
            let frame = self.frame(&bytes, before);
            if let (Some(offset), true, true) = (broken, commit_behind, frame.follows) {
                let what = "a frame of the log does not match its checksum, and was synced once";
                return Ok(Some(Damage {
                    offset,
                    what: what.to_owned(),
                }));
            }
            if !frame.follows && broken.is_none() {
                broken = Some(at);
            }
            // Of a frame that was not written, or is left over from before the log was begun anew,
            // nothing can be said: it may be a hole in the one commit that was under way.
            commit_behind |= broken.is_some() && frame.commits && frame.is_ours;
            before = frame.sums;
            at += self.frame_bytes();
        }
        Ok(None)
    }
}

/// A log without a usable header: do whole frames follow, of a log that was not finished with?
fn headless(
    database: &Path,
    file: &File,
    length: u64,
    header: &[u8; HEADER_BYTES],
) -> io::Result<bool> {
    let page_bytes = page_bytes(database)?;
    for little_endian in [true, false] {
        let mut log = Log {
            page_bytes,
            little_endian,
            salts: [0; 8],
            seed: [0, 0],
        };
        let mut bytes = vec![0; log.frame_bytes() as usize];
        let mut at = HEADER_BYTES as u64;
        let mut before = None;
        while at + log.frame_bytes() <= length {
            file.read_exact_at(&mut bytes, at)?;
            log.salts.copy_from_slice(&bytes[8..16]);
            // Salts of the header that this log was begun with, but for the damage.
            let kin = (16..24).filter(|i| header[*i] == bytes[i - 8]).count() >= 4;
            let frame = log.frame(&bytes, before.unwrap_or_default());
            if before.is_some() && frame.follows && kin {
                return Ok(true);
            }
            before = Some(frame.sums);
            at += log.frame_bytes();
        }
    }
    Ok(false)
}

/// The page size of the database; SQLite's own when there is no database yet.
fn page_bytes(database: &Path) -> io::Result<usize> {
    const DEFAULT: usize = 4096;
    let mut bytes = [0; 2];
    match File::open(database).and_then(|file| file.read_exact_at(&mut bytes, 16)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(DEFAULT),
        Err(error) => return Err(error),
    }
    let size = match u16::from_be_bytes(bytes) {
        1 => PAGE_BYTES_MAX as usize,
        size => usize::from(size),
    };
    Ok(
        if size.is_power_of_two() && size >= PAGE_BYTES_MIN as usize {
            size
        } else {
            DEFAULT
        },
    )
}

/// SQLite's own checksum over pairs of words.
fn checksum(from: Sum, bytes: &[u8], little_endian: bool) -> Sum {
    let [mut a, mut b] = from;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if little_endian {
                u32::from_le_bytes(bytes)
            } else {
                u32::from_be_bytes(bytes)
            }
        };
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    [a, b]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
