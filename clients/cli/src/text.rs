//! Small texts: numbers, durations, curves, and what comes from outside.

use std::time::Duration;

use ratatui::text::Span;
use volley_runtime::telemetry::printable;

/// Eight heights of a curve.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The same for terminals that know ASCII only.
const BLOCKS_ASCII: [char; 8] = ['_', '.', ',', '-', '~', '=', '*', '#'];

/// Text from outside on one line of at most `columns`: nothing in it moves the cursor.
pub(crate) fn line(text: &str, columns: usize) -> String {
    let flat = printable(&text.replace(['\n', '\r', '\t'], " "));
    fit(&flat, columns)
}

/// Cuts a text to at most `columns` on the screen, marking the cut.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += width(c.encode_utf8(&mut [0; 4]));
        if used > columns {
            break;
        }
        cut.push(c);
    }
    if columns > 0 {
        cut.push('~');
    }
    cut
}

/// Columns that a text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// 1234567 → `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A rate in three to five columns: `0.41`, `41.2`, `912`, `18.4k`, `2.1M`.
pub(crate) fn rate(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 999_500_000.0 => (value / 1e9, "G"),
        v if v >= 999_500.0 => (value / 1e6, "M"),
        v if v >= 999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let decimals = match scaled.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 || !unit.is_empty() => 1,
        0.0 => 0,
        _ => 2,
    };
    format!("{scaled:.decimals$}{unit}")
}

/// 1.5 s, 12 s, 3m12s, 3h12m, 4d3h.
pub(crate) fn duration(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86_400, s / 3_600 % 24),
    }
}

/// 600 B, 4.6 KiB, 64.0 MiB.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The last `columns` values as blocks, scaled to what they cover; a flat curve lies low.
pub(crate) fn curve(values: &[f64], columns: usize, ascii: bool) -> String {
    let shown = &values[values.len().saturating_sub(columns)..];
    let finite = || shown.iter().copied().filter(|value| value.is_finite());
    let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let span = if high > low { high - low } else { 1.0 };
    let blocks = if ascii { BLOCKS_ASCII } else { BLOCKS };
    let block = |value: &f64| {
        if !value.is_finite() {
            return '?';
        }
        blocks[((value - low) / span * 7.0).round().clamp(0.0, 7.0) as usize]
    };
    shown.iter().map(block).collect()
}

/// The known word that differs in at most a third of its letters.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_BYTES_MAX: usize = 64;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    known
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(18_204), "18,204");
        assert_eq!(count(1_000_000_000), "1,000,000,000");
        let rates = [0.0, 0.412, 41.23, 912.4, 999.9, 18_400.0, 2_130_000.0].map(rate);
        assert_eq!(rates, ["0", "0.41", "41.2", "912", "1.0k", "18.4k", "2.1M"]);
        let bytes = [600, 4_710, 64 << 20].map(bytes);
        assert_eq!(bytes, ["600 B", "4.6 KiB", "64.0 MiB"]);
    }

    #[test]
    fn durations_have_two_units() {
        let told = [1.5, 12.0, 192.0, 11_520.0, 356_400.0].map(Duration::from_secs_f64);
        assert_eq!(
            told.map(duration),
            ["1.5s", "12s", "3m12s", "3h12m", "4d3h"]
        );
    }

    #[test]
    fn a_line_from_outside_stays_a_line() {
        assert_eq!(line("a\x1b[2Jb", 40), "a\\u{1b}[2Jb");
        assert_eq!(line("one\ntwo", 40), "one two");
        assert_eq!(line("abcdef", 4), "abc~");
        assert_eq!(width(&line("漢字漢字", 5)), 5);
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn curves_survive_what_they_are_given() {
        assert_eq!(curve(&[0.0, 0.5, 1.0], 8, false), "▁▅█");
        assert_eq!(curve(&[0.0, 0.5, 1.0], 2, true), "_#");
        assert_eq!(curve(&[3.0, 3.0], 8, false), "▁▁");
        assert_eq!(curve(&[f64::NAN, 1.0], 8, true), "?_");
        assert_eq!(curve(&[], 8, false), "");
    }

    #[test]
    fn near_words_are_found() {
        assert_eq!(
            nearest("aritmetic", ["guess", "arithmetic"].into_iter()),
            Some("arithmetic")
        );
        assert_eq!(nearest("xyz", ["guess"].into_iter()), None);
    }
}
