//! A core decides and does nothing else: no clock, no IO, no threads, no chance, no order by
//! hash. Only so can thousands of simulated hours be repeated from a seed.

use crate::finding::Finding;
use crate::source::{File, has_word};
use crate::tree::Tree;

const RULE: &str = "pure-core";

/// Where the cores lie.
const CORES: [&str; 4] = [
    "coordinator/core/src/",
    "learner/core/src/",
    "rollout-worker/src/core.rs",
    "rollout-worker/src/core/",
];

/// What a core must not name, and what it does instead.
const BANNED: [(&str, &str); 14] = [
    ("Instant", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("tokio", "a core is synchronous"),
    ("async", "a core is synchronous"),
    ("thread", "a core runs where it is called"),
    ("rand", "chance comes in as an argument"),
    ("HashMap", "its order differs between runs: use BTreeMap"),
    ("HashSet", "its order differs between runs: use BTreeSet"),
    ("std::fs", "effects go out as data"),
    ("TcpStream", "effects go out as data"),
    ("UdpSocket", "effects go out as data"),
    ("std::io", "effects go out as data"),
    ("std::env", "configuration comes in as an argument"),
    ("std::process", "effects go out as data"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust()
        .filter(|file| file.is_under(&CORES) && !file.is_test())
        .flat_map(check_file)
        .collect()
}

fn check_file(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.production_lines() {
        for (word, instead) in BANNED.iter().filter(|(word, _)| has_word(&line, word)) {
            let why = format!("'{word}' in a core: {instead}");
            findings.push(Finding::new(&file.path, number, RULE, why));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    const BAD: &str = "use std::collections::HashMap;\nuse std::time::{Duration, Instant};\n";

    #[test]
    fn what_is_banned_is_found_in_every_core() {
        for path in [
            "coordinator/core/src/queue.rs",
            "learner/core/src/lib.rs",
            "rollout-worker/src/core.rs",
            "rollout-worker/src/core/slots.rs",
        ] {
            let found = told(check, &[(path, BAD)]);
            assert_eq!(
                found,
                [
                    format!(
                        "{path}:1: pure-core: 'HashMap' in a core: its order differs between runs: use BTreeMap"
                    ),
                    format!(
                        "{path}:2: pure-core: 'Instant' in a core: time comes in as an argument"
                    ),
                ]
            );
        }
        let io = told(
            check,
            &[(
                "learner/core/src/a.rs",
                "std::fs::read(x);\nasync fn f() {}\n",
            )],
        );
        assert_eq!(io.len(), 2, "{io:?}");
    }

    #[test]
    fn shells_comments_words_within_words_and_tests_are_free() {
        let good = "// not an Instant\nfn operand(threads: u32) -> \"rand\" {}\n\
                    #[cfg(test)]\nmod tests {\n use std::thread;\n}\n";
        assert!(told(check, &[("learner/core/src/a.rs", good)]).is_empty());
        assert!(told(check, &[("learner/src/a.rs", BAD)]).is_empty());
        assert!(told(check, &[("learner/core/tests/a.rs", BAD)]).is_empty());
    }
}
