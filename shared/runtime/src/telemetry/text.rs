//! Text that came from elsewhere, made safe to show.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Bytes at the end of a log that are looked at for its last lines.
const TAIL_BYTES: u64 = 16 << 10;

/// The last `lines` lines of a log, oldest first, made safe to print; none if it cannot be read.
#[must_use]
pub fn last_lines(path: &Path, lines: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut last: Vec<String> = text.lines().rev().take(lines).map(printable).collect();
    last.reverse();
    last
}

/// The text with every control character shown instead of obeyed: a log line or transcript
/// cannot move the cursor, retitle the terminal or forge a further line.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => safe.push(c),
            c if c.is_control() || is_direction_control(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// Characters that reorder what is shown around them (the "Trojan Source" set).
const fn is_direction_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\x1b[2Jb\r\n\tc"), "a\\u{1b}[2Jb\\r\\n\tc");
        assert_eq!(printable("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(printable("grüße ✓"), "grüße ✓");
    }

    #[test]
    fn only_the_end_of_a_log_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let text: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, text).expect("write");
        assert_eq!(last_lines(&path, 2), ["line 9998", "line 9999"]);
        assert!(last_lines(&dir.path().join("none"), 2).is_empty());
    }
}
