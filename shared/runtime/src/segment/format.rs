//! The bytes of a segment: pure functions, no files.

use super::reader::Record;

/// First bytes of every segment. The newline shows a copy in text mode.
const MAGIC: [u8; 8] = *b"VLYSEGM\n";

/// Format that this build writes, and the only one it reads.
pub(super) const VERSION: u32 = 1;

/// Offset of the first record.
pub const SEGMENT_START: u64 = HEADER_BYTES as u64;

/// Longest payload of a record. A trajectory has less than 1 MiB, a batch of them 4 MiB.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const HEAD_BYTES: usize = 12;

/// Why a file's first bytes are not a header of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Foreign,
    Version(u32),
}

/// Where parsing stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The bytes end before the record does, which has this many bytes, head included.
    Short(usize),
    /// The record is not what was written.
    Damaged(&'static str),
}

/// Records found in a piece of a segment.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) records: Vec<Record>,
    /// Bytes of complete records and marks.
    pub(super) bytes: usize,
    pub(super) stop: Stop,
}

pub(super) fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

pub(super) fn check_header(bytes: &[u8; HEADER_BYTES]) -> Result<(), BadHeader> {
    if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..12]) != word(bytes, 12) {
        return Err(BadHeader::Foreign);
    }
    match word(bytes, 8) {
        VERSION => Ok(()),
        other => Err(BadHeader::Version(other)),
    }
}

/// Appends a record (or, without payload, a mark) that will stand at `offset`.
pub(super) fn push_record(out: &mut Vec<u8>, offset: u64, payload: &[&[u8]]) {
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    debug_assert!(bytes <= RECORD_BYTES_MAX, "checked by the caller");
    let length = bytes as u32;
    let mut hasher = crc32fast::Hasher::new();
    payload.iter().for_each(|part| hasher.update(part));
    let body_crc = hasher.finalize();
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&head_crc(length, body_crc, offset).to_le_bytes());
    out.extend_from_slice(&body_crc.to_le_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

/// Reads records from `bytes`, which stand at `offset`, until one is incomplete or broken, or
/// until the records together have more than `bytes_max` bytes (but always at least one).
pub(super) fn parse(bytes: &[u8], offset: u64, bytes_max: usize) -> Parsed {
    let mut records = Vec::new();
    let (bytes, stop) = visit(bytes, offset, bytes_max, |offset, payload| {
        let payload = payload.to_vec();
        records.push(Record { offset, payload });
    });
    Parsed {
        records,
        bytes,
        stop,
    }
}

/// As [`parse`], showing each record where it lies. Tells how many bytes complete records and
/// marks have, and where it stopped.
pub(super) fn visit(
    bytes: &[u8],
    offset: u64,
    bytes_max: usize,
    mut each: impl FnMut(u64, &[u8]),
) -> (usize, Stop) {
    let (mut at, mut payload_bytes) = (0, 0);
    loop {
        let here = offset + at as u64;
        let Some(head) = bytes[at..].first_chunk::<HEAD_BYTES>() else {
            return (at, Stop::Short(HEAD_BYTES));
        };
        let Some(length) = check_head(head, here) else {
            return (at, Stop::Damaged("its head does not match its checksum"));
        };
        let whole = HEAD_BYTES + length;
        let Some(payload) = bytes[at..].get(HEAD_BYTES..whole) else {
            return (at, Stop::Short(whole));
        };
        if crc32fast::hash(payload) != word(head, 8) {
            return (at, Stop::Damaged("its payload does not match its checksum"));
        }
        if payload_bytes > 0 && payload_bytes + length > bytes_max {
            return (at, Stop::Short(whole));
        }
        payload_bytes += length;
        if length > 0 {
            each(here, payload);
        }
        at += whole;
    }
}

/// Is there a mark in `bytes`, which stand at `offset`?
pub(super) fn has_mark(bytes: &[u8], offset: u64) -> bool {
    let heads = bytes.windows(HEAD_BYTES).enumerate();
    heads
        .filter(|(_, head)| head[..4] == [0; 4] && head[8..] == [0; 4])
        .any(|(at, head)| word(head, 4) == head_crc(0, 0, offset + at as u64))
}

/// Length of the payload, if the head is whole.
fn check_head(head: &[u8; HEAD_BYTES], offset: u64) -> Option<usize> {
    let length = word(head, 0);
    let whole = word(head, 4) == head_crc(length, word(head, 8), offset);
    (whole && length as usize <= RECORD_BYTES_MAX).then_some(length as usize)
}

fn head_crc(length: u32, body_crc: u32, offset: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&body_crc.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_frozen() {
        let mut bytes = header().to_vec();
        push_record(&mut bytes, SEGMENT_START, &[b"h", b"i"]);
        push_record(&mut bytes, SEGMENT_START + 14, &[]);
        let golden = [
            b'V', b'L', b'Y', b'S', b'E', b'G', b'M', b'\n', // magic
            1, 0, 0, 0, // version
            146, 131, 4, 219, // its checksum
            2, 0, 0, 0, // length
            28, 161, 44, 139, // head checksum
            172, 42, 147, 216, // payload checksum: crc32("hi") is d8932aac
            b'h', b'i', //
            0, 0, 0, 0, // a mark
            76, 104, 138, 133, //
            0, 0, 0, 0, //
        ];
        assert_eq!(bytes, golden);
    }

    #[test]
    fn a_record_is_valid_in_its_own_place_only() {
        let mut bytes = Vec::new();
        push_record(&mut bytes, 100, &[b"payload"]);
        assert_eq!(parse(&bytes, 100, usize::MAX).records.len(), 1);
        let moved = parse(&bytes, 101, usize::MAX);
        assert!(matches!(moved.stop, Stop::Damaged(_)) && moved.records.is_empty());
    }

    #[test]
    fn marks_are_found_anywhere() {
        let mut bytes = b"noise and zeros \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        assert!(!has_mark(&bytes, 7));
        let at = 7 + bytes.len() as u64;
        push_record(&mut bytes, at, &[]);
        assert!(has_mark(&bytes, 7));
        assert!(!has_mark(&bytes, 8));
    }
}
