//! Lines of JSON that carry a checksum: readable by every tool, and a flipped bit is found.
//!
//! ```text
//! {"crc32":"89abcdef","step":1,…}     the checksum of the object without its first member
//! ```
//!
//! Lines without one are of an earlier build.

/// What a checked line begins with.
const BEFORE: &str = "{\"crc32\":\"";
const DIGITS: usize = 8;
const AFTER: &str = "\",";

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckedLine {
    /// The object as it was written.
    Whole(String),
    /// An object, perhaps, without a checksum.
    Unchecked,
    /// It has a checksum, and another one is due.
    Damaged,
}

/// The line of an object that has at least one member, without an end of line.
#[must_use]
pub fn checked(object: &str) -> String {
    debug_assert!(object.starts_with("{\"") && object.ends_with('}'));
    let crc = crc32fast::hash(object.as_bytes());
    let members = object.get(1..).unwrap_or_default();
    format!("{BEFORE}{crc:08x}{AFTER}{members}")
}

/// What a line says, without its end of line.
#[must_use]
pub fn check(line: &[u8]) -> CheckedLine {
    let Some(rest) = line.strip_prefix(BEFORE.as_bytes()) else {
        return CheckedLine::Unchecked;
    };
    let whole = || {
        let (digits, rest) = rest.split_at_checked(DIGITS)?;
        let members = rest.strip_prefix(AFTER.as_bytes())?;
        let object = format!("{{{}", str::from_utf8(members).ok()?);
        // Compared as text: a digit in another case is a flipped bit, too.
        let due = format!("{:08x}", crc32fast::hash(object.as_bytes()));
        (due.as_bytes() == digits).then_some(object)
    };
    whole().map_or(CheckedLine::Damaged, CheckedLine::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let object = "{\"step\":12,\"name\":\"ü\"}";
        let line = checked(object);
        assert_eq!(line, "{\"crc32\":\"993a2ab1\",\"step\":12,\"name\":\"ü\"}");
        assert_eq!(
            check(line.as_bytes()),
            CheckedLine::Whole(object.to_owned())
        );
        for bit in 0..line.len() * 8 {
            let mut flipped = line.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = check(&flipped);
            assert!(
                !matches!(found, CheckedLine::Whole(_)),
                "bit {bit}: {found:?}"
            );
        }
        for cut in 0..line.len() {
            let found = check(&line.as_bytes()[..cut]);
            assert!(
                !matches!(found, CheckedLine::Whole(_)),
                "cut {cut}: {found:?}"
            );
        }
        assert_eq!(check(b"{\"step\":1}"), CheckedLine::Unchecked);
    }
}
