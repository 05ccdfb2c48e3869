//! `volley completions`: a script that teaches a shell our verbs.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::errors::Stop;
use crate::output::Output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For example: source <(volley completions bash)
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, output: &Output) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::args::Args::command(),
        "volley",
        &mut script,
    );
    output.text(&String::from_utf8_lossy(&script))
}
