//! What happened: a hash of everything, and the last lines of it.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

/// Lines kept for a failing run.
const TAIL_LINES: usize = 120;

/// A trace of a run. Equal runs have equal hashes.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    tail: VecDeque<String>,
    /// Lines cost most of a simulation's time: they are kept when somebody wants to read them.
    keep_lines: bool,
}

impl Trace {
    /// A trace that also keeps its last lines.
    #[must_use]
    pub fn with_lines() -> Self {
        Self {
            keep_lines: true,
            ..Self::default()
        }
    }

    /// Something happened: `numbers` tell it apart, `line` describes it.
    pub fn note(&mut self, at_ms: u64, numbers: &[u64], line: &dyn fmt::Display) {
        self.events += 1;
        let all = std::iter::once(&at_ms).chain(numbers);
        for number in all {
            self.hash = (self.hash ^ number)
                .wrapping_mul(0x0100_0000_01B3)
                .rotate_left(23);
        }
        if self.keep_lines {
            let mut text = String::new();
            let written = write!(text, "{:>10.3} s  {line}", at_ms as f64 / 1_000.0);
            debug_assert!(written.is_ok(), "a String takes everything");
            self.tail.push_back(text);
            if self.tail.len() > TAIL_LINES {
                self.tail.pop_front();
            }
        }
    }

    /// Hash of everything so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_matters_and_lines_do_not() {
        let (mut one, mut two) = (Trace::default(), Trace::with_lines());
        one.note(1, &[2, 3], &"x");
        two.note(1, &[2, 3], &"y");
        assert_eq!(one.hash(), two.hash());
        assert!(two.tail().contains('y') && one.tail().is_empty());
        two.note(1, &[3, 2], &"z");
        one.note(1, &[2, 3], &"z");
        assert_ne!(one.hash(), two.hash());
    }
}
