//! What happens when: events in the order of their time, then of their scheduling.

use std::collections::BTreeMap;

/// A queue of events over virtual milliseconds.
#[derive(Clone, Debug)]
pub struct Schedule<E> {
    now_ms: u64,
    next: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Self {
            now_ms: 0,
            next: 0,
            events: BTreeMap::new(),
        }
    }
}

impl<E> Schedule<E> {
    /// The present moment.
    #[must_use]
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Schedules an event; one in the past happens now.
    pub fn at(&mut self, at_ms: u64, event: E) {
        let key = (at_ms.max(self.now_ms), self.next);
        self.next += 1;
        let before = self.events.insert(key, event);
        debug_assert!(before.is_none(), "places are unique");
    }

    /// Schedules an event for that much later.
    pub fn after(&mut self, delay_ms: u64, event: E) {
        self.at(self.now_ms.saturating_add(delay_ms), event);
    }

    /// The next event; time moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let ((at_ms, _), event) = self.events.pop_first()?;
        assert!(at_ms >= self.now_ms, "time never goes back");
        self.now_ms = at_ms;
        Some(event)
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// Events that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Does none wait?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_times_keep_their_order() {
        let mut schedule = Schedule::default();
        schedule.at(5, 'b');
        schedule.at(5, 'c');
        schedule.at(1, 'a');
        assert_eq!(schedule.next_ms(), Some(1));
        let order: String = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, "abc");
        schedule.at(0, 'd');
        assert_eq!(schedule.next_ms(), Some(5), "the past is now");
    }
}
