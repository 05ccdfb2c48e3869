//! Durations on the command line: a number with its unit.

use std::time::Duration;

/// Parses `250ms`, `90s`, `5m`, `2h`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` does not begin with a number"))?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(format!("`{text}` lacks its unit; did you mean `{text}s`?")),
        _ => return Err(format!("`{unit}` is no unit; use ms, s, m or h")),
    };
    let ms = number
        .checked_mul(unit_ms)
        .ok_or_else(|| format!("`{text}` is too long"))?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_due() {
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse("10").is_err_and(|error| error.contains("10s")));
        assert!(parse("s").is_err() && parse("3 days").is_err());
        assert!(parse("99999999999999999999h").is_err());
    }
}
