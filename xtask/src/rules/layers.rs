//! Who may depend on whom. The table is the architecture: a new arrow is a decision, made here.

use std::collections::BTreeSet;

use crate::finding::Finding;
use crate::rules::crates::manifests;
use crate::source::File;
use crate::tree::Tree;

const RULE: &str = "layers";

/// A crate of ours and the crates of ours that it may depend on.
struct Layer {
    name: &'static str,
    may_use: &'static [&'static str],
}

const fn layer(name: &'static str, may_use: &'static [&'static str]) -> Layer {
    Layer { name, may_use }
}

/// `protocol ← link ← runtime`; `protocol ← engine`; cores on `protocol` alone; roles never on
/// each other; the command line starts the roles and speaks to them through the client.
const LAYERS: [Layer; 15] = [
    layer("volley-protocol", &[]),
    layer("volley-link", &["volley-protocol"]),
    layer("volley-engine", &["volley-protocol"]),
    layer("volley-env", &[]),
    layer("volley-runtime", &["volley-protocol", "volley-link"]),
    layer(
        "volley-testkit",
        &[
            "volley-protocol",
            "volley-link",
            "volley-engine",
            "volley-env",
        ],
    ),
    layer("volley-coordinator-core", &["volley-protocol"]),
    layer("volley-learner-core", &["volley-protocol"]),
    layer(
        "volley-coordinator",
        &[
            "volley-protocol",
            "volley-link",
            "volley-runtime",
            "volley-coordinator-core",
        ],
    ),
    layer(
        "volley-worker",
        &[
            "volley-protocol",
            "volley-link",
            "volley-runtime",
            "volley-engine",
            "volley-env",
        ],
    ),
    layer(
        "volley-learner",
        &[
            "volley-protocol",
            "volley-link",
            "volley-runtime",
            "volley-engine",
            "volley-learner-core",
        ],
    ),
    layer(
        "volley-client",
        &["volley-protocol", "volley-link", "volley-runtime"],
    ),
    layer(
        "volley-cli",
        &[
            "volley-protocol",
            "volley-link",
            "volley-runtime",
            "volley-engine",
            "volley-env",
            "volley-client",
            "volley-coordinator",
            "volley-worker",
            "volley-learner",
        ],
    ),
    layer("volley-tests", EVERYTHING),
    layer("xtask", &[]),
];

/// The crate of whole-system tests sees all others.
const EVERYTHING: &[&str] = &["*"];

/// For tests only: never an ordinary dependency.
const TESTKIT: &str = "volley-testkit";

/// Libraries that have one room, so that they can be exchanged behind it.
const ROOMS: [(&str, &[&str], &str); 6] = [
    ("quinn", &["volley-link"], "the network is the link's"),
    ("rustls", &["volley-link"], "the network is the link's"),
    (
        "bincode",
        &["volley-protocol"],
        "the codec is the protocol's",
    ),
    (
        "rusqlite",
        &["volley-runtime"],
        "the store is the runtime's",
    ),
    ("clap", &["volley-cli"], "the command line is the CLI's"),
    (
        "anyhow",
        &["volley-cli", "volley-tests", "xtask"],
        "libraries have errors with types",
    ),
];

/// All that a core may depend on besides `protocol`.
const CORE_LIBRARIES: [&str; 2] = ["serde", "thiserror"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, table) in manifests(tree) {
        let name = table["package"].get("name").and_then(toml::Value::as_str);
        let Some(layer) = LAYERS.iter().find(|layer| Some(layer.name) == name) else {
            let why = "this crate is not in the table of layers: decide what it may depend on";
            findings.push(Finding::new(&file.path, 1, RULE, why));
            continue;
        };
        seen.insert(layer.name);
        for (section, dependency) in dependencies(&table) {
            if let Some(why) = objection(layer, &section, &dependency) {
                let line = line_of(file, &dependency);
                findings.push(Finding::new(&file.path, line, RULE, why));
            }
        }
    }
    for layer in LAYERS.iter().filter(|layer| !seen.contains(layer.name)) {
        let why = format!(
            "the table of layers has '{}', but there is no such crate",
            layer.name
        );
        findings.push(Finding::new("xtask/src/rules/layers.rs", 1, RULE, why));
    }
    findings
}

/// Why the crate must not have that dependency.
fn objection(layer: &Layer, section: &str, dependency: &str) -> Option<String> {
    let name = layer.name;
    let dev = section == "dev-dependencies";
    if LAYERS.iter().any(|other| other.name == dependency) {
        if layer.may_use == EVERYTHING || layer.may_use.contains(&dependency) {
            return None;
        }
        if dependency == TESTKIT {
            return (!dev).then(|| format!("{TESTKIT} is for tests: a dev-dependency only"));
        }
        return Some(format!("{name} must not depend on {dependency}"));
    }
    if dev {
        return None;
    }
    if name.ends_with("-core") && !CORE_LIBRARIES.contains(&dependency) {
        return Some(format!(
            "{name} is a core, and {dependency} is none of {CORE_LIBRARIES:?}"
        ));
    }
    let (_, rooms, why) = ROOMS.iter().find(|(library, ..)| *library == dependency)?;
    (!rooms.contains(&name)).then(|| format!("{dependency} only in {}: {why}", rooms.join(", ")))
}

