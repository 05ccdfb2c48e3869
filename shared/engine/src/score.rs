//! Log-probabilities of given texts: to the bit those that a trainer's forward computes, and those
//! that were recorded when a text was drawn.
//!
//! **Memory.** A pass computes [`logit_rows`] rows at most. Beside what it leaves in its buffers
//! there are, however many texts there are, the keys and values of all layers for the longest text
//! and for as many rows as two passes have.

use crate::adapter::Adapter;
use crate::cpu::softmax::log_softmax_at;
use crate::cpu::threads::Threads;
use crate::error::EngineError;
use crate::kv::KvCache;
use crate::model::{LogitsWanted, Model, Scratch, SequenceStep, logit_rows};
use crate::train::{bundles, check_tokens};

/// [`score`] of many sequences. Short ones are computed together, and neighbours with a common
/// beginning, as the members of a group are, compute it once.
///
/// # Errors
///
/// Those of [`score`], for the first sequence that has one.
pub fn score_all(
    model: &Model,
    adapter: Option<&Adapter>,
    sequences: &[&[u32]],
    threads: &Threads,
) -> Result<Vec<Vec<f32>>, EngineError> {
    for tokens in sequences {
        check_tokens(tokens, model.config())?;
    }
    let mut scorer = Scorer::new(model, adapter, threads);
    scorer.all(sequences)?;
    Ok(scorer.scores)
}

/// Log-probabilities, nats, of all tokens but the first, each given those before it.
///
/// # Errors
///
/// The sequence is shorter than two tokens, too long, or leaves the vocabulary; the adapter does
/// not fit.
pub fn score(
    model: &Model,
    adapter: Option<&Adapter>,
    tokens: &[u32],
    threads: &Threads,
) -> Result<Vec<f32>, EngineError> {
    check_tokens(tokens, model.config())?;
    let mut cache = KvCache::new(model.config());
    Scorer::new(model, adapter, threads).alone(tokens, &mut cache)
}

/// A sequence whose last rows are computed together with others'.
struct Waiting<'a> {
    index: usize,
    tokens: &'a [u32],
    /// What of it is computed already.
    cache: KvCache,
}

impl Waiting<'_> {
    fn rows(&self) -> usize {
        self.tokens.len() - 1 - self.cache.len()
    }
}

struct Scorer<'a> {
    model: &'a Model,
    adapter: Option<&'a Adapter>,
    threads: &'a Threads,
    scratch: Scratch,
    rows_max: usize,
    waiting: Vec<Waiting<'a>>,
    /// By sequence.
    scores: Vec<Vec<f32>>,
    /// Computed so far.
    #[cfg(test)]
    rows: usize,
}

impl<'a> Scorer<'a> {
    fn new(model: &'a Model, adapter: Option<&'a Adapter>, threads: &'a Threads) -> Self {
        Self {
            model,
            adapter,
            threads,
            scratch: Scratch::new(),
            rows_max: logit_rows(model.config().vocab_size),
            waiting: Vec::new(),
            scores: Vec::new(),
            #[cfg(test)]
            rows: 0,
        }
    }

