//! Every key, once: the key bar, the help and what keys do all come from here.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Help,
    Sort,
    Down,
    Up,
    PageDown,
    PageUp,
    First,
    Last,
}

/// Keys with one meaning.
#[derive(Debug)]
pub(super) struct Binding {
    keys: &'static [KeyCode],
    /// How the keys are written.
    pub(super) shown: &'static str,
    /// One word for the key bar.
    pub(super) word: &'static str,
    /// One sentence for the help.
    pub(super) help: &'static str,
    action: Action,
}

pub(super) const KEYMAP: [Binding; 9] = [
    Binding {
        keys: &[KeyCode::Char('q')],
        shown: "q",
        word: "quit",
        help: "Leave; the cluster goes on.",
        action: Action::Quit,
    },
    Binding {
        keys: &[KeyCode::Char('?')],
        shown: "?",
        word: "help",
        help: "Show or hide this page.",
        action: Action::Help,
    },
    Binding {
        keys: &[KeyCode::Char('s')],
        shown: "s",
        word: "sort",
        help: "Next order of the workers: state, name, tokens, heartbeat.",
        action: Action::Sort,
    },
    Binding {
        keys: &[KeyCode::Char('j'), KeyCode::Down],
        shown: "j",
        word: "down",
        help: "Next worker; so does the down arrow.",
        action: Action::Down,
    },
    Binding {
        keys: &[KeyCode::Char('k'), KeyCode::Up],
        shown: "k",
        word: "up",
        help: "Worker before; so does the up arrow.",
        action: Action::Up,
    },
    Binding {
        keys: &[KeyCode::Char(' '), KeyCode::PageDown],
        shown: "space",
        word: "page",
        help: "Next page of workers; so does page down.",
        action: Action::PageDown,
    },
    Binding {
        keys: &[KeyCode::Char('b'), KeyCode::PageUp],
        shown: "b",
        word: "back",
        help: "Page before; so does page up.",
        action: Action::PageUp,
    },
    Binding {
        keys: &[KeyCode::Char('g'), KeyCode::Home],
        shown: "g",
        word: "first",
        help: "First worker; so does home.",
        action: Action::First,
    },
    Binding {
        keys: &[KeyCode::Char('G'), KeyCode::End],
        shown: "G",
        word: "last",
        help: "Last worker; so does end.",
        action: Action::Last,
    },
];

/// What a key press means, if anything. Terminals in raw mode report Ctrl-C as a key.
pub(super) fn action(key: KeyEvent) -> Option<Action> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Action::Quit);
    }
    let binding = KEYMAP
        .iter()
        .find(|binding| binding.keys.contains(&key.code));
    binding.map(|binding| binding.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things() {
        let keys: Vec<_> = KEYMAP.iter().flat_map(|binding| binding.keys).collect();
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(key), "{key:?}");
        }
    }

    #[test]
    fn keys_act() {
        let press = |code, modifiers| action(KeyEvent::new(code, modifiers));
        assert_eq!(
            press(KeyCode::Char('q'), KeyModifiers::NONE),
            Some(Action::Quit)
        );
        assert_eq!(
            press(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Action::Quit)
        );
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::CONTROL), None);
        assert_eq!(
            press(KeyCode::Char('G'), KeyModifiers::SHIFT),
            Some(Action::Last)
        );
        assert_eq!(press(KeyCode::Char('x'), KeyModifiers::NONE), None);
    }
}
