//! Rust text with comments and literals blanked out, so that rules see code only.
//!
//! Every blanked byte becomes a space and line ends stay, so places are the same in both texts.

/// The text's code: comments, strings and characters are blanked.
pub(crate) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'\'' => char_end(bytes, at),
            byte if is_word(byte) => match raw_string_end(bytes, at) {
                Some(end) => end,
                None => {
                    at = word_end(bytes, at);
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether the byte can be part of a name.
pub(crate) const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes[at..].iter().position(|byte| !is_word(*byte));
    rest.map_or(bytes.len(), |length| at + length)
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes[at..].iter().position(|byte| *byte == b'\n');
    rest.map_or(bytes.len(), |length| at + length)
}

/// Block comments nest.
fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut at) = (0_usize, at);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r"…"`, `br#"…"#` and the like; `None` where no raw string begins.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let prefix = word_end(bytes, at);
    if !matches!(&bytes[at..prefix], b"r" | b"br" | b"cr") {
        return None;
    }
    let hashes = bytes[prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    if bytes.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"", "#".repeat(hashes).as_bytes()].concat();
    let body = prefix + hashes + 1;
    let found = bytes[body..]
        .windows(close.len())
        .position(|window| window == close);
    Some(found.map_or(bytes.len(), |length| body + length + close.len()))
}

/// The end of a character literal; a lifetime is only its quote.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let rest = bytes.get(at + 3..).unwrap_or_default();
        return rest
            .iter()
            .position(|byte| *byte == b'\'')
            .map_or(bytes.len(), |length| at + 3 + length + 1);
    }
    // A character is at most four bytes; `'a'` closes right after it, `'a` does not.
    let first = bytes.get(at + 1).copied().unwrap_or(b' ');
    let width = match first {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    if bytes.get(at + 1 + width) == Some(&b'\'') {
        at + width + 2
    } else {
        at + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_places_stay() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("x(\"y\\\"z\") w", "x(      ) w"),
            ("r#\"a\"b\"# c", "         c"),
            ("br\"a\\\" c", "       c"),
            ("f('\\'', 'x', '\\n') g", "f(    ,    ,     ) g"),
            ("'é' h", "     h"),
            ("fn f<'a>(x: &'a str)", "fn f< a>(x: & a str)"),
            ("r#type + writer\"s\"", "r#type + writer   "),
            ("\"two\nlines\" z", "    \n       z"),
        ] {
            assert_eq!(code_only(text), code.replace('é', "  "), "{text}");
        }
    }

    #[test]
    fn unfinished_text_does_not_panic() {
        for text in ["\"", "/*", "'", "'\\", "r#\"", "b", "\"\\", "'é", "//"] {
            assert_eq!(code_only(text).len(), text.len(), "{text}");
        }
    }
}