    fn all(&mut self, sequences: &[&'a [u32]]) -> Result<(), EngineError> {
        let inputs = sequences.iter().map(|tokens| &tokens[..tokens.len() - 1]);
        let mut rest = sequences;
        // Nothing is kept for a backward pass: a bundle may be of any size.
        for bundle in bundles(inputs, usize::MAX) {
            let (members, after) = rest.split_at(bundle.members);
            rest = after;
            let (mut prefix, mut common) = (KvCache::new(self.model.config()), Vec::new());
            if bundle.prefix > 1 {
                // What the last common row predicts is not common: each member computes it.
                common = self.alone(&members[0][..bundle.prefix], &mut prefix)?;
            }
            for tokens in members {
                let member = Waiting {
                    index: self.scores.len(),
                    tokens,
                    cache: prefix.fork(),
                };
                self.scores.push(common.clone());
                self.member(member)?;
            }
            if !prefix.is_empty() {
                // No more than one prefix is held.
                self.together()?;
            }
        }
        self.together()
    }

    fn member(&mut self, mut member: Waiting<'a>) -> Result<(), EngineError> {
        if member.rows() > self.rows_max {
            let scores = self.alone(member.tokens, &mut member.cache)?;
            self.scores[member.index].extend(scores);
            return Ok(());
        }
        let rows: usize = self.waiting.iter().map(Waiting::rows).sum();
        if rows + member.rows() > self.rows_max {
            self.together()?;
        }
        self.waiting.push(member);
        Ok(())
    }

    /// Scores the tokens after those in the cache and the one that these predict, some rows at a
    /// time.
    fn alone(&mut self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, EngineError> {
        let from = cache.len();
        let (inputs, targets) = (&tokens[from..tokens.len() - 1], &tokens[from + 1..]);
        let mut scores = Vec::with_capacity(targets.len());
        let pieces = inputs.chunks(self.rows_max);
        for (inputs, targets) in pieces.zip(targets.chunks(self.rows_max)) {
            self.pass([(inputs, targets, &mut *cache)], |_, score| {
                scores.push(score)
            })?;
        }
        Ok(scores)
    }

    /// Scores what remains of those that wait, in one pass.
    fn together(&mut self) -> Result<(), EngineError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let mut scores = std::mem::take(&mut self.scores);
        let indices: Vec<usize> = waiting.iter().map(|member| member.index).collect();
        let parts = waiting.iter_mut().map(|Waiting { tokens, cache, .. }| {
            let from = cache.len();
            (&tokens[from..tokens.len() - 1], &tokens[from + 1..], cache)
        });
        let computed = self.pass(parts, |part, score| scores[indices[part]].push(score));
        self.scores = scores;
        computed
    }

    /// One forward pass: some sequences' further inputs, and the tokens that they are to predict.
    fn pass<'s>(
        &mut self,
        parts: impl IntoIterator<Item = (&'s [u32], &'s [u32], &'s mut KvCache)>,
        mut take: impl FnMut(usize, f32),
    ) -> Result<(), EngineError> {
        let mut targets = Vec::new();
        let steps = parts.into_iter().map(|(inputs, predicted, cache)| {
            targets.push(predicted);
            SequenceStep {
                tokens: inputs,
                cache,
                adapter: self.adapter,
                logits: LogitsWanted::All,
            }
        });
        let mut steps: Vec<SequenceStep<'_>> = steps.collect();
        #[cfg(test)]
        {
            self.rows += targets.iter().map(|part| part.len()).sum::<usize>();
        }
        let logits = (self.model).forward(&mut steps, self.threads, &mut self.scratch)?;
        for (part, (targets, logits)) in targets.iter().zip(&logits).enumerate() {
            for (row, token) in targets.iter().enumerate() {
                take(part, log_softmax_at(logits.row(row), *token));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compute, ModelConfig};
    use std::path::Path;

    /// Passes of 64 rows.
    const MODEL: &str = r#"{
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32,
        "vocab_size": 4200, "tie_word_embeddings": true, "max_position_embeddings": 512,
        "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"
    }"#;

    /// `rows + 1` tokens, the first of them common to all texts of a `group`.
    fn text(group: u32, common: usize, own: u32, rows: usize) -> Vec<u32> {
        let token = |t: usize| {
            let of = if t < common { group } else { own + 100 };
            (of * 977 + t as u32 * 131) % 4200
        };
        (0..=rows).map(token).collect()
    }

    #[test]
    fn a_groups_prompt_is_computed_once_and_no_bit_changes() {
        let config = ModelConfig::parse(Path::new("config.json"), MODEL.as_bytes());
        let model = Model::synthetic(config.expect("valid"), Compute::F32, 1).expect("small");
        let threads = Threads::new(2);
        let mut texts: Vec<Vec<u32>> = vec![text(1, 0, 1, 30), text(1, 0, 2, 5)];
        // A prompt of more than a pass, answers within a page and of more than a pass.
        texts.extend((0..4).map(|own| text(2, 150, own, 160 + 40 * own as usize)));
        // Equal texts, and one that another begins with.
        texts.extend([text(3, 40, 1, 60), text(3, 40, 1, 60), text(3, 40, 1, 39)]);
        texts.extend((0..3).map(|own| text(4 + own, 0, own, 20)));
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut scorer = Scorer::new(&model, None, &threads);
        scorer.all(&texts).expect("they fit");
        for (tokens, scores) in texts.iter().zip(&scorer.scores) {
            let due = score(&model, None, tokens, &Threads::new(1)).expect("it fits");
            assert_eq!(*scores, due);
        }
        assert!(scorer.waiting.is_empty());
        // Each member computes the last common row again.
        let group = 149 + (11 + 51 + 91 + 131);
        let equal = 38 + (22 + 22 + 1);
        assert_eq!(scorer.rows, 35 + group + equal + 3 * 20);
    }
}
