//! The warm policy: base weights once, adapters beside them, continuous batching.
//!
//! Every pass of the loop takes in what it was told, runs **one** forward over all episodes that
//! have tokens to compute (some prefill, some decode: one code path), draws one token for each,
//! and hands finished turns to their environments. With nothing to play it sleeps on its channel.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use volley_engine::adapter::Adapter;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::sampler::{self, SamplingParams};
use volley_engine::text::{ChatMessage, ChatTemplate, Tokenizer};
use volley_env::Observation;
use volley_protocol::adapter::AdapterVersion;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::AttemptId;
use volley_protocol::worker::{Lease, LeasePolicy};
use volley_protocol::{Digest, JobSpec};

use super::prefix::PrefixCache;
use super::{PolicyCommand, PolicyCounters, PolicyEvent, Report};
use crate::episode::{Episode, EpisodeFault, Next, Player};

/// Everything that is loaded once.
pub(crate) struct WarmPolicy {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: ChatTemplate,
    pub(crate) stop: Vec<u32>,
    pub(crate) threads: Threads,
}

/// The policy thread's state.
pub(crate) struct EnginePolicy {
    warm: WarmPolicy,
    player: Player,
    report: Report,
    counters: Arc<PolicyCounters>,
    adapters: BTreeMap<Digest, Arc<Adapter>>,
    prefixes: PrefixCache,
    slots: Vec<Slot>,
    scratch: Scratch,
}

struct Slot {
    episode: Episode,
    adapter: Option<(Digest, Arc<Adapter>)>,
    cache: KvCache,
    sampling: SamplingParams,
    /// Tokens that are part of the conversation but not yet in the cache.
    pending: Vec<u32>,
    /// Where the current turn's sampled tokens begin.
    turn_at: usize,
    turn_tokens_max: usize,
    /// The first prefill is worth remembering for the rest of the group.
    is_prompt: bool,
}

enum Turn {
    Goes,
    Ends { cut_off: bool },
}

