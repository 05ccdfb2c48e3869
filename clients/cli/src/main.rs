//! `volley`: every role and every verb in one binary.

mod address;
mod args;
mod error_pages;
mod errors;
mod json;
mod monitor;
mod output;
mod roles;
mod table;
mod text;
mod verbs;

use std::process::ExitCode;

use clap::Parser as _;
use volley_runtime::process::Handoff;

use crate::args::Args;
use crate::output::Output;

/// A number format of the engine by its name, for flags.
fn compute(name: &str) -> Result<volley_engine::Compute, String> {
    volley_engine::Compute::from_name(name).ok_or_else(|| format!("{name} is neither f32 nor bf16"))
}

/// Threads of a policy; more than the largest machine has would only fail later.
const THREADS_MAX: usize = 256;

/// A number of threads, for flags.
fn threads(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|n| (1..=THREADS_MAX).contains(n));
    count.ok_or_else(|| format!("allowed is 1 to {THREADS_MAX}"))
}

fn main() -> ExitCode {
    // First of all: what a launcher handed over must not be read by anything else.
    let handoff = Handoff::take();
    let args = Args::parse();
    let output = Output::new(args.quiet, args.no_color);
    let outcome = match handoff {
        Ok(handoff) => verbs::run(args.verb, &output, handoff),
        Err(fault) => Err(fault.into()),
    };
    errors::conclude(outcome, &output)
}
