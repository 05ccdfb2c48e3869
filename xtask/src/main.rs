//! Rules that are programs: `cargo xtask tidy`.
//!
//! What a reviewer would otherwise have to remember is checked here, in seconds and without
//! building anything. A finding names its place, its rule and the reason.

mod finding;
mod lexer;
mod rules;
mod source;
mod tree;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::tree::Tree;

const USAGE: &str = "usage: cargo xtask tidy";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to do where stderr is closed.
            let _ = writeln!(std::io::stderr(), "xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Checks the working tree; whether it is tidy.
fn tidy() -> anyhow::Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the xtask crate lies in the workspace's root")?;
    let tree = Tree::load(root)?;
    if tree.files().len() < 2 {
        bail!("no tracked files under {}", root.display());
    }
    let mut findings = rules::check(&tree);
    findings.sort();
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    for (path, lines) in rules::sizes::above_aim(&tree) {
        writeln!(out, "note: {path} has {lines} lines; aim for 300")?;
    }
    let (files, count) = (tree.files().len(), findings.len());
    match count {
        0 => writeln!(
            out,
            "tidy: {files} files, {} rules, no findings",
            rules::RULES.len()
        )?,
        _ => writeln!(out, "tidy: {files} files, {count} findings")?,
    }
    Ok(findings.is_empty())
}
