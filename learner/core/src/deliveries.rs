//! What each worker's session may be told as delivered.
//!
//! Batches are streams of their own and may overtake each other, while `Delivered` promises
//! everything up to a number. A record counts once every intake write made before it was judged
//! is synced: its own, or for a duplicate that of the first result.

use std::collections::{BTreeMap, VecDeque};

use volley_protocol::RangeSet;

use crate::effect::Effect;
use crate::input::SessionId;

/// A batch this far above what was delivered is not taken: workers hold less than that.
const SEQ_AHEAD_MAX: u64 = 1 << 20;

#[derive(Debug)]
struct Inbound {
    /// Sequence numbers that are settled and synced; 0 is no record and always in it.
    done: RangeSet,
    /// (intake write, first number, number after the last), in order of the writes.
    waiting: VecDeque<(u64, u64, u64)>,
    told: u64,
}

/// What each worker's session may be told as delivered.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    sessions: BTreeMap<SessionId, Inbound>,
}

impl Deliveries {
    fn inbound(&mut self, session: SessionId) -> &mut Inbound {
        self.sessions.entry(session).or_insert_with(|| Inbound {
            done: [(0, 1)].into_iter().collect(),
            waiting: VecDeque::new(),
            told: 0,
        })
    }

    /// May a batch that begins with this number be taken?
    pub(crate) fn admits(&mut self, session: SessionId, first_seq: u64) -> bool {
        let inbound = self.inbound(session);
        debug_assert!(inbound.told < inbound.done.watermark());
        first_seq <= inbound.told.saturating_add(SEQ_AHEAD_MAX)
    }

    /// A batch was judged; it counts once `write` is synced.
    pub(crate) fn judged(&mut self, session: SessionId, first_seq: u64, count: u64, write: u64) {
        let inbound = self.inbound(session);
        let last = inbound.waiting.back().map_or(0, |(write, _, _)| *write);
        debug_assert!(write >= last, "writes rise");
        let end = first_seq.saturating_add(count);
        inbound.waiting.push_back((write, first_seq, end));
    }

    /// The session ended: its worker sends again what it was not told of.
    pub(crate) fn gone(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        debug_assert!(!self.sessions.contains_key(&session));
    }

    /// Tells every session what is settled and on the disk up to `synced`.
    pub(crate) fn tell(&mut self, synced: u64, effects: &mut Vec<Effect>) {
        for (session, inbound) in &mut self.sessions {
            while let Some((write, from, to)) = inbound.waiting.front().copied() {
                if write > synced {
                    break;
                }
                inbound.waiting.pop_front();
                inbound.done.insert_range(from, to);
            }
            let upto = inbound.done.watermark() - 1;
            debug_assert!(upto >= inbound.told, "never falls");
            if upto > inbound.told {
                inbound.told = upto;
                let session = *session;
                effects.push(Effect::Delivered { session, upto });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(1);

    #[test]
    fn a_batch_that_overtook_another_waits_for_it() {
        let (mut deliveries, mut effects) = (Deliveries::default(), Vec::new());
        deliveries.judged(SESSION, 4, 2, 1);
        deliveries.tell(1, &mut effects);
        assert!(effects.is_empty());
        deliveries.judged(SESSION, 1, 3, 2);
        deliveries.tell(1, &mut effects);
        assert!(effects.is_empty());
        deliveries.tell(2, &mut effects);
        let all = Effect::Delivered {
            session: SESSION,
            upto: 5,
        };
        assert_eq!(effects, [all]);
    }

    #[test]
    fn numbers_out_of_all_proportion_are_not_taken() {
        let mut deliveries = Deliveries::default();
        assert!(deliveries.admits(SESSION, 1));
        assert!(!deliveries.admits(SESSION, u64::MAX));
    }
}
