//! Every crate takes the workspace's lints and is a member of the workspace.

use crate::finding::Finding;
use crate::source::File;
use crate::tree::Tree;

const RULE: &str = "crate-settings";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let members = members(tree);
    for (file, table) in manifests(tree) {
        let lints = table.get("lints").and_then(|lints| lints.get("workspace"));
        if lints.and_then(toml::Value::as_bool) != Some(true) {
            let why = "without '[lints] workspace = true' the house lints do not apply";
            findings.push(Finding::new(&file.path, 1, RULE, why));
        }
        let folder = file.path.trim_end_matches("/Cargo.toml");
        if !members.iter().any(|member| member == folder) {
            let why = "not among the workspace's members: nothing builds or tests it";
            findings.push(Finding::new(&file.path, 1, RULE, why));
        }
    }
    findings
}

/// Every manifest of a package, parsed. Files that do not parse are another rule's.
pub(super) fn manifests(tree: &Tree) -> impl Iterator<Item = (&File, toml::Table)> {
    tree.files()
        .iter()
        .filter(|file| file.path.ends_with("/Cargo.toml"))
        .filter_map(|file| Some((file, file.text.parse::<toml::Table>().ok()?)))
        .filter(|(_, table)| table.contains_key("package"))
}

fn members(tree: &Tree) -> Vec<String> {
    let root = tree.file("Cargo.toml");
    let table = root.and_then(|file| file.text.parse::<toml::Table>().ok());
    table
        .as_ref()
        .and_then(|table| table.get("workspace")?.get("members")?.as_array())
        .map(|members| {
            let names = members.iter().filter_map(toml::Value::as_str);
            names.map(str::to_owned).collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    const ROOT: (&str, &str) = ("Cargo.toml", "[workspace]\nmembers = [\"a\"]\n");
    const GOOD: &str = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n";

    #[test]
    fn a_crate_needs_the_lints_and_the_membership() {
        assert!(told(check, &[ROOT, ("a/Cargo.toml", GOOD)]).is_empty());
        let stray = told(check, &[ROOT, ("b/Cargo.toml", GOOD)]);
        assert!(
            stray.len() == 1 && stray[0].contains("not among"),
            "{stray:?}"
        );
        for lints in ["", "[lints]\nworkspace = false\n", "[lints.rust]\n"] {
            let text = format!("[package]\nname = \"a\"\n{lints}");
            let found = told(check, &[ROOT, ("a/Cargo.toml", &text)]);
            assert!(
                found.len() == 1 && found[0].contains("[lints]"),
                "{found:?}"
            );
        }
    }
}
