//! `docs/protocol.md` says what the code does: its examples are golden bytes, its tables have every
//! kind, limit and version.

mod support;

use volley_protocol::client::{ClientReply, ClientRequest};
use volley_protocol::codec::{FrameKind, Message};
use volley_protocol::version::{Hello, PROTOCOL_VERSION, Welcome};

use support::{file, names, samples};

const PAGE: &str = include_str!("../../../docs/protocol.md");
const LIMITS: &str = include_str!("../src/limits.rs");

/// Frames of the worked example: the sample's name and the bytes that the page has for it.
fn examples() -> Vec<(&'static str, Vec<u8>)> {
    let blocks = PAGE.split("```text\nframe ").skip(1);
    let example = |block: &'static str| {
        let (name, rest) = block.split_once('\n')?;
        let (lines, _) = rest.split_once("```")?;
        // The bytes of a line end where two blanks begin.
        let digits = lines.lines().filter_map(|line| line.split("  ").next());
        Some((name, digits.flat_map(file::unhex).collect()))
    };
    blocks.filter_map(example).collect()
}

/// Cells of the table rows that begin with this one.
fn rows(first: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    let rows = PAGE.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter(move |row: &Vec<&str>| row.first() == Some(&first))
}

#[test]
fn the_worked_example_is_golden() {
    let kinds = [
        ("Hello", Hello::KIND),
        ("Welcome.Accepted", Welcome::KIND),
        ("ClientRequest.Submit", ClientRequest::KIND),
        ("ClientReply.Accepted", ClientReply::KIND),
    ];
    let examples = examples();
    assert!(
        examples
            .iter()
            .map(|(name, _)| *name)
            .eq(kinds.map(|(name, _)| name))
    );
    for ((name, shown), (_, kind)) in examples.into_iter().zip(kinds) {
        let sample = samples().find(|sample| sample.name == name);
        let payload = sample.expect("a sample of that name").bytes;
        let len = (payload.len() as u32).to_le_bytes();
        let frame = [len.as_slice(), &[kind as u8], &payload].concat();
        assert_eq!(shown, frame, "{name}");
    }
}

#[test]
fn every_kind_has_a_row() {
    for (of, number, name) in names::kinds() {
        let quoted = format!("`{name}`");
        let found = rows(&number.to_string()).any(|row| row[1] == quoted);
        assert!(found, "no row `| {number} | {quoted} |` for a {of}");
    }
}

#[test]
fn every_limit_has_a_row_with_its_value() {
    let declared = LIMITS.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(':')?;
        let (_, value) = rest.split_once(" = ")?;
        Some((
            format!("`{name}`"),
            format!("`{}`", value.trim_end_matches(';')),
        ))
    });
    let mut count = 0;
    for (name, value) in declared {
        count += 1;
        let found = rows(&name).any(|row| row[1] == value);
        assert!(found, "no row `| {name} | {value} |`");
    }
    assert!(count > 10, "limits.rs is written in another way now");
}

#[test]
fn the_ladder_ends_with_this_version() {
    let after = PAGE.split_once("| version | change |");
    let (_, ladder) = after.expect("the page has the ladder");
    let rungs = ladder
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    assert_eq!(rungs.count(), usize::from(PROTOCOL_VERSION));
}

#[test]
fn the_page_tells_the_frame_cap_in_full() {
    assert!(PAGE.contains("at most 1,048,576"));
    let cap = volley_protocol::limits::CONTROL_FRAME_BYTES_MAX;
    assert_eq!(cap, 1_048_576);
    assert_eq!(FrameKind::Hello as u8, 1, "the first frame, for ever");
}
