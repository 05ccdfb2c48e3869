//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What `VOLLEY_TEST_BINARY` names, else the `volley` of this build, built if it is not there.
pub(crate) fn volley() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the product's table of variables is not for its tests"
)]
fn find() -> PathBuf {
    if let Some(told) = std::env::var_os("VOLLEY_TEST_BINARY") {
        return told.into();
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/e2e-HASH
    let profile = test.ancestors().nth(2).expect("tests lie in deps");
    let binary = profile.join("volley");
    if !binary.exists() {
        build(profile);
    }
    assert!(binary.exists(), "no program at {}", binary.display());
    binary
}

fn build(profile: &Path) {
    let name = profile.file_name().and_then(|name| name.to_str());
    let name = match name {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let status = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "-p", "volley-cli", "--profile", name])
        .arg("--target-dir")
        .arg(
            profile
                .parent()
                .expect("profiles lie in the target directory"),
        )
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build -p volley-cli: {status}");
}
