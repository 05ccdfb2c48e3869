//! Prompts that were computed before. The members of a group share one prompt, and the prompts of
//! a task often share their beginning: what is there already is not computed again. The numerics
//! contract makes a shared beginning equal to a computed one, bit for bit.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::sequence::Sequence;
use crate::adapter::Adapter;
use crate::kv::KvCache;

/// Prompts kept: more groups than one worker plays at a time.
const PREFIXES_MAX: usize = 64;
/// Keys and values that they may hold. The pages of prompts in use are shared with the sequences
/// that use them, so this bounds what stays behind when those are gone.
const PREFIX_BYTES_MAX: usize = 1 << 30;
/// Fewest common tokens worth sharing: a copy of a page that is written to costs about as much as
/// a few rows of the smallest models.
pub(super) const SHARED_MIN: usize = 8;

#[derive(Debug)]
struct Prefix {
    /// Keys and values depend on the adapter. Held weakly: an adapter that nobody uses any more
    /// must not stay for a cache's sake.
    adapter: Option<Weak<Adapter>>,
    tokens: Vec<u32>,
    cache: KvCache,
}

impl Prefix {
    fn serves(&self, adapter: Option<&Arc<Adapter>>) -> bool {
        match (&self.adapter, adapter) {
            (None, None) => true,
            (Some(weak), Some(adapter)) => std::ptr::eq(weak.as_ptr(), Arc::as_ptr(adapter)),
            _ => false,
        }
    }

    fn is_alive(&self) -> bool {
        let weak = self.adapter.as_ref();
        weak.is_none_or(|weak| weak.strong_count() > 0)
    }
}

/// The last prompts, least recently used first.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    prefixes: VecDeque<Prefix>,
}

impl PrefixCache {
    /// Gives a sequence that has computed nothing the longest beginning there is. Its last token
    /// is left out: its logits are wanted.
    pub(super) fn share(&mut self, sequence: &mut Sequence) {
        let most = sequence.tokens.len() - 1;
        let shared = |prefix: &Prefix| match prefix.serves(sequence.adapter.as_ref()) {
            true => common(&prefix.tokens, &sequence.tokens).min(most),
            false => 0,
        };
        let lengths = self.prefixes.iter().map(shared).enumerate();
        let Some((index, length)) = lengths.max_by_key(|(_, length)| *length) else {
            return;
        };
        if length < sequence.cache.len() + SHARED_MIN {
            return;
        }
        if let Some(prefix) = self.prefixes.remove(index) {
            sequence.cache = prefix.cache.fork();
            sequence.cache.truncate(length);
            self.prefixes.push_back(prefix);
        }
    }

    /// Remembers the prompt of a sequence that has just computed it.
    pub(super) fn put(&mut self, sequence: &Sequence) {
        let tokens = &sequence.tokens[..sequence.cache.len()];
        let adapter = sequence.adapter.as_ref();
        self.prefixes.retain(Prefix::is_alive);
        let known = |p: &Prefix| p.serves(adapter) && p.tokens.starts_with(tokens);
        if tokens.len() < SHARED_MIN || self.prefixes.iter().any(known) {
            return;
        }
        self.prefixes.push_back(Prefix {
            adapter: adapter.map(Arc::downgrade),
            tokens: tokens.to_vec(),
            cache: sequence.cache.fork(),
        });
        let bytes = |p: &Prefix| p.cache.bytes();
        let mut held: usize = self.prefixes.iter().map(bytes).sum();
        while self.prefixes.len() > PREFIXES_MAX || held > PREFIX_BYTES_MAX {
            let Some(oldest) = self.prefixes.pop_front() else {
                break;
            };
            held -= oldest.cache.bytes();
        }
    }
}

/// Length of the common beginning.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
