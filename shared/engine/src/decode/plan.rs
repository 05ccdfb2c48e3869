//! What every sequence computes in the next pass.

use super::prefix::{PrefixCache, SHARED_MIN, common};
use super::sequence::Sequence;
use crate::model::logit_rows;

/// Rows of a pass in which nobody waits for a token: whole tiles of every product, and a bound on
/// what the layers leave in memory.
const ROWS_MAX: usize = 1024;
/// Prompt rows beside sequences that decode: enough for the products to run at full speed …
const PREFILL_ROWS: usize = 256;
/// … or this fraction of the decoding rows if that is more: a prompt that arrives then makes a
/// step at most half as long again.
const PREFILL_PER_DECODE: usize = 2;
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

/// Everyone who decodes computes one token, as far as there is room for logits; the others share
/// the rows that are left, in order of arrival. A prompt whose beginning somebody computes right
/// now waits for it.
pub(super) fn plan(
    sequences: &mut [Sequence],
    prefixes: &mut PrefixCache,
    vocab_size: usize,
) -> Vec<Work> {
    for sequence in sequences.iter_mut() {
        if !sequence.started && !sequence.wants_logits_of_prompt() {
            prefixes.share(sequence);
        }
    }
    let decoding = sequences.iter().filter(|s| s.due() == 1).count();
    let mut room = Room {
        rows: match decoding {
            0 => ROWS_MAX,
            decoding => PREFILL_ROWS.max(decoding / PREFILL_PER_DECODE),
        },
        prompt_logits: logit_rows(vocab_size),
        draws: (DRAWN_LOGITS_MAX / vocab_size).max(DRAWS_MIN),
    };
    // Those who compute a prompt in this pass: never more than there are rows.
    let mut leaders: Vec<usize> = Vec::new();
    let mut shares = vec![Work::default(); sequences.len()];
    for (index, sequence) in sequences.iter().enumerate() {
        let work = room.work(sequence);
        if work.tokens == 0 || leaders.iter().any(|&l| waits(sequence, &sequences[l])) {
            continue;
        }
        room.take(sequence, work);
        if sequence.computes_prompt() {
            leaders.push(index);
        }
        shares[index] = work;
    }
    shares
}

/// What is left of a pass.
struct Room {
    /// Rows of those who have more than one token to compute.
    rows: usize,
    /// Rows whose logits prompts ask for.
    prompt_logits: usize,
    draws: usize,
}

impl Room {
    /// What a sequence could compute now.
    fn work(&self, sequence: &Sequence) -> Work {
        let due = sequence.due();
        let mut tokens = match (due, sequence.wants_logits_of_prompt()) {
            (0 | 1, _) => due,
            (due, false) => due.min(self.rows),
            (due, true) => due.min(self.rows).min(self.prompt_logits),
        };
        if tokens == due && sequence.turn_left > 0 && self.draws == 0 {
            // All but the last, whose logits a draw would need.
            tokens = tokens.saturating_sub(1);
        }
        Work {
            tokens,
            all: tokens == due,
        }
    }

    fn take(&mut self, sequence: &Sequence, work: Work) {
        if sequence.due() > 1 {
            self.rows -= work.tokens;
            if sequence.wants_logits_of_prompt() {
                self.prompt_logits -= work.tokens;
            }
        }
        if work.all && sequence.turn_left > 0 {
            self.draws -= 1;
        }
    }
}

/// Whether a sequence that has computed nothing had better wait until `leader` has computed its
/// prompt: most of what it has to compute is in there.
fn waits(sequence: &Sequence, leader: &Sequence) -> bool {
    if sequence.started || sequence.wants_logits_of_prompt() || !sequence.same_adapter(leader) {
        return false;
    }
    let most = sequence.tokens.len() - 1;
    let shared = common(&sequence.tokens, &leader.tokens).min(most);
    let gained = shared.saturating_sub(sequence.cache.len());
    gained >= SHARED_MIN && gained * 2 >= sequence.due()
}
