//! What happened: a hash of everything, and the last lines of it.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

/// A trace of a run. Equal runs have equal hashes.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Of the lines' text, where lines are kept: everything that a run says of itself.
    text_hash: u64,
    events: u64,
    tail: VecDeque<String>,
    /// How many lines are kept. They cost most of a simulation's time: 0 unless somebody wants to
    /// read them.
    lines_max: usize,
}

impl Trace {
    /// A trace that also keeps its last lines, so many of them.
    #[must_use]
    pub fn with_lines(lines_max: usize) -> Self {
        Self {
            lines_max,
            ..Self::default()
        }
    }

    /// Something happened: `numbers` tell it apart, `line` describes it.
    pub fn note(&mut self, at_ms: u64, numbers: &[u64], line: &dyn fmt::Display) {
        self.events += 1;
        let all = std::iter::once(&at_ms).chain(numbers);
        for number in all {
            self.hash = mix(self.hash, *number);
        }
        if self.lines_max > 0 {
            let mut text = String::new();
            let written = write!(text, "{:>10.3} s  {line}", at_ms as f64 / 1_000.0);
            debug_assert!(written.is_ok(), "a String takes everything");
            for byte in text.bytes() {
                self.text_hash = mix(self.text_hash, u64::from(byte));
            }
            self.tail.push_back(text);
            if self.tail.len() > self.lines_max {
                self.tail.pop_front();
            }
        }
    }

    /// Hash of everything so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Hash of the text of every line so far; 0 when lines are not kept.
    #[must_use]
    pub const fn text_hash(&self) -> u64 {
        self.text_hash
    }

    /// Events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        self.tail
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }
}

const fn mix(hash: u64, number: u64) -> u64 {
    (hash ^ number)
        .wrapping_mul(0x0100_0000_01B3)
        .rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_matters_and_lines_do_not() {
        let (mut one, mut two) = (Trace::default(), Trace::with_lines(9));
        one.note(1, &[2, 3], &"x");
        two.note(1, &[2, 3], &"y");
        assert_eq!(one.hash(), two.hash());
        assert_eq!(one.text_hash(), 0);
        assert_ne!(two.text_hash(), 0);
        assert!(two.tail().contains('y') && one.tail().is_empty());
        two.note(1, &[3, 2], &"z");
        one.note(1, &[2, 3], &"z");
        assert_ne!(one.hash(), two.hash());
    }
}
