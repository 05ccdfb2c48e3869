//! What every sequence computes in the next pass.

use super::prefix::{PrefixCache, SHARED_MIN, common};
use super::sequence::Sequence;

/// Rows of a pass in which nobody waits for a token: whole tiles of every product, and a bound on
/// what the layers leave in memory.
const ROWS_MAX: usize = 1024;
/// Prompt rows beside sequences that decode: enough for the products to run at full speed …
const PREFILL_ROWS: usize = 256;
/// … or this fraction of the decoding rows if that is more: a prompt that arrives then makes a
/// step at most half as long again.
const PREFILL_PER_DECODE: usize = 2;
/// Logits of one pass that prompts may ask for: 2^18 are 1 MiB …
const LOGITS_MAX: usize = 1 << 18;
/// … but never fewer rows than this, or the output matrix would be read too often.
const LOGIT_ROWS_MIN: usize = 64;

/// Logits of one pass for draws, 256 MiB; whoever finds no room waits for older sequences to end …
const DRAWN_LOGITS_MAX: usize = 1 << 26;
/// … but this many draw in any case: fewer rows would leave the products' tiles empty.
const DRAWS_MIN: usize = 64;

/// What one sequence computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Tokens that enter its cache.
    pub(super) tokens: usize,
    /// Whether these are all that it has.
    pub(super) all: bool,
}

/// Everyone who decodes computes one token; the others share the rows that are left, in order of
/// arrival. A prompt whose beginning somebody computes right now waits for it.
pub(super) fn plan(
    sequences: &mut [Sequence],
    prefixes: &mut PrefixCache,
    vocab_size: usize,
) -> Vec<Work> {
    for sequence in sequences.iter_mut() {
        if !sequence.started && !sequence.wants_prompt_logprobs {
            prefixes.share(sequence);
        }
    }
    let mut draws_left = (DRAWN_LOGITS_MAX / vocab_size).max(DRAWS_MIN);
    let decoding = sequences.iter().filter(|s| s.due() == 1).count();
    let mut left = match decoding {
        0 => ROWS_MAX,
        decoding => PREFILL_ROWS.max(decoding / PREFILL_PER_DECODE),
    };
    let mut logits_left = (LOGITS_MAX / vocab_size).max(LOGIT_ROWS_MIN);
    let mut leaders: Vec<usize> = Vec::new();
    let mut shares = vec![Work::default(); sequences.len()];
    for (index, sequence) in sequences.iter().enumerate() {
        let due = sequence.due();
        if due == 0 || leaders.iter().any(|&l| waits(sequence, &sequences[l])) {
            continue;
        }
        let tokens = match (due, sequence.wants_prompt_logprobs) {
            (1, _) => 1,
            (due, false) => due.min(left),
            (due, true) => due.min(left).min(logits_left),
        };
        if due > 1 {
            left -= tokens;
            if sequence.computes_prompt() {
                leaders.push(index);
            }
            if sequence.wants_prompt_logprobs {
                logits_left -= tokens;
            }
        }
        let all = tokens == due;
        if all && sequence.turn_left > 0 {
            if draws_left == 0 {
                continue;
            }
            draws_left -= 1;
        }
        shares[index] = Work { tokens, all };
    }
    shares
}

/// Whether a sequence that has computed nothing had better wait until `leader` has computed its
/// prompt: most of what it has to compute is in there.
fn waits(sequence: &Sequence, leader: &Sequence) -> bool {
    if sequence.started || sequence.wants_prompt_logprobs || !sequence.same_adapter(leader) {
        return false;
    }
    let most = sequence.tokens.len() - 1;
    let shared = common(&sequence.tokens, &leader.tokens).min(most);
    let gained = shared.saturating_sub(sequence.cache.len());
    gained >= SHARED_MIN && gained * 2 >= sequence.due()
}