impl EnginePolicy {
    pub(crate) fn new(
        warm: WarmPolicy,
        player: Player,
        counters: Arc<PolicyCounters>,
        report: Report,
    ) -> Self {
        Self {
            warm,
            player,
            report,
            counters,
            adapters: BTreeMap::new(),
            prefixes: PrefixCache::default(),
            slots: Vec::new(),
            scratch: Scratch::new(),
        }
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
            PolicyCommand::Start { lease, spec } => match self.admit(lease, &spec) {
                Ok(slot) => self.slots.push(slot),
                Err(fault) => self.fail(lease.attempt, fault),
            },
            PolicyCommand::Cancel(attempt) => {
                self.slots
                    .retain(|slot| slot.episode.lease.attempt != attempt);
            }
            PolicyCommand::AddAdapter { version, bytes } => self.add_adapter(version, &bytes),
            PolicyCommand::DropAdapters(digests) => {
                for digest in digests {
                    self.adapters.remove(&digest);
                    self.prefixes.forget(digest);
                }
            }
            PolicyCommand::Stop => {}
        }
    }

    fn add_adapter(&mut self, version: AdapterVersion, bytes: &[u8]) {
        let event = match Adapter::from_bytes(self.warm.model.config(), bytes) {
            Ok(adapter) => {
                self.adapters.insert(version.digest, Arc::new(adapter));
                PolicyEvent::AdapterReady(version)
            }
            Err(error) => PolicyEvent::AdapterFailed {
                version,
                fault: Fault::from(&error),
            },
        };
        (self.report)(event);
    }

    fn admit(&self, lease: Lease, spec: &JobSpec) -> Result<Slot, EpisodeFault> {
        let adapter = match lease.policy {
            LeasePolicy::Base => None,
            LeasePolicy::Adapter { version, .. } => {
                let adapter = self.adapters.get(&version.digest).cloned().ok_or_else(|| {
                    EpisodeFault::retryable(
                        ErrorCode::AdapterUnavailable,
                        format!("adapter {version:?} is not in memory"),
                    )
                })?;
                Some((version.digest, adapter))
            }
        };
        let sampling = SamplingParams {
            temperature: spec.sampling.temperature,
            top_k: spec.sampling.top_k,
            top_p: spec.sampling.top_p,
            min_p: spec.sampling.min_p,
        };
        let (episode, observation) = Episode::begin(lease, &spec.env)?;
        let prompt = self.warm.prompt(&episode)?;
        let digest = adapter.as_ref().map(|(digest, _)| *digest);
        let (cache, pending, is_prompt) = match self.prefixes.get(digest, &prompt) {
            Some(cache) => (cache, prompt[prompt.len() - 1..].to_vec(), false),
            None => (KvCache::new(self.warm.model.config()), prompt.clone(), true),
        };
        let mut slot = Slot {
            episode,
            adapter,
            cache,
            sampling,
            pending,
            turn_at: 0,
            turn_tokens_max: 0,
            is_prompt,
        };
        slot.episode.record.given(&prompt);
        slot.begin_turn(&observation);
        self.warm.check_context(&slot)?;
        Ok(slot)
    }

    /// One forward over everything that has something to compute, one token for each.
    fn step(&mut self) {
        let chosen = self.choose();
        let mut batch: Vec<SequenceStep<'_>> = Vec::with_capacity(chosen.len());
        for (slot, _) in self
            .slots
            .iter_mut()
            .zip(&chosen)
            .filter(|(_, chosen)| **chosen)
        {
            batch.push(SequenceStep {
                tokens: &slot.pending,
                cache: &mut slot.cache,
                adapter: slot.adapter.as_ref().map(|(_, adapter)| adapter.as_ref()),
                logits: LogitsWanted::Last,
            });
        }
        let computed: u64 = batch.iter().map(|step| step.tokens.len() as u64).sum();
        let drawn = batch.len() as u64;
        let forward = self
            .warm
            .model
            .forward(&mut batch, &self.warm.threads, &mut self.scratch);
        drop(batch);
        match forward {
            Ok(logits) => {
                self.counters.add(drawn, computed - drawn);
                let slots = std::mem::take(&mut self.slots);
                let mut rows = logits.iter();
                for (slot, chosen) in slots.into_iter().zip(chosen) {
                    if !chosen {
                        self.slots.push(slot);
                    } else if let Some(row) = rows.next() {
                        self.advance(slot, row.row(row.rows() - 1));
                    }
                }
            }
            Err(error) => self.fail_all(&Fault::from(&error)),
        }
    }

    /// Which slots compute now. A prompt that another slot prefills in this very pass waits, to
    /// be copied in the next.
    fn choose(&mut self) -> Vec<bool> {
        let mut first: BTreeMap<(Option<Digest>, Vec<u32>), ()> = BTreeMap::new();
        let mut chosen = Vec::with_capacity(self.slots.len());
        for slot in &mut self.slots {
            if !slot.is_prompt {
                chosen.push(true);
                continue;
            }
            let digest = slot.adapter.as_ref().map(|(digest, _)| *digest);
            if let Some(cache) = self.prefixes.get(digest, &slot.pending) {
                slot.cache = cache;
                slot.pending.drain(..slot.pending.len() - 1);
                slot.is_prompt = false;
                chosen.push(true);
            } else {
                let key = (digest, slot.pending.clone());
                chosen.push(first.insert(key, ()).is_none());
            }
        }
        chosen
    }

    /// Draws the next token of a slot and follows what comes of it.
    fn advance(&mut self, mut slot: Slot, logits: &[f32]) {
        if slot.is_prompt {
            let digest = slot.adapter.as_ref().map(|(digest, _)| *digest);
            self.prefixes
                .put(digest, &slot.episode.record.tokens, &slot.cache);
            slot.is_prompt = false;
        }
        let attempt = slot.episode.lease.attempt;
        let outcome = match slot.draw(logits, &self.warm.stop) {
            Turn::Goes => Ok(Some(slot)),
            Turn::Ends { cut_off } => {
                self.warm
                    .end_turn(slot, cut_off)
                    .and_then(|ended| match ended {
                        Ended::Goes(slot) => Ok(Some(*slot)),
                        Ended::Over(episode) => {
                            let trajectory = episode.finish(&self.player)?;
                            (self.report)(PolicyEvent::Done(Box::new(trajectory)));
                            Ok(None)
                        }
                    })
            }
        };
        match outcome {
            Ok(Some(slot)) => self.slots.push(slot),
            Ok(None) => {}
            Err(fault) => self.fail(attempt, fault),
        }
    }

    fn fail(&self, attempt: AttemptId, fault: EpisodeFault) {
        (self.report)(PolicyEvent::Failed { attempt, fault });
    }

    fn fail_all(&mut self, fault: &Fault) {
        for slot in std::mem::take(&mut self.slots) {
            let fault = EpisodeFault {
                fault: fault.clone(),
                retryable: true,
            };
            self.fail(slot.episode.lease.attempt, fault);
        }
    }
}

