//! Prompts that were computed before. The members of a group share one prompt, and the prompts of
//! a task often share their beginning: what is there already is not computed again. The numerics
//! contract makes a shared beginning equal to a computed one, bit for bit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use super::sequence::Sequence;
use crate::adapter::Adapter;
use crate::kv::KvCache;

/// Prompts kept: the members of a group begin close together, so that few groups are still
/// waiting for members at a time.
const PREFIXES_MAX: usize = 64;
/// Keys and values that they may hold, whoever else holds them. The newest prompt stays however
/// long it is: the rest of its group is waiting for it.
const PREFIX_BYTES_MAX: usize = 1 << 30;
/// Fewest common tokens worth sharing: a copy of a page that is written to costs about as much as
/// a few rows of the smallest models.
pub(super) const SHARED_MIN: usize = 8;

#[derive(Debug)]
struct Prefix {
    /// They are numbered as they come.
    number: u64,
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
    next_number: u64,
}

impl PrefixCache {
    /// Gives a sequence that has computed nothing the longest beginning that has come up since it
    /// was here last. Its last token is left out: its logits are wanted.
    pub(super) fn share(&mut self, sequence: &mut Sequence) {
        let most = sequence.tokens.len() - 1;
        let seen = std::mem::replace(&mut sequence.next_prefix, self.next_number);
        if seen == self.next_number {
            return;
        }
        let shared = |prefix: &Prefix| {
            let serves = prefix.number >= seen && prefix.serves(sequence.adapter.as_ref());
            let length = || common(&prefix.tokens, &sequence.tokens).min(most);
            if serves { length() } else { 0 }
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
        self.sweep();
        let known = |p: &Prefix| p.serves(adapter) && p.tokens.starts_with(tokens);
        if tokens.len() < SHARED_MIN || self.prefixes.iter().any(known) {
            return;
        }
        self.next_number += 1;
        self.prefixes.push_back(Prefix {
            number: self.next_number - 1,
            adapter: adapter.map(Arc::downgrade),
            tokens: tokens.to_vec(),
            cache: sequence.cache.fork(),
        });
        self.keep_within(PREFIXES_MAX, PREFIX_BYTES_MAX);
    }

    /// Drops what was computed with adapters that nobody holds any more.
    pub(super) fn sweep(&mut self) {
        self.prefixes.retain(Prefix::is_alive);
    }

    /// Drops the least recently used prompts, but not the last one.
    pub(super) fn keep_within(&mut self, prefixes_max: usize, bytes_max: usize) {
        while self.prefixes.len() > 1
            && (self.prefixes.len() > prefixes_max || self.bytes() > bytes_max)
        {
            self.prefixes.pop_front();
        }
    }

    /// Bytes of all pages; one that several prompts share counts once.
    fn bytes(&self) -> usize {
        let pages: BTreeMap<usize, usize> =
            self.prefixes.iter().flat_map(|p| p.cache.pages()).collect();
        pages.values().sum()
    }
}

/// Length of the common beginning.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
