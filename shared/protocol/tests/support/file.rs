//! Golden files: a comment that names the fields, then the name of the sample and their bytes.
//!
//! ```text
//! # id body=JobShow JobShow
//! ClientRequest.JobShow 03000000 03000000 100f0e0d0c0b0a090807060504030201
//! ```
//!
//! The words of the comment and the groups of the line below stand for each other, one by one.

use std::path::PathBuf;

use super::Sample;
use super::fields::Field;

/// What to do when a golden differs; part of every failure.
const ADVICE: &str = "\
    the bytes of a message changed. If that is a mistake, undo it. If it is meant, it is a new\n\
    rung of the ladder in src/version.rs and a line in docs/protocol.md; then write the goldens\n\
    again with VOLLEY_BLESS=1 cargo test -p volley-protocol --test golden";

/// Was the test asked to write the goldens instead of checking them?
#[allow(
    clippy::disallowed_methods,
    reason = "a switch of this test alone; the runtime's table is for programs"
)]
pub(crate) fn blessing() -> bool {
    std::env::var("VOLLEY_BLESS").is_ok_and(|value| value == "1")
}

/// A golden file's place.
fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", file]
        .iter()
        .collect()
}

/// A golden file's text; empty when there is none yet.
pub(crate) fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_default()
}

/// Compares a golden file with what it should hold, or writes it when that was asked for.
pub(crate) fn check_text(file: &str, head: &str, body: &str) {
    let want = format!("{head}\n{body}");
    if blessing() {
        std::fs::write(path(file), want).expect("the golden files can be written");
        return;
    }
    let have = read(file);
    let lines = have.lines().zip(want.lines());
    for (at, (golden, now)) in lines.enumerate() {
        let line = at + 1;
        assert_eq!(golden, now, "tests/golden/{file}:{line}: {ADVICE}");
    }
    assert_eq!(have, want, "tests/golden/{file} has other lines: {ADVICE}");
}

/// Numbers that were given stay given: even when asked to write, only new lines are taken.
pub(crate) fn check_numbers(file: &str, head: &str, lines: &[String]) {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for golden in read(file).lines().filter(|line| !line.starts_with('#')) {
        assert!(
            lines.iter().any(|line| line == golden),
            "tests/golden/{file}: `{golden}` is gone, but numbers are append-only: a peer of \
             yesterday would read another variant. Put new variants last. (Only a number that no \
             release ever had may be taken back, by deleting its line first.)"
        );
    }
    check_text(file, head, &body);
}

/// Samples as a golden file has them.
pub(crate) fn render(samples: &[Sample]) -> String {
    let entry = |sample: &Sample| {
        let words: Vec<&str> = sample.fields.iter().map(|f| f.label.as_str()).collect();
        let groups: Vec<String> = sample.fields.iter().map(hex).collect();
        format!(
            "\n# {}\n{} {}\n",
            words.join(" "),
            sample.name,
            groups.join(" ")
        )
    };
    samples.iter().map(entry).collect()
}

/// The bytes of every entry of a golden file, with its name.
pub(crate) fn parse(text: &str) -> Vec<(String, Vec<u8>)> {
    let entries = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let (name, groups) = line.split_once(' ').expect("a name, then its bytes");
        (name.to_owned(), unhex(groups))
    };
    entries.map(entry).collect()
}

fn hex(field: &Field) -> String {
    field
        .bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Bytes of hexadecimal digits; blanks between them mean nothing.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .split_whitespace()
        .flat_map(str::chars)
        .map(|c| c.to_digit(16).expect("hexadecimal digits"))
        .collect();
    assert!(digits.len().is_multiple_of(2), "whole bytes: {text}");
    digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}
