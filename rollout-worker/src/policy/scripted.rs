//! A policy without a model: it answers every turn with the same words. Fan-out is measured with
//! it, and environments are tried with it, because it costs nothing.
//!
//! The words are the environment option `script`, `0` when there is none. Its tokens are the
//! bytes of the words, each with log-probability 0 (it is certain of them). With the option
//! `script_tokens` it says nothing, in so many tokens: trajectories of any length can be sent that
//! way.

use std::collections::BTreeMap;
use std::sync::mpsc;

use volley_protocol::EnvSpec;
use volley_protocol::fault::ErrorCode;
use volley_protocol::limits::TRAJECTORY_TOKENS_MAX;
use volley_protocol::worker::Lease;

use super::{PolicyCommand, PolicyEvent, Report};
use crate::episode::{Episode, EpisodeFault, Next, Player};

/// Environment option with the words.
const SCRIPT_OPTION: &str = "script";

/// Environment option with a number of tokens to say nothing in.
const TOKENS_OPTION: &str = "script_tokens";

/// Plays until it is told to stop.
pub(crate) fn run(commands: &mpsc::Receiver<PolicyCommand>, player: &Player, report: &Report) {
    // It says the same with every adapter, but has them in memory as it reports.
    let mut adapters = BTreeMap::new();
    while let Ok(command) = commands.recv() {
        match command {
            PolicyCommand::Start { lease, spec } => report(play(lease, &spec.env, player)),
            PolicyCommand::AddAdapter { version, bytes } => {
                adapters.insert(version.digest, bytes);
                report(PolicyEvent::AdapterReady(version));
            }
            PolicyCommand::DropAdapters(digests) => {
                digests
                    .iter()
                    .for_each(|digest| drop(adapters.remove(digest)));
            }
            PolicyCommand::Cancel(_) => {}
            PolicyCommand::Stop => return,
        }
    }
}

/// What is said in every turn.
struct Script {
    words: String,
    tokens: Vec<u32>,
}

impl Script {
    /// Takes what is for the policy out of the options: environments refuse what they do not know.
    fn take_from(env: &mut EnvSpec) -> Result<Self, EpisodeFault> {
        if let Some(text) = env.config.remove(TOKENS_OPTION) {
            let count = text.parse().ok();
            let count = count.filter(|n| *n <= TRAJECTORY_TOKENS_MAX as u32);
            let count = count.ok_or_else(|| {
                let allowed = format!("{TOKENS_OPTION} is a number up to {TRAJECTORY_TOKENS_MAX}");
                EpisodeFault::fatal(ErrorCode::InvalidRequest, allowed)
            })?;
            let (words, tokens) = (String::new(), (0..count).collect());
            return Ok(Self { words, tokens });
        }
        let words = env.config.remove(SCRIPT_OPTION);
        let words = words.unwrap_or_else(|| "0".to_owned());
        let tokens = words.bytes().map(u32::from).collect();
        Ok(Self { words, tokens })
    }
}

fn play(lease: Lease, env: &EnvSpec, player: &Player) -> PolicyEvent {
    let mut env = env.clone();
    let attempt = lease.attempt;
    let outcome = Script::take_from(&mut env).and_then(|script| {
        let (episode, _) = Episode::begin(lease, &env)?;
        recite(episode, &script)?.finish(player)
    });
    match outcome {
        Ok(trajectory) => PolicyEvent::Done(Box::new(trajectory)),
        Err(fault) => PolicyEvent::Failed { attempt, fault },
    }
}

fn recite(mut episode: Episode, script: &Script) -> Result<Episode, EpisodeFault> {
    loop {
        for token in &script.tokens {
            episode.record.drew(*token, 0.0);
        }
        if let Next::Over = episode.answer(script.words.clone(), false)? {
            return Ok(episode);
        }
    }
}
