//! One file: its text, its code, and which of its lines are tests.

use crate::lexer::{code_only, is_word};

/// A text file of the tree.
#[derive(Debug)]
pub(crate) struct File {
    /// Path from the workspace's root, with slashes.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
}

impl File {
    /// A file.
    pub(crate) fn new(path: &str, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// Whether the name ends in one of these extensions.
    pub(crate) fn has_extension(&self, extensions: &[&str]) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.')
            .is_some_and(|(_, extension)| extensions.contains(&extension))
    }

    /// Whether the path is one of these, or lies below one that ends with a slash.
    pub(crate) fn is_under(&self, paths: &[&str]) -> bool {
        let below = |path: &&str| path.ends_with('/') && self.path.starts_with(path);
        paths.iter().any(|path| self.path == *path || below(path))
    }

    /// Whether the whole file is test code.
    pub(crate) fn is_test(&self) -> bool {
        let mut folders: Vec<&str> = self.path.split('/').collect();
        let name = folders.pop().unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        folders
            .iter()
            .any(|folder| matches!(*folder, "tests" | "benches"))
            || stem == "tests"
            || stem.ends_with("_test")
            || stem.ends_with("_tests")
            || (stem.starts_with("test_") && self.has_extension(&["py"]))
    }

    /// Lines of code without comments and literals, each with its number from one.
    pub(crate) fn code_lines(&self) -> Vec<(usize, String)> {
        let code = code_only(&self.text);
        let lines = code.lines().map(str::to_owned);
        lines.enumerate().map(|(i, line)| (i + 1, line)).collect()
    }

    /// The same without the modules under `#[cfg(test)]`.
    pub(crate) fn production_lines(&self) -> Vec<(usize, String)> {
        let mut lines = self.code_lines();
        let tests = test_modules(&lines);
        lines.retain(|(number, _)| !tests.iter().any(|module| module.contains(number)));
        lines
    }

    /// Number of the line at a byte offset.
    pub(crate) fn line_at(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

/// First to last line of each inline module behind `#[cfg(test)]`.
fn test_modules(lines: &[(usize, String)]) -> Vec<std::ops::RangeInclusive<usize>> {
    let mut modules = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let starts = lines[at].1.trim_start().starts_with("#[cfg(test)]");
        let Some(end) = starts.then(|| module_end(&lines[at..])).flatten() else {
            at += 1;
            continue;
        };
        modules.push(lines[at].0..=lines[at + end].0);
        at += end + 1;
    }
    modules
}

/// How many lines after the attribute its module ends; `None` where no `mod … {` follows it.
fn module_end(lines: &[(usize, String)]) -> Option<usize> {
    let (mut depth, mut seen_mod) = (0_usize, false);
    for (i, (_, line)) in lines.iter().enumerate() {
        seen_mod |= has_word(line, "mod");
        for byte in line.bytes() {
            match byte {
                b'{' if seen_mod => depth += 1,
                b'}' if depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(i);
                    }
                }
                // The attribute belongs to something else than a module with a body.
                b'{' | b';' | b'=' if depth == 0 => return None,
                _ => {}
            }
        }
    }
    None
}

/// Whether the line has the word, not as part of a longer one.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let bytes = line.as_bytes();
        let begins = at == 0 || !is_word(bytes[at - 1]);
        let ends = bytes
            .get(at + word.len())
            .is_none_or(|byte| !is_word(*byte));
        begins && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modules_are_cut_out_and_nothing_else() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\"; }\n}\nfn c() {}\n\
                    #[cfg(test)]\nfn d() {}\n#[cfg(test)]\nmod far;\nfn e() {}\n";
        let file = File::new("x.rs", text.to_owned());
        let kept: Vec<usize> = file.production_lines().iter().map(|(n, _)| *n).collect();
        assert_eq!(kept, [1, 6, 7, 8, 9, 10, 11]);
    }

    #[test]
    fn words_have_borders() {
        assert!(has_word("use rand::Rng;", "rand"));
        assert!(!has_word("operand + random + rand_core", "rand"));
    }

    #[test]
    fn tests_are_known_by_their_place() {
        for (path, test) in [
            ("tests/src/sim.rs", true),
            ("shared/link/tests/pair.rs", true),
            ("learner/core/src/tests.rs", true),
            ("shared/link/src/pair_tests.rs", true),
            ("clients/python/test_sdk.py", true),
            ("shared/testkit/src/lib.rs", false),
            ("shared/env/src/attest.rs", false),
        ] {
            let file = File::new(path, String::new());
            assert_eq!(file.is_test(), test, "{path}");
        }
    }

    #[test]
    fn paths_are_folders_only_with_a_slash() {
        let file = File::new("a/core/src/x.rs", String::new());
        assert!(file.is_under(&["a/core/"]) && file.is_under(&["a/core/src/x.rs"]));
        assert!(!file.is_under(&["a/core"]) && !file.is_under(&["core/"]));
        assert_eq!(File::new("x", "a\nb\nc".to_owned()).line_at(2), 2);
    }
}
