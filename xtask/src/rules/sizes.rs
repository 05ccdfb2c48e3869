//! A file is read from top to bottom in one go; functions are clippy's (`too_many_lines`).

use crate::finding::Finding;
use crate::source::File;
use crate::tree::Tree;

const RULE: &str = "file-size";

/// Most lines of a file, tests not counted. In the codebases that read best the median file has
/// 120 to 250 lines, and the bad places are all above a thousand.
const LINES_MAX: usize = 600;

/// What to aim for. Files above it are told at the end and do not fail.
const LINES_AIM: usize = 300;

const EXTENSIONS: [&str; 6] = ["rs", "py", "cu", "cuh", "h", "sh"];

/// Files that are kept as they are, with the reason.
const EXEMPT: [(&str, &str); 1] = [(
    "examples/models/make_tiny_base.py",
    "the record of how the demo model was made, as it ran",
)];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    sized(tree)
        .into_iter()
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| {
            let why = format!("{lines} lines, at most {LINES_MAX}: split it by verb or by noun");
            Finding::new(path, LINES_MAX + 1, RULE, why)
        })
        .collect()
}

/// Files above the aim, with their lines, the longest first.
pub(crate) fn above_aim(tree: &Tree) -> Vec<(&str, usize)> {
    let mut long = sized(tree);
    long.retain(|(_, lines)| *lines > LINES_AIM);
    long.sort_by_key(|(path, lines)| (std::cmp::Reverse(*lines), *path));
    long
}

/// Every file of code with its lines.
fn sized(tree: &Tree) -> Vec<(&str, usize)> {
    let exempt = |file: &File| EXEMPT.iter().any(|(path, _)| file.path == *path);
    tree.files()
        .iter()
        .filter(|file| file.has_extension(&EXTENSIONS) && !file.is_test() && !exempt(file))
        .map(|file| (&*file.path, lines_of(file)))
        .collect()
}

fn lines_of(file: &File) -> usize {
    if file.has_extension(&["rs"]) {
        file.production_lines().len()
    } else {
        file.text.lines().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let code = "fn f() {}\n".repeat(LINES_MAX);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(told(check, &[("a.rs", &format!("{code}{tests}"))]), [""; 0]);
        let long = format!("fn g() {{}}\n{code}{tests}");
        let found = told(
            check,
            &[("a.rs", &long), ("tests/src/b.rs", &long), ("c.md", &long)],
        );
        assert_eq!(
            found,
            ["a.rs:601: file-size: 601 lines, at most 600: split it by verb or by noun"]
        );
        assert_eq!(told(check, &[("a.py", &long)]).len(), 1);
    }

    #[test]
    fn files_above_the_aim_are_told_longest_first() {
        let lines = |n| "x();\n".repeat(n);
        let (short, long, longer) = (lines(300), lines(301), lines(400));
        let tree = Tree::of(&[("a.rs", &short), ("b.rs", &long), ("c.rs", &longer)]);
        assert_eq!(above_aim(&tree), [("c.rs", 400), ("b.rs", 301)]);
    }
}
