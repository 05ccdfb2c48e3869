//! Numbers and texts as a page shows them.

use std::fmt::Write as _;

/// The text with everything escaped that HTML and SVG would obey, and control characters shown.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            // Not allowed in XML at all, and of no use to a reader.
            c if c.is_control() => {
                let _ = write!(safe, "{}", c.escape_unicode());
            }
            c => safe.push(c),
        }
    }
    safe
}

/// About three significant digits, no more noise than that: `0.963`, `12.4`, `1,530`, `2.1e-6`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_owned();
    }
    let text = match size {
        0.0 => "0".to_owned(),
        1e9.. => format!("{value:.1e}"),
        1000.0.. => count(value.round()),
        100.0.. => format!("{value:.0}"),
        10.0.. => trimmed(&format!("{value:.1}")),
        1.0.. => trimmed(&format!("{value:.2}")),
        0.001.. => trimmed(&format!("{value:.3}")),
        _ => format!("{value:.1e}"),
    };
    minus(&text)
}

/// For the marks of an axis: `0.5`, `250`, `12k`, `1.5M`.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        1e4..1e6 => format!("{}k", number(value / 1e3)),
        1e6..1e9 => format!("{}M", number(value / 1e6)),
        _ => number(value),
    }
}

/// A reward: always three decimals, so that two of them can be compared at a glance.
pub(super) fn reward(value: f64) -> String {
    if value.is_finite() {
        minus(&format!("{value:.3}"))
    } else {
        "–".to_owned()
    }
}

/// A share in per cent.
pub(super) fn share(value: f64) -> String {
    if value.is_finite() {
        format!("{} %", number(value * 100.0))
    } else {
        "–".to_owned()
    }
}

/// A whole number with its thousands apart.
pub(super) fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 && digits != "0" {
        format!("-{text}")
    } else {
        text
    }
}

/// `43 s`, `12 min 5 s`, `3 h 20 min`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{} s", number(ms as f64 / 1e3)),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `15.6 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", number(value), UNITS[unit])
}

fn trimmed(text: &str) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A hyphen is no minus.
fn minus(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(rest) => format!("−{rest}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown = [
            0.0,
            0.9632,
            0.5,
            12.44,
            250.4,
            1530.2,
            -0.0321,
            2.1e-6,
            f64::NAN,
        ]
        .map(number);
        assert_eq!(
            shown,
            [
                "0", "0.963", "0.5", "12.4", "250", "1,530", "−0.032", "2.1e-6", "–"
            ]
        );
        assert_eq!(count(1_234_567.0), "1,234,567");
        assert_eq!(share(0.125), "12.5 %");
        assert_eq!(reward(-0.5), "−0.500");
    }

    #[test]
    fn times_and_sizes_are_for_people() {
        let shown = [12, 43_210, 725_000, 12_000_000].map(duration);
        assert_eq!(shown, ["12 ms", "43.2 s", "12 min 5 s", "3 h 20 min"]);
        assert_eq!(bytes(16_777_216_000), "15.6 GiB");
    }

    #[test]
    fn nothing_is_obeyed() {
        assert_eq!(
            escape("<b a='x'>&\"\x1b\0"),
            "&lt;b a=&#39;x&#39;&gt;&amp;&quot;\\u{1b}\\u{0}"
        );
    }
}
