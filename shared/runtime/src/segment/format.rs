//! The bytes of a segment: pure functions, no files.

use super::reader::Record;

/// First bytes of every segment. The newline shows a copy in text mode.
const MAGIC: [u8; 8] = *b"VLYSEGM\n";

/// Format of new files. Version 1, which has no seals and no gaps, is read and continued.
pub(super) const VERSION: u32 = 2;

/// First format with seals and gaps.
pub(super) const VERSION_WITH_SEALS: u32 = 2;

/// In the place of a length: a seal follows. No record is as long.
const SEAL: u32 = u32::MAX;

/// In the place of a length: a gap.
const GAP: u32 = u32::MAX - 1;

/// Longest single gap; longer damage is several of them.
pub(super) const GAP_BYTES_MAX: u64 = 1 << 30;

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

/// What stands in the place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Record,
    Mark,
    Seal,
    Gap,
}

/// What a walk from the first record on has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) records: u64,
    /// Checksum over the heads of all records, each with the one before: the order counts.
    pub(super) chain: u32,
    pub(super) gaps: u64,
    pub(super) gap_bytes: u64,
    /// Everything before this was synced: here the last mark begins, or the first of several that
    /// stand together, of which the later ones say nothing about the earlier ones.
    pub(super) marked: u64,
    /// Where the last of them ends.
    pub(super) marked_end: u64,
    /// Nothing but marks stands behind the last seal.
    pub(super) sealed: bool,
}

impl Tally {
    /// Notes what stands at `offset`; false for a seal that counts other records.
    fn note(&mut self, kind: Kind, head: &[u8; HEAD_BYTES], body: &[u8], offset: u64) -> bool {
        let end = offset + (HEAD_BYTES + body.len()) as u64;
        match kind {
            Kind::Record => {
                self.records += 1;
                self.chain = chained(self.chain, head);
                self.sealed = false;
            }
            Kind::Mark => self.mark(offset, end),
            Kind::Seal => {
                // What was given up is not counted; the seal says what there was before.
                if self.gaps == 0 && word(head, 8) != self.seal() {
                    return false;
                }
                self.mark(offset, end);
                self.sealed = true;
            }
            Kind::Gap => {
                self.gaps += 1;
                self.gap_bytes += u64::from(word(head, 8));
            }
        }
        true
    }

    fn mark(&mut self, offset: u64, end: u64) {
        if self.marked_end != offset {
            self.marked = offset;
        }
        self.marked_end = end;
    }

    /// What a seal of these records says.
    fn seal(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.records.to_le_bytes());
        hasher.update(&self.chain.to_le_bytes());
        hasher.finalize()
    }

    /// Notes a record that was just appended.
    pub(super) fn appended(&mut self, head: &[u8; HEAD_BYTES]) {
        self.records += 1;
        self.chain = chained(self.chain, head);
        self.sealed = false;
    }
}

fn chained(chain: u32, head: &[u8; HEAD_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&chain.to_le_bytes());
    hasher.update(head);
    hasher.finalize()
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

/// The version that the header names.
pub(super) fn check_header(bytes: &[u8; HEADER_BYTES]) -> Result<u32, BadHeader> {
    if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..12]) != word(bytes, 12) {
        return Err(BadHeader::Foreign);
    }
    match word(bytes, 8) {
        known @ 1..=VERSION => Ok(known),
        other => Err(BadHeader::Version(other)),
    }
}

/// Appends a record (or, without payload, a mark) that will stand at `offset`; gives its head.
pub(super) fn push_record(out: &mut Vec<u8>, offset: u64, payload: &[&[u8]]) -> [u8; HEAD_BYTES] {
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    debug_assert!(bytes <= RECORD_BYTES_MAX, "checked by the caller");
    let mut hasher = crc32fast::Hasher::new();
    payload.iter().for_each(|part| hasher.update(part));
    let head = head(bytes as u32, hasher.finalize(), offset);
    out.extend_from_slice(&head);
    payload.iter().for_each(|part| out.extend_from_slice(part));
    head
}

/// The seal of these records, at `offset`.
pub(super) fn seal_head(offset: u64, tally: &Tally) -> [u8; HEAD_BYTES] {
    head(SEAL, tally.seal(), offset)
}

/// The head of a gap of `length` bytes at `offset`.
pub(super) fn gap_head(offset: u64, length: u32) -> [u8; HEAD_BYTES] {
    debug_assert!(length as usize >= HEAD_BYTES && u64::from(length) <= GAP_BYTES_MAX);
    head(GAP, length, offset)
}

fn head(length: u32, third: u32, offset: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&head_crc(length, third, offset).to_le_bytes());
    head[8..].copy_from_slice(&third.to_le_bytes());
    head
}

