//! Nothing is left open in the code: what is not done is an issue, not a comment.

use crate::finding::Finding;
use crate::source::{File, has_word};
use crate::tree::Tree;

const RULE: &str = "leftover";

/// Words that mark unfinished work, in comments too; put together so that this file is clean.
const WORDS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("HA", "CK"),
];

/// Rust code that is not there yet, or is never run, and what to do about it.
const CODE: [(&str, &str); 3] = [
    ("todo!", DONE),
    ("unimplemented!", DONE),
    (
        "#[ignore",
        "a test runs or goes; one that is the main function of a child returns at once elsewhere",
    ),
];

const DONE: &str = "finish it or take it out";

const EXTENSIONS: [&str; 9] = ["rs", "py", "cu", "cuh", "h", "sh", "toml", "yaml", "yml"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.files()
        .iter()
        .filter(|file| file.has_extension(&EXTENSIONS) || file.path == ".ci/run")
        .flat_map(check_file)
        .collect()
}

fn check_file(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line, what: &str, instead: &str| {
        let why = format!("'{what}' is left: {instead}");
        findings.push(Finding::new(&file.path, line, RULE, why));
    };
    for (i, line) in file.text.lines().enumerate() {
        for word in WORDS.iter().filter(|word| has_word(line, word)) {
            found(i + 1, word, DONE);
        }
    }
    if file.has_extension(&["rs"]) {
        for (number, line) in file.code_lines() {
            for (code, instead) in CODE.iter().filter(|(code, _)| line.contains(code)) {
                found(number, code, instead);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    #[test]
    fn marks_are_found_in_comments_and_code() {
        for word in WORDS {
            let text = format!("fn f() {{}}\n// {word}: later\n");
            let found = told(check, &[("a.rs", &text)]);
            assert!(
                found.len() == 1 && found[0].starts_with("a.rs:2: leftover:"),
                "{found:?}"
            );
            assert_eq!(told(check, &[("clients/python/a.py", &text)]).len(), 1);
        }
        for code in [
            "todo!()",
            "unimplemented!(\"x\")",
            "#[ignore]",
            "#[ignore = \"slow\"]",
        ] {
            assert_eq!(told(check, &[("a.rs", code)]).len(), 1, "{code}");
        }
    }

    #[test]
    fn parts_of_words_strings_and_prose_are_not() {
        let good = "// mktemp name.XXXXXX, HACKERS\nlet s = \"todo!() #[ignore]\";\n";
        assert_eq!(told(check, &[("a.rs", good)]), [""; 0]);
        let prose = format!("A {} list.\n", WORDS[0]);
        assert_eq!(told(check, &[("docs/guide.md", &prose)]), [""; 0]);
    }
}
