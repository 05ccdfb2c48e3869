//! The files that the rules look at.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::source::File;

/// Text of every file that git tracks or would track. Binary files are left out.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: Vec<File>,
}

impl Tree {
    /// Reads the working tree at `root`.
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let listing = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()
            .context("git does not run; tidy needs it to list the files")?;
        if !listing.status.success() {
            let said = String::from_utf8_lossy(&listing.stderr);
            bail!("git ls-files in {}: {}", root.display(), said.trim());
        }
        let mut files = Vec::new();
        let names = String::from_utf8(listing.stdout).context("a file's name is not UTF-8")?;
        for path in names.split_terminator('\0') {
            // Deleted in the working tree, a link to a folder: nothing to read.
            let Ok(bytes) = std::fs::read(root.join(path)) else {
                continue;
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File::new(path, text));
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Self { files })
    }

    /// A tree of these files, for tests of rules.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File::new(path, (*text).to_owned());
        Self {
            files: files.iter().map(file).collect(),
        }
    }

    /// All files, sorted by path.
    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    /// The file at that path.
    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.has_extension(&["rs"]))
    }
}
