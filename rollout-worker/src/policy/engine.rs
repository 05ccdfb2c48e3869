//! The warm policy: base weights once, adapters beside them, continuous batching.
//!
//! Every pass of the loop takes in what it was told, lets the decoder draw one token for every
//! episode that is to speak, and hands finished turns to their environments. With nothing to play
//! it sleeps on its channel.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use volley_engine::cpu::threads::Threads;
use volley_engine::decode::{Decoder, Drawn, Request, SequenceId, TurnEnd};
use volley_engine::model::Model;
use volley_engine::sampler::SamplingParams;
use volley_engine::text::{ChatMessage, ChatTemplate, StopStrings, Tokenizer};
use volley_env::Observation;
use volley_protocol::JobSpec;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::AttemptId;
use volley_protocol::worker::{Lease, LeasePolicy};

use super::shelf::AdapterShelf;
use super::{PolicyCommand, PolicyCounters, PolicyEvent, Report};
use crate::episode::{Episode, EpisodeFault, Next, Player};

/// Everything that is loaded once.
pub(crate) struct WarmPolicy {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: ChatTemplate,
    pub(crate) stop: Arc<[u32]>,
    pub(crate) threads: Threads,
}

/// The policy thread's state.
pub(crate) struct EnginePolicy {
    warm: WarmPolicy,
    player: Player,
    report: Report,
    counters: Arc<PolicyCounters>,
    shelf: AdapterShelf,
    decoder: Decoder,
    slots: BTreeMap<SequenceId, Slot>,
    next_sequence: SequenceId,
}

/// An episode that is played.
struct Slot {
    episode: Episode,
    /// Strings that end a turn.
    stop: StopStrings,
    /// Where the current turn's drawn tokens begin.
    turn_at: usize,
}

/// What a turn said, and how it ended.
struct Said {
    text: String,
    /// The turn was cut off at its length.
    is_cut_off: bool,
    /// The end marker of a turn was drawn, and need not be given.
    is_closed: bool,
}

impl EnginePolicy {
    pub(crate) fn new(
        warm: WarmPolicy,
        player: Player,
        counters: Arc<PolicyCounters>,
        report: Report,
    ) -> Result<Self, Fault> {
        Ok(Self {
            shelf: AdapterShelf::new(Arc::clone(&warm.model), Arc::clone(&report))?,
            warm,
            player,
            report,
            counters,
            decoder: Decoder::new(),
            slots: BTreeMap::new(),
            next_sequence: 0,
        })
    }

    /// Plays until it is told to stop.
    pub(crate) fn run(mut self, commands: &mpsc::Receiver<PolicyCommand>) {
        loop {
            while let Some(command) = self.next_command(commands) {
                if matches!(command, PolicyCommand::Stop) {
                    return;
                }
                self.obey(command);
            }
            self.step();
        }
    }

    /// The next command: waits for one when there is nothing to play.
    fn next_command(&self, commands: &mpsc::Receiver<PolicyCommand>) -> Option<PolicyCommand> {
        if self.slots.is_empty() {
            // A closed channel means that the driver is gone.
            return Some(commands.recv().unwrap_or(PolicyCommand::Stop));
        }
        match commands.try_recv() {
            Ok(command) => Some(command),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(PolicyCommand::Stop),
        }
    }