enum Ended {
    Goes(Box<Slot>),
    Over(Box<Episode>),
}

impl WarmPolicy {
    fn prompt(&self, episode: &Episode) -> Result<Vec<u32>, EpisodeFault> {
        let messages = chat_messages(&episode.dialogue);
        self.chat
            .prompt_ids(&self.tokenizer, &messages)
            .map_err(|error| EpisodeFault {
                fault: Fault::from(&error),
                retryable: false,
            })
    }

    /// The turn's text goes to the environment; what it answers becomes the next tokens.
    fn end_turn(&self, mut slot: Slot, cut_off: bool) -> Result<Ended, EpisodeFault> {
        let fatal = |error| EpisodeFault {
            fault: Fault::from(&error),
            retryable: false,
        };
        let turn = &slot.episode.record.tokens[slot.turn_at..];
        let spoken = if cut_off {
            turn
        } else {
            &turn[..turn.len() - 1]
        };
        let text = self.tokenizer.decode(spoken, true).map_err(fatal)?;
        let before = slot.episode.dialogue.len() + 1;
        match slot.episode.answer(text, cut_off)? {
            Next::Over => Ok(Ended::Over(Box::new(slot.episode))),
            Next::Answer(observation) => {
                let dialogue = chat_messages(&slot.episode.dialogue);
                let (so_far, new) = dialogue.split_at(before);
                let given = if cut_off {
                    self.chat
                        .cut_off_continuation_ids(&self.tokenizer, so_far, new)
                } else {
                    self.chat.continuation_ids(&self.tokenizer, so_far, new)
                };
                let given = given.map_err(fatal)?;
                slot.pending.extend_from_slice(&given);
                slot.episode.record.given(&given);
                slot.begin_turn(&observation);
                self.check_context(&slot)?;
                Ok(Ended::Goes(Box::new(slot)))
            }
        }
    }

    fn check_context(&self, slot: &Slot) -> Result<(), EpisodeFault> {
        let need = slot.episode.record.tokens.len() + slot.turn_tokens_max;
        let context = self.model.config().max_position_embeddings;
        if need <= context {
            return Ok(());
        }
        Err(EpisodeFault::fatal(
            ErrorCode::ContextExceeded,
            format!("the turn may reach {need} tokens, the model's context has {context}"),
        ))
    }
}

impl Slot {
    fn begin_turn(&mut self, observation: &Observation) {
        self.turn_at = self.episode.record.tokens.len();
        // One more for the end marker, which the environment does not count.
        self.turn_tokens_max = observation.max_new_tokens as usize + 1;
    }

    fn draw(&mut self, logits: &[f32], stop: &[u32]) -> Turn {
        let position = self.episode.record.tokens.len() as u64;
        let drawn = sampler::sample(logits, &self.sampling, self.episode.lease.seed, position);
        self.episode.record.drew(drawn.token, drawn.logprob);
        self.pending.clear();
        self.pending.push(drawn.token);
        if stop.contains(&drawn.token) {
            Turn::Ends { cut_off: false }
        } else if self.episode.record.tokens.len() - self.turn_at >= self.turn_tokens_max {
            Turn::Ends { cut_off: true }
        } else {
            Turn::Goes
        }
    }
}

fn chat_messages(dialogue: &[volley_env::Message]) -> Vec<ChatMessage> {
    dialogue
        .iter()
        .map(|m| ChatMessage::new(m.role.as_str(), m.content.clone()))
        .collect()
}