/// Reads records from `bytes`, which stand at `offset`, until one is incomplete or broken, or
/// until the records together have more than `bytes_max` bytes (but always at least one). Seals
/// are compared with the `tally` of a walk that began at the first record.
pub(super) fn parse(
    bytes: &[u8],
    offset: u64,
    bytes_max: usize,
    tally: Option<&mut Tally>,
) -> Parsed {
    let mut records = Vec::new();
    let (bytes, stop) = visit(bytes, offset, bytes_max, tally, |offset, payload| {
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
    mut tally: Option<&mut Tally>,
    mut each: impl FnMut(u64, &[u8]),
) -> (usize, Stop) {
    let (mut at, mut payload_bytes) = (0, 0);
    loop {
        let here = offset + at as u64;
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(head) = rest.first_chunk::<HEAD_BYTES>() else {
            return (at, Stop::Short(HEAD_BYTES));
        };
        let Some((kind, length)) = check_head(head, here) else {
            return (at, Stop::Damaged("its head does not match its checksum"));
        };
        let whole = HEAD_BYTES + length;
        let Some(body) = rest.get(HEAD_BYTES..whole) else {
            return (at, Stop::Short(whole));
        };
        if kind == Kind::Record {
            if crc32fast::hash(body) != word(head, 8) {
                return (at, Stop::Damaged("its payload does not match its checksum"));
            }
            if payload_bytes > 0 && payload_bytes + length > bytes_max {
                return (at, Stop::Short(whole));
            }
            payload_bytes += length;
        }
        if let Some(tally) = &mut tally
            && !tally.note(kind, head, body, here)
        {
            let what = "it seals other records than those before it";
            return (at, Stop::Damaged(what));
        }
        if kind == Kind::Record {
            each(here, body);
        }
        at += match kind {
            Kind::Gap => word(head, 8) as usize,
            Kind::Record | Kind::Mark | Kind::Seal => whole,
        };
    }
}

/// Is there a mark or seal in `bytes`, which stand at `offset`?
pub(super) fn has_mark(bytes: &[u8], offset: u64) -> bool {
    let heads = bytes.windows(HEAD_BYTES).enumerate();
    let mark = |at: usize, head: &[u8]| {
        let here = offset + at as u64;
        let plain = head[..4] == [0; 4] && head[8..] == [0; 4];
        (plain && word(head, 4) == head_crc(0, 0, here))
            || (head[..4] == [0xff; 4] && word(head, 4) == head_crc(SEAL, word(head, 8), here))
    };
    heads.into_iter().any(|(at, head)| mark(at, head))
}

/// Does anything whole begin at `offset`, where `bytes` stand? `None`: it may, but does not end
/// within them; so many are needed.
pub(super) fn begins_whole(bytes: &[u8], offset: u64) -> Result<bool, usize> {
    let parsed = parse(bytes, offset, 0, None);
    match parsed.stop {
        Stop::Short(whole) if parsed.bytes == 0 && whole > HEAD_BYTES => Err(whole),
        _ => Ok(parsed.bytes > 0),
    }
}

/// What the head says stands there, and the length of what follows it, if the head is whole.
fn check_head(head: &[u8; HEAD_BYTES], offset: u64) -> Option<(Kind, usize)> {
    let (length, third) = (word(head, 0), word(head, 8));
    if word(head, 4) != head_crc(length, third, offset) {
        return None;
    }
    match length {
        0 => Some((Kind::Mark, 0)),
        SEAL => Some((Kind::Seal, 0)),
        GAP => (third as usize >= HEAD_BYTES && u64::from(third) <= GAP_BYTES_MAX)
            .then_some((Kind::Gap, 0)),
        _ => (length as usize <= RECORD_BYTES_MAX).then_some((Kind::Record, length as usize)),
    }
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
        let mut tally = Tally::default();
        parse(&bytes[16..], SEGMENT_START, usize::MAX, Some(&mut tally));
        bytes.extend_from_slice(&seal_head(SEGMENT_START + 26, &tally));
        let golden = [
            b'V', b'L', b'Y', b'S', b'E', b'G', b'M', b'\n', // magic
            2, 0, 0, 0, // version
            124, 44, 177, 201, // its checksum
            2, 0, 0, 0, // length
            28, 161, 44, 139, // head checksum
            172, 42, 147, 216, // payload checksum: crc32("hi") is d8932aac
            b'h', b'i', //
            0, 0, 0, 0, // a mark
            76, 104, 138, 133, //
            0, 0, 0, 0, //
            255, 255, 255, 255, // a seal
            102, 107, 141, 234, // head checksum
            175, 151, 153, 117, // of one record with that head
        ];
        assert_eq!(bytes, golden);
        let gap = [254, 255, 255, 255, 41, 109, 11, 27, 40, 0, 0, 0];
        assert_eq!(gap_head(100, 40), gap);
    }

    #[test]
    fn a_record_is_valid_in_its_own_place_only() {
        let mut bytes = Vec::new();
        push_record(&mut bytes, 100, &[b"payload"]);
        assert_eq!(parse(&bytes, 100, usize::MAX, None).records.len(), 1);
        let moved = parse(&bytes, 101, usize::MAX, None);
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
