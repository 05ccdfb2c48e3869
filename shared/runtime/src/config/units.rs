//! Numbers that mean nothing without their unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A duration, written `"250ms"`, `"90s"`, `"5m"`, `"2h"` or `"1d"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationMs(pub u64);

/// A size, written `"512B"`, `"64KiB"`, `"64MiB"`, `"2GiB"` or `"1TiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// Smallest first.
const TIME_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Smallest first.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl DurationMs {
    /// As the standard library's type.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

fn parse(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if digits > 0 && unit.is_empty() {
        return Err(format!(
            "is {text}, which has no unit; write \"{text}{example}\""
        ));
    }
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let wrong = || {
        let names = names.join(", ");
        format!("is `{text}`; due is a whole number with one of {names}, such as \"90{example}\"")
    };
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("is `{text}`, which is too large"))
}

/// In the largest unit that leaves no remainder.
fn show(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let whole = units
        .iter()
        .rev()
        .find(|(_, factor)| value > 0 && value.is_multiple_of(*factor));
    match whole.or_else(|| units.first()) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => write!(f, "{value}"),
    }
}

macro_rules! unit {
    ($name:ident, $units:ident, $example:literal, $fraction:expr) => {
        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                parse(text, $units, $example).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                show(self.0, $units, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Unit;

                impl Visitor<'_> for Unit {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a text with a unit, such as \"90", $example, "\""))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$name, E> {
                        let fraction: fn(f64) -> String = $fraction;
                        let better = fraction(number);
                        Err(E::custom(format!(
                            "is {number}, which has no unit; write \"{better}\""
                        )))
                    }
                }

                deserializer.deserialize_any(Unit)
            }
        }
    };
}

unit!(DurationMs, TIME_UNITS, "s", |seconds| format!(
    "{:.0}ms",
    seconds * 1e3
));
unit!(Bytes, SIZE_UNITS, "MiB", |mebibytes| format!(
    "{:.0}KiB",
    mebibytes * 1024.0
));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read() {
        assert_eq!("250ms".parse(), Ok(DurationMs(250)));
        assert_eq!(
            "5m".parse::<DurationMs>().map(DurationMs::duration),
            Ok(Duration::from_secs(300))
        );
        assert_eq!("64MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("0B".parse(), Ok(Bytes(0)));
        for bad in [
            "",
            "s",
            "-3s",
            "1.5s",
            "5 m",
            "5min",
            "99999999999999999d",
            "٣s",
        ] {
            assert!(bad.parse::<DurationMs>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_in_the_largest_whole_unit() {
        let shown = [0, 1, 1500, 90_000, 7_200_000].map(|ms| DurationMs(ms).to_string());
        assert_eq!(shown, ["0ms", "1ms", "1500ms", "90s", "2h"]);
        assert_eq!(Bytes(3 << 30).to_string(), "3GiB");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value: u64) {
            prop_assert_eq!(DurationMs(value).to_string().parse(), Ok(DurationMs(value)));
            prop_assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
        }
    }
}