/// Every dependency with its section, those for one platform too.
fn dependencies(table: &toml::Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let Some(inner) = value.as_table() else {
            continue;
        };
        if key.ends_with("dependencies") {
            found.extend(
                inner
                    .iter()
                    .map(|(name, spec)| (key.clone(), package(name, spec))),
            );
        } else if key == "target" {
            let platforms = inner.values().filter_map(toml::Value::as_table);
            found.extend(platforms.flat_map(dependencies));
        }
    }
    found
}

/// The package behind a dependency's name.
fn package(name: &str, spec: &toml::Value) -> String {
    let renamed = spec.get("package").and_then(toml::Value::as_str);
    renamed.unwrap_or(name).to_owned()
}

fn line_of(file: &File, dependency: &str) -> usize {
    let found = file.text.find(dependency);
    found.map_or(1, |offset| file.line_at(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    /// What the rule says about one manifest, crates that are missing from the tree aside.
    fn said(name: &str, sections: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"{name}\"\n{sections}");
        let mut found = told(check, &[("x/Cargo.toml", &text)]);
        found.retain(|line| !line.contains("no such crate"));
        found
    }

    #[test]
    fn the_arrows_of_the_table_are_allowed() {
        for (name, sections) in [
            (
                "volley-link",
                "[dependencies]\nvolley-protocol = {}\nquinn = \"1\"\n",
            ),
            (
                "volley-coordinator-core",
                "[dependencies]\nvolley-protocol = {}\nserde = \"1\"\n",
            ),
            (
                "volley-coordinator-core",
                "[dev-dependencies]\nproptest = \"1\"\n",
            ),
            (
                "volley-learner",
                "[dev-dependencies]\nvolley-testkit = {}\n",
            ),
            (
                "volley-tests",
                "[dev-dependencies]\nvolley-coordinator-core = {}\n",
            ),
            (
                "volley-cli",
                "[dependencies]\nvolley-client = {}\nanyhow = \"1\"\n",
            ),
        ] {
            assert_eq!(said(name, sections), [""; 0], "{name}");
        }
    }

    #[test]
    fn every_other_arrow_is_refused() {
        for (name, sections, part) in [
            (
                "volley-protocol",
                "[dependencies]\nvolley-link = {}\n",
                "must not depend on",
            ),
            (
                "volley-worker",
                "[dependencies]\nvolley-learner = {}\n",
                "must not depend on",
            ),
            (
                "volley-worker",
                "[dev-dependencies]\nvolley-learner = {}\n",
                "must not depend on",
            ),
            (
                "volley-env",
                "[dependencies]\nvolley-protocol = {}\n",
                "must not depend on",
            ),
            (
                "volley-learner",
                "[dependencies]\nvolley-testkit = {}\n",
                "for tests",
            ),
            (
                "volley-learner-core",
                "[dependencies]\nrand = \"1\"\n",
                "is a core",
            ),
            (
                "volley-learner",
                "[dependencies]\nbincode = \"2\"\n",
                "the codec is",
            ),
            (
                "volley-learner",
                "[build-dependencies]\nquinn = \"2\"\n",
                "the network is",
            ),
            (
                "volley-client",
                "[target.'cfg(unix)'.dependencies]\nanyhow = \"1\"\n",
                "types",
            ),
            (
                "volley-client",
                "[dependencies]\na = { package = \"rusqlite\" }\n",
                "the store is",
            ),
            ("volley-new", "", "not in the table"),
        ] {
            let found = said(name, sections);
            assert!(
                found.len() == 1 && found[0].contains(part),
                "{name}: {found:?}"
            );
        }
        let found = said("volley-env", "[dependencies]\nvolley-link = {}\n");
        assert!(found[0].starts_with("x/Cargo.toml:4: layers:"), "{found:?}");
    }

    #[test]
    fn a_row_without_a_crate_is_stale() {
        let found = told(check, &[]);
        assert_eq!(found.len(), LAYERS.len());
        assert!(found[0].contains("no such crate"));
    }

    #[test]
    fn the_table_itself_has_no_circles() {
        for (i, layer) in LAYERS.iter().enumerate() {
            for used in layer.may_use.iter().filter(|used| **used != "*") {
                let place = LAYERS.iter().position(|other| other.name == *used);
                assert!(place.is_some_and(|at| at < i), "{} uses {used}", layer.name);
            }
        }
    }
}
