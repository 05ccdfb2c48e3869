//! The command line: every verb, and the flags that several verbs share.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::roles;
use crate::verbs;

const EXIT_STATUS: &str = "Exit status:
  0 ok                    69 coordinator unreachable   75 busy, try again
  1 failed or degraded    70 defect                    77 not permitted
  2 wrong usage           74 file or store             78 configuration
                                                      130 interrupted";

/// Distributed actors for RL post-training: rollouts fan out to warm workers, a learner improves a
/// LoRA adapter, every worker gets it at once.
#[derive(Debug, Parser)]
#[command(name = "volley", version, max_term_width = 100, after_help = EXIT_STATUS)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Say nothing but data and errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// No colours; so does NO_COLOR.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Train an adapter as a recipe says: starts all roles, reports every step.
    Train(roles::TrainArgs),
    /// Start all roles on this machine and keep them up.
    Up(roles::UpArgs),
    /// The role that queues, leases and keeps the roster.
    Coordinator(roles::CoordinatorArgs),
    /// The role that plays rollouts.
    Worker(roles::WorkerArgs),
    /// The role that trains.
    Learner(roles::LearnerArgs),
    /// Play an environment over a range of seeds; results come as they land.
    Map(verbs::map::MapArgs),
    /// Add rollouts to a queue and return at once.
    Put(verbs::put::PutArgs),
    /// List, show, cancel jobs; read their results.
    #[command(subcommand)]
    Job(verbs::job::JobVerb),
    /// List and show training runs.
    #[command(subcommand)]
    Run(verbs::run::RunVerb),
    /// List, fetch and delete the versions of a run.
    #[command(subcommand)]
    Adapter(verbs::adapter::AdapterVerb),
    /// Watch a cluster: does it learn, is it busy, what is broken?
    Monitor(crate::monitor::MonitorArgs),
    /// Check this machine and say what to change.
    Doctor(verbs::doctor::DoctorArgs),
    /// Tell what an error code means and what to do.
    Explain(verbs::explain::ExplainArgs),
    /// Print a completion script for a shell.
    Completions(verbs::completions::CompletionsArgs),
    /// Measure this machine as a cluster: rollouts that cost nothing, through real processes.
    #[command(subcommand)]
    Bench(verbs::bench::BenchVerb),
    /// Check the durable files of a stopped cluster or run, and repair them.
    #[command(subcommand)]
    Journal(verbs::journal::JournalVerb),
    /// Run the engine by itself, on files: log-probabilities, texts, gradients, optimiser steps.
    #[command(subcommand)]
    Policy(verbs::policy::PolicyVerb),
}

/// Which cluster.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct ClusterArgs {
    /// Coordinator; else VOLLEY_ADDR, else the newest cluster on this machine.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) addr: Option<String>,
    /// Certificate and key of this client; needed when the cluster was not started here.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}

/// How data look.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub(crate) struct FormatArgs {
    /// JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_verb_has_one_sentence_of_help() {
        for verb in Args::command().get_subcommands() {
            let about = verb
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(about.len() > 15, "{}: {about:?}", verb.get_name());
        }
    }
}
