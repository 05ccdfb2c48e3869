//! Colours and signs. A state is always a letter or a word too: colour is never the only way to
//! tell it.

use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;

use super::view::Health;
use crate::text;

/// What a part of the screen means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Names of figures, borders.
    Quiet,
    /// Figures.
    Strong,
    Good,
    Warn,
    Bad,
    Curve,
}

/// How this terminal is drawn on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    colour: bool,
    pub(super) ascii: bool,
}

const BORDER_ASCII: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

impl Look {
    pub(super) const fn new(colour: bool, ascii: bool) -> Self {
        Self { colour, ascii }
    }

    /// Sixteen colours: those of the person's own theme.
    pub(super) fn style(self, tone: Tone) -> Style {
        let plain = Style::default();
        let strong = plain.add_modifier(Modifier::BOLD);
        let coloured = |style: Style, colour| if self.colour { style.fg(colour) } else { style };
        match tone {
            Tone::Plain => plain,
            Tone::Quiet => coloured(plain, Color::DarkGray),
            Tone::Strong => strong,
            Tone::Good => coloured(plain, Color::Green),
            Tone::Warn => coloured(strong, Color::Yellow),
            Tone::Bad => coloured(strong, Color::Red),
            Tone::Curve => coloured(plain, Color::Cyan),
        }
    }

    pub(super) const fn border(self) -> border::Set<'static> {
        if self.ascii {
            BORDER_ASCII
        } else {
            border::PLAIN
        }
    }

    /// The sign in front of the health's word.
    pub(super) const fn health_sign(self, health: Health) -> &'static str {
        match (health, self.ascii) {
            (Health::Healthy, false) => "●",
            (Health::Degraded, false) => "▲",
            (Health::Unreachable, false) => "■",
            (Health::Healthy, true) => "*",
            (Health::Degraded, true) => "!",
            (Health::Unreachable, true) => "x",
        }
    }

    pub(super) const fn health_tone(self, health: Health) -> Tone {
        match health {
            Health::Healthy => Tone::Good,
            Health::Degraded => Tone::Warn,
            Health::Unreachable => Tone::Bad,
        }
    }

    pub(super) fn curve(self, values: &[f64], columns: usize) -> String {
        text::curve(values, columns, self.ascii)
    }

    /// Text from outside, on one line, in characters that this terminal has.
    pub(super) fn line(self, words: &str, columns: usize) -> String {
        let line = text::line(words, columns);
        if self.ascii {
            line.chars()
                .map(|c| if c.is_ascii() { c } else { '?' })
                .collect()
        } else {
            line
        }
    }
}
