//! Every TOML file parses: an example that does not is worse than none.

use crate::finding::Finding;
use crate::tree::Tree;

const RULE: &str = "toml-parses";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let files = tree.files().iter();
    files
        .filter(|file| file.has_extension(&["toml"]))
        .filter_map(|file| {
            let error = toml::from_str::<toml::Table>(&file.text).err()?;
            let line = file.line_at(error.span().map_or(0, |span| span.start));
            Some(Finding::new(&file.path, line, RULE, error.message()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::told;

    #[test]
    fn good_files_pass_and_bad_ones_are_named_with_their_line() {
        assert!(told(check, &[("examples/a/recipe.toml", "[run]\nsteps = 3\n")]).is_empty());
        let bad = told(check, &[("cluster-configs/b.toml", "[run]\nsteps = = 3\n")]);
        assert_eq!(bad.len(), 1);
        assert!(
            bad[0].starts_with("cluster-configs/b.toml:2: toml-parses:"),
            "{bad:?}"
        );
    }
}
