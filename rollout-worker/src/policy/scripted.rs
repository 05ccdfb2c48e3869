//! A policy without a model: it answers every turn with the same words. Fan-out is measured with
//! it, and environments are tried with it, because it costs nothing.
//!
//! The words are the environment option `script`, `0` when there is none. Its tokens are the
//! bytes of the words, each with log-probability 0 (it is certain of them).

use std::sync::mpsc;

use volley_protocol::EnvSpec;
use volley_protocol::worker::Lease;

use super::{PolicyCommand, PolicyEvent, Report};
use crate::episode::{Episode, EpisodeFault, Next, Player};

/// Environment option with the words.
const SCRIPT_OPTION: &str = "script";

/// Plays until it is told to stop.
pub(crate) fn run(commands: &mpsc::Receiver<PolicyCommand>, player: &Player, report: &Report) {
    while let Ok(command) = commands.recv() {
        match command {
            PolicyCommand::Start { lease, spec } => report(play(lease, &spec.env, player)),
            PolicyCommand::AddAdapter { version, .. } => report(PolicyEvent::AdapterReady(version)),
            PolicyCommand::Cancel(_) | PolicyCommand::DropAdapters(_) => {}
            PolicyCommand::Stop => return,
        }
    }
}

fn play(lease: Lease, env: &EnvSpec, player: &Player) -> PolicyEvent {
    let mut env = env.clone();
    // The option is for the policy; environments refuse settings that they do not know.
    let words = env
        .config
        .remove(SCRIPT_OPTION)
        .unwrap_or_else(|| "0".to_owned());
    let outcome = Episode::begin(lease, &env).and_then(|(episode, _)| recite(episode, &words));
    match outcome.and_then(|episode| episode.finish(player)) {
        Ok(trajectory) => PolicyEvent::Done(Box::new(trajectory)),
        Err(fault) => PolicyEvent::Failed {
            attempt: lease.attempt,
            fault,
        },
    }
}

fn recite(mut episode: Episode, words: &str) -> Result<Episode, EpisodeFault> {
    loop {
        words
            .bytes()
            .for_each(|byte| episode.record.drew(u32::from(byte), 0.0));
        if let Next::Over = episode.answer(words.to_owned(), false)? {
            return Ok(episode);
        }
    }
}
