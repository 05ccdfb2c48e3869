//! An error that a user can meet has a page that tells its cause and what to do.

use std::collections::{BTreeMap, BTreeSet};

use crate::finding::Finding;
use crate::source::File;
use crate::tree::Tree;

const RULE: &str = "error-page";

/// Where the codes are declared that travel and end commands.
const CODES: &str = "shared/protocol/src/fault.rs";

/// Where those of the link are, which logs and messages name.
const LINK_CODES: &str = "shared/link/src/error.rs";

/// Where their pages lie.
const PAGES: &str = "docs/errors/";

/// What every page has, each with text below it.
const SECTIONS: [&str; 2] = ["## Cause", "## What to do"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(source) = tree.file(CODES) else {
        return Vec::new();
    };
    let codes = codes(source);
    if codes.is_empty() {
        let why = "no error codes found here: has the way they are declared changed?";
        return vec![Finding::new(CODES, 1, RULE, why)];
    }
    let of_link = tree.file(LINK_CODES).map(self::codes).unwrap_or_default();
    let mut findings = Vec::new();
    let declared = codes.iter().map(|code| (CODES, code));
    let declared = declared.chain(of_link.iter().map(|code| (LINK_CODES, code)));
    let mut all = BTreeSet::new();
    for (source, (code, line)) in declared {
        if !all.insert(code) {
            continue; // The same error, at the link and above it.
        }
        let path = format!("{PAGES}{code}.md");
        match tree.file(&path) {
            Some(page) => findings.extend(check_page(page, code)),
            None => {
                let why = format!("{code} has no page {path}");
                findings.push(Finding::new(source, *line, RULE, why));
            }
        }
    }
    findings.extend(stale_pages(tree, &all));
    findings
}

/// The codes with their lines: literals of capitals and underscores outside tests.
fn codes(source: &File) -> BTreeMap<String, usize> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut codes = BTreeMap::new();
    for (number, code) in source.production_lines() {
        let Some(line) = lines.get(number - 1) else {
            continue;
        };
        // A literal is blank in the code and follows a declaration's sign.
        if !code.contains('=') {
            continue;
        }
        for literal in line
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| is_code(text))
        {
            codes.insert(literal.to_owned(), number);
        }
    }
    codes
}

fn is_code(text: &str) -> bool {
    let capitals = text
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    capitals && text.len() >= 3
}

fn check_page(page: &File, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let title = format!("# {code}");
    if page.text.lines().next() != Some(&*title) {
        let why = format!("the first line is not '{title}'");
        findings.push(Finding::new(&page.path, 1, RULE, why));
    }
    for section in SECTIONS {
        let mut rest = page
            .text
            .lines()
            .skip_while(|line| *line != section)
            .skip(1);
        let body = rest.by_ref().take_while(|line| !line.starts_with("## "));
        if !body.into_iter().any(|line| !line.trim().is_empty()) {
            let why = format!("no text under '{section}'");
            findings.push(Finding::new(&page.path, 1, RULE, why));
        }
    }
    findings
}

/// Pages of codes that are no more.
fn stale_pages(tree: &Tree, codes: &BTreeSet<&String>) -> Vec<Finding> {
    tree.files()
        .iter()
        .filter_map(|file| {
            let name = file.path.strip_prefix(PAGES)?.strip_suffix(".md")?;
            let is_known = codes.iter().any(|code| *code == name);
            (is_code(name) && !is_known).then(|| {
                let why = format!("there is no error code {name} in {CODES} or {LINK_CODES}");
                Finding::new(&file.path, 1, RULE, why)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    const SOURCE: &str = "error_codes! {\n    /// A \"WORD\" in a comment.\n    Internal = \"INTERNAL\", 70;\n\
                          }\n#[cfg(test)]\nmod tests {\n    const X: &str = \"NO_SUCH\";\n}\n";
    const PAGE: &str = "# INTERNAL\n\n## Cause\nA defect.\n\n## What to do\nReport it.\n";

    fn with_page(page: &str) -> Vec<String> {
        told(check, &[(CODES, SOURCE), ("docs/errors/INTERNAL.md", page)])
    }

    #[test]
    fn a_code_with_its_page_is_right() {
        assert_eq!(with_page(PAGE), [""; 0]);
        assert_eq!(
            told(check, &[]),
            [""; 0],
            "nothing to check before the codes exist"
        );
    }

    #[test]
    fn codes_of_the_link_have_pages_too() {
        let link = "match self {\n    Self::A => \"INTERNAL\",\n    Self::B => \"BULK_LOST\",\n}\n";
        let files = [
            (CODES, SOURCE),
            (LINK_CODES, link),
            ("docs/errors/INTERNAL.md", PAGE),
        ];
        let found = told(check, &files);
        let due = format!("{LINK_CODES}:3: error-page: BULK_LOST has no page");
        assert!(found.len() == 1 && found[0].starts_with(&due), "{found:?}");
    }

    #[test]
    fn missing_poor_and_stale_pages_are_found() {
        let missing = told(check, &[(CODES, SOURCE)]);
        assert_eq!(
            missing,
            [format!(
                "{CODES}:3: error-page: INTERNAL has no page docs/errors/INTERNAL.md"
            )]
        );
        for (page, part) in [
            (PAGE.replace("# INTERNAL", "# Internal"), "first line"),
            (PAGE.replace("A defect.", ""), "'## Cause'"),
            (PAGE.replace("Report it.", " "), "'## What to do'"),
            (PAGE.replace("## What", "### What"), "'## What to do'"),
        ] {
            let found = with_page(&page);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        }
        let files = [
            (CODES, SOURCE),
            ("docs/errors/INTERNAL.md", PAGE),
            ("docs/errors/GONE.md", PAGE),
        ];
        assert_eq!(told(check, &files).len(), 1);
        assert_eq!(told(check, &[(CODES, "enum ErrorCode {}\n")]).len(), 1);
    }
}
