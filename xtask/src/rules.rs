//! The rules, one file each.

mod configs;
mod cores;
mod crates;
mod error_pages;
mod layers;
mod machine_paths;
mod markers;
pub(crate) mod sizes;
mod unsafety;

use crate::finding::Finding;
use crate::tree::Tree;

/// A rule looks at the tree and tells what is wrong.
type Rule = fn(&Tree) -> Vec<Finding>;

/// All rules.
pub(crate) const RULES: [Rule; 9] = [
    configs::check,
    cores::check,
    crates::check,
    error_pages::check,
    layers::check,
    machine_paths::check,
    markers::check,
    sizes::check,
    unsafety::check,
];

/// What all rules find.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    RULES.iter().flat_map(|rule| rule(tree)).collect()
}

/// Places and reasons of what a rule finds, for tests.
#[cfg(test)]
fn told(rule: Rule, files: &[(&str, &str)]) -> Vec<String> {
    rule(&Tree::of(files))
        .iter()
        .map(ToString::to_string)
        .collect()
}
