//! No path of somebody's machine: it works there and nowhere else.

use crate::finding::Finding;
use crate::tree::Tree;

const RULE: &str = "machine-path";

/// First folders of such paths, put together here so that this file does not name them.
const FOLDERS: [&str; 5] = ["work", "farm", "root", "home", "Users"];

/// Folders that hold one folder per person; naming only the first is harmless.
const HOMES: [&str; 2] = ["home", "Users"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A vocabulary is data of a model, and any piece of text may be in it.
    let vocabulary = |path: &str| path.ends_with("tokenizer.json");
    for file in tree.files().iter().filter(|file| !vocabulary(&file.path)) {
        for (i, line) in file.text.lines().enumerate() {
            if let Some(folder) = FOLDERS.iter().find(|folder| names(line, folder)) {
                let why = format!("a path under '{folder}' at the root exists on one machine only");
                findings.push(Finding::new(&file.path, i + 1, RULE, why));
            }
        }
    }
    findings
}

/// Whether the line has an absolute path that begins with this folder.
fn names(line: &str, folder: &str) -> bool {
    let wanted = format!("/{folder}");
    line.match_indices(&wanted).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + wanted.len()..];
        let absolute = before.is_none_or(|c| " \t\"'`=:(<[,>|".contains(c));
        // "://host": the second slash of an address is not the start of a path.
        absolute && ends(after, HOMES.contains(&folder))
    })
}

/// Whether the folder's name ends here, and with a person below it where it needs one.
fn ends(after: &str, with_person: bool) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let next = after.chars().next();
    if with_person {
        return next == Some('/') && after.chars().nth(1).is_some_and(part_of_word);
    }
    !next.is_some_and(part_of_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    #[test]
    fn absolute_paths_of_a_machine_are_found() {
        for (folder, rest) in [
            ("work", "/main/src"),
            ("work", ""),
            ("farm", "\" here"),
            ("root", "/.cargo"),
            ("home", "/ann/x"),
            ("Users", "/ann"),
        ] {
            for before in ["", "cd ", "path = \"", "(", "A=", "- `"] {
                let text = format!("first\n{before}/{folder}{rest}\n");
                let found = told(check, &[("notes.md", &text)]);
                assert_eq!(found.len(), 1, "{text}");
                assert!(found[0].starts_with("notes.md:2: machine-path:"));
            }
        }
    }

    #[test]
    fn relative_paths_addresses_and_words_are_not() {
        let text = "rollout-worker/work/x  ~/work/ $HOME/work https://a.b/work /workers /rooted\n\
                    ./home/ann  <path>/home  '/home' target/root/x /root-cause\n";
        assert_eq!(told(check, &[("a.rs", text)]), [""; 0]);
    }
}
