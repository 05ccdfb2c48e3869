//! Moments as people and file names want them. UTC: a run may be read elsewhere.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// The wall clock.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `20261121-101530`: sorts by time, fits a file name.
#[must_use]
pub fn utc_stamp(unix_ms: u64) -> String {
    let (year, month, day, hour, minute, second) = split(unix_ms);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// `2026-11-21 10:15 UTC`.
#[must_use]
pub fn utc_text(unix_ms: u64) -> String {
    let (year, month, day, hour, minute, _) = split(unix_ms);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// `2026-11-21T10:15:30.123Z`, for logs.
pub(crate) fn utc_exact(unix_ms: u64) -> String {
    let (year, month, day, hour, minute, second) = split(unix_ms);
    let ms = unix_ms % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

fn split(unix_ms: u64) -> (u64, u64, u64, u64, u64, u64) {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil(seconds / DAY_S);
    let of_day = seconds % DAY_S;
    (
        year,
        month,
        day,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
    )
}

/// Days since 1970-01-01 to a date of the Gregorian calendar: years that begin in March have
/// their leap day at the end (Hinnant, "chrono-compatible low-level date algorithms").
const fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(utc_stamp(0), "19700101-000000");
        assert_eq!(utc_stamp(951_782_400_000), "20000229-000000");
        assert_eq!(utc_stamp(1_795_256_130_999), "20261121-101530");
        assert_eq!(utc_exact(1_795_256_130_009), "2026-11-21T10:15:30.009Z");
        assert_eq!(utc_text(1_795_256_130_999), "2026-11-21 10:15 UTC");
    }
}
