//! `unsafe` lives at the edge, in files that are listed here, one by one, with a reason.

use crate::finding::Finding;
use crate::source::has_word;
use crate::tree::Tree;

const RULE: &str = "unsafe-place";

/// Files and folders (these end with a slash) that may have `unsafe`, with the reason.
const ALLOWED: [(&str, &str); 7] = [
    (
        "shared/engine/src/mapped.rs",
        "maps weight files, which are replaced by rename and never written in place",
    ),
    (
        "shared/engine/src/cpu/simd.rs",
        "kernels compiled for an instruction set are called only where it was detected",
    ),
    (
        "shared/engine/src/cpu/simd/",
        "vector intrinsics, behind the same detection",
    ),
    (
        "shared/engine/src/cpu/threads.rs",
        "hands a borrowed closure to pool threads, which are done with it before it returns",
    ),
    (
        "shared/engine/src/cpu/tiles.rs",
        "threads write disjoint tiles of one output",
    ),
    (
        "shared/engine/tests/train_memory_peak.rs",
        "an allocator that counts and passes every call on, in a test",
    ),
    (
        "shared/engine/tests/cases/mod.rs",
        "an allocator that counts, around the system's own",
    ),
];

/// The keyword, and the lint that would let it pass.
const WORDS: [&str; 2] = ["unsafe", "unsafe_code"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    check_with(tree, &ALLOWED.map(|(path, _)| path))
}

fn check_with(tree: &Tree, allowed: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| !file.is_under(allowed)) {
        for (number, line) in file.code_lines() {
            let forbids =
                line.contains("forbid(unsafe_code)") || line.contains("deny(unsafe_code)");
            if !forbids && WORDS.iter().any(|word| has_word(&line, word)) {
                let why =
                    "not a file for unsafe code: keep it at the edge, or list it with its reason";
                findings.push(Finding::new(&file.path, number, RULE, why));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: &str = "#![allow(unsafe_code)]\nfn f() {\n  unsafe { g() }\n}\n";

    #[test]
    fn unsafe_code_is_found_outside_its_places() {
        let tree = Tree::of(&[
            ("shared/engine/src/cpu/dot.rs", BAD),
            ("learner/src/a.rs", BAD),
        ]);
        let found = check_with(&tree, &["shared/engine/src/cpu/"]);
        let places: Vec<_> = found.iter().map(|f| (&*f.path, f.line)).collect();
        assert_eq!(places, [("learner/src/a.rs", 1), ("learner/src/a.rs", 3)]);
        assert_eq!(check_with(&tree, &[]).len(), 4);
    }

    #[test]
    fn words_about_it_are_free() {
        let good = "#![forbid(unsafe_code)]\n// unsafe is far\nlet s = \"unsafe\";\n";
        assert!(check_with(&Tree::of(&[("a.rs", good)]), &[]).is_empty());
    }
}