    fn obey(&mut self, command: PolicyCommand) {
        match command {
            PolicyCommand::Start { lease, spec } => {
                let attempt = lease.attempt;
                if let Err(fault) = self.admit(lease, &spec) {
                    self.fail(attempt, fault);
                }
            }
            PolicyCommand::Cancel(attempt) => {
                let is_it = |slot: &Slot| slot.episode.lease.attempt == attempt;
                let ids = self.slots.iter().filter(|(_, slot)| is_it(slot));
                for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.forget(id);
                }
            }
            PolicyCommand::AddAdapter { version, bytes } => self.shelf.add(version, bytes),
            PolicyCommand::DropAdapters(digests) => {
                for digest in digests {
                    self.shelf.remove(digest);
                }
                self.decoder.sweep();
            }
            PolicyCommand::Stop => {}
        }
    }

    fn admit(&mut self, lease: Lease, spec: &JobSpec) -> Result<(), EpisodeFault> {
        let adapter = match lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => {
                let adapter = self.shelf.get(version.digest).ok_or_else(|| {
                    EpisodeFault::retryable(
                        ErrorCode::AdapterUnavailable,
                        format!("adapter {version:?} is not in memory"),
                    )
                })?;
                Some(adapter)
            }
        };
        let sampling = &spec.sampling;
        let (mut episode, observation) = Episode::begin(lease, &spec.env)?;
        let prompt = self.warm.prompt(&episode)?;
        let request = Request {
            adapter,
            sampling: SamplingParams {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
            },
            seed: episode.lease.seed,
            stop_tokens: Arc::clone(&self.warm.stop),
            ..Request::new(prompt.clone(), turn_tokens_max(&observation))
        };
        let id = self.next_sequence;
        let started = self.decoder.start(&self.warm.model, id, request);
        started.map_err(|error| fatal(&error))?;
        self.next_sequence += 1;
        episode.record.given(&prompt);
        let slot = Slot {
            episode,
            stop: StopStrings::new(sampling.stop.iter().cloned()),
            turn_at: prompt.len(),
        };
        self.slots.insert(id, slot);
        Ok(())
    }

    /// One forward over everything that has something to compute.
    fn step(&mut self) {
        match self.decoder.step(&self.warm.model, &self.warm.threads) {
            Ok(step) => {
                let tokens = step.drawn.len() as u64;
                self.counters.add(tokens, step.prefilled as u64);
                for drawn in step.drawn {
                    self.advance(&drawn);
                }
            }
            Err(error) => self.fail_all(&Fault::from(&error)),
        }
    }

    /// Follows what comes of a drawn token.
    fn advance(&mut self, drawn: &Drawn) {
        let id = drawn.sequence;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let attempt = slot.episode.lease.attempt;
        let record = &mut slot.episode.record;
        record.drew(drawn.token, drawn.logprobs.logprob);
        let outcome = match self.warm.said(slot, drawn.end) {
            Ok(None) => return,
            Ok(Some(said)) => self.end_turn(id, said),
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(episode)) => match episode.finish(&self.player) {
                Ok(trajectory) => (self.report)(PolicyEvent::Done(Box::new(trajectory))),
                Err(fault) => self.fail(attempt, fault),
            },
            Err(fault) => {
                self.forget(id);
                self.fail(attempt, fault);
            }
        }
    }

    /// The turn's text goes to the environment; what it answers becomes the next tokens. Returns
    /// the episode when it is over.
    fn end_turn(&mut self, id: SequenceId, said: Said) -> Result<Option<Episode>, EpisodeFault> {
        let Some(slot) = self.slots.get_mut(&id) else {
            return Ok(None);
        };
        let before = slot.episode.dialogue.len() + 1;
        let observation = match slot.episode.answer(said.text, said.is_cut_off)? {
            Next::Over => return Ok(self.forget(id).map(|slot| slot.episode)),
            Next::Answer(observation) => observation,
        };
        let dialogue = chat_messages(&slot.episode.dialogue);
        let (so_far, new) = dialogue.split_at(before);
        let WarmPolicy {
            chat, tokenizer, ..
        } = &self.warm;
        let given = match said.is_closed {
            true => chat.continuation_ids(tokenizer, so_far, new),
            false => chat.cut_off_continuation_ids(tokenizer, so_far, new),
        };
        let given = given.map_err(|error| fatal(&error))?;
        let length = turn_tokens_max(&observation);
        // A turn that a stop string ended is still going on for the decoder.
        let ended = self.decoder.end_turn(id);
        let next = ended.and_then(|()| {
            let model = &self.warm.model;
            self.decoder.go_on(model, id, &given, length)
        });
        next.map_err(|error| fatal(&error))?;
        slot.episode.record.given(&given);
        slot.turn_at = slot.episode.record.tokens.len();
        Ok(None)
    }

    fn forget(&mut self, id: SequenceId) -> Option<Slot> {
        self.decoder.remove(id);
        self.slots.remove(&id)
    }

    fn fail(&self, attempt: AttemptId, fault: EpisodeFault) {
        (self.report)(PolicyEvent::Failed { attempt, fault });
    }

    fn fail_all(&mut self, fault: &Fault) {
        self.decoder = Decoder::new();
        for slot in std::mem::take(&mut self.slots).into_values() {
            let fault = EpisodeFault {
                fault: fault.clone(),
                retryable: true,
            };
            self.fail(slot.episode.lease.attempt, fault);
        }
    }
}

impl WarmPolicy {
    fn prompt(&self, episode: &Episode) -> Result<Vec<u32>, EpisodeFault> {
        let messages = chat_messages(&episode.dialogue);
        let prompt = self.chat.prompt_ids(&self.tokenizer, &messages);
        prompt.map_err(|error| fatal(&error))
    }

    /// What the turn said, if it is over.
    fn said(&self, slot: &Slot, end: Option<TurnEnd>) -> Result<Option<Said>, EpisodeFault> {
        let turn = &slot.episode.record.tokens[slot.turn_at..];
        let cut = slot.stop.cut(&self.tokenizer, turn);
        if let Some(text) = cut.map_err(|error| fatal(&error))? {
            return Ok(Some(Said {
                text,
                is_cut_off: false,
                is_closed: end == Some(TurnEnd::StopToken),
            }));
        }
        let spoken = match end {
            None => return Ok(None),
            Some(TurnEnd::StopToken) => &turn[..turn.len() - 1],
            Some(TurnEnd::Length) => turn,
        };
        let text = self.tokenizer.decode(spoken, true);
        Ok(Some(Said {
            text: text.map_err(|error| fatal(&error))?,
            is_cut_off: end == Some(TurnEnd::Length),
            is_closed: end == Some(TurnEnd::StopToken),
        }))
    }
}

fn fatal(error: &volley_engine::EngineError) -> EpisodeFault {
    EpisodeFault {
        fault: Fault::from(error),
        retryable: false,
    }
}

/// One more for the end marker, which the environment does not count.
const fn turn_tokens_max(observation: &Observation) -> usize {
    observation.max_new_tokens as usize + 1
}

fn chat_messages(dialogue: &[volley_env::Message]) -> Vec<ChatMessage> {
    dialogue
        .iter()
        .map(|m| ChatMessage::new(m.role.as_str(), m.content.clone()))
        .collect()
}
