//! Prompts that were prefilled before: the members of a group share one prompt, so it is computed
//! once and copied. The numerics contract makes a copied prefix equal to a computed one, bit for
//! bit. The key contains the version: keys and values depend on the adapter.

use std::collections::VecDeque;

use volley_engine::kv::KvCache;
use volley_protocol::Digest;

/// Prompts kept. A worker meets few groups at a time; each costs as much as an episode's cache.
const PREFIXES_MAX: usize = 16;

#[derive(Debug)]
struct Prefix {
    adapter: Option<Digest>,
    tokens: Vec<u32>,
    cache: KvCache,
}

/// The last few prefilled prompts, oldest first.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    prefixes: VecDeque<Prefix>,
}

impl PrefixCache {
    /// A copy of the cache of exactly this prompt, without its last token: that one has to be
    /// computed again, because its logits are wanted.
    pub(crate) fn get(&self, adapter: Option<Digest>, tokens: &[u32]) -> Option<KvCache> {
        let found = self
            .prefixes
            .iter()
            .find(|p| p.adapter == adapter && p.tokens == tokens)?;
        let mut cache = found.cache.fork();
        cache.truncate(tokens.len() - 1);
        Some(cache)
    }

    /// Remembers a prefilled prompt.
    pub(crate) fn put(&mut self, adapter: Option<Digest>, tokens: &[u32], cache: &KvCache) {
        debug_assert_eq!(cache.len(), tokens.len());
        if self
            .prefixes
            .iter()
            .any(|p| p.adapter == adapter && p.tokens == tokens)
        {
            return;
        }
        if self.prefixes.len() == PREFIXES_MAX {
            self.prefixes.pop_front();
        }
        self.prefixes.push_back(Prefix {
            adapter,
            tokens: tokens.to_vec(),
            cache: cache.fork(),
        });
    }

    /// Forgets what was computed with this adapter.
    pub(crate) fn forget(&mut self, adapter: Digest) {
        self.prefixes.retain(|p| p.adapter != Some(adapter));
    }
}
