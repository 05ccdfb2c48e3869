//! A set of indices kept as ranges: what is done in a job of a billion rollouts fits in a few
//! numbers, because almost everything is done in order.

use std::collections::BTreeMap;

/// A set of `u64`, stored as disjoint, non-touching half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// start → end (exclusive)
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Is `value` in the set?
    #[must_use]
    pub fn contains(&self, value: u64) -> bool {
        self.ranges
            .range(..=value)
            .next_back()
            .is_some_and(|(_, end)| value < *end)
    }

    /// Adds one value; tells whether it was new. `u64::MAX` has no half-open range and is refused.
    pub fn insert(&mut self, value: u64) -> bool {
        if value == u64::MAX || self.contains(value) {
            return false;
        }
        self.insert_range(value, value + 1);
        true
    }

    /// Adds `start..end`; overlapping and touching ranges melt into one.
    pub fn insert_range(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&next);
            end = end.max(next_end);
        }
        self.ranges.insert(start, end);
        debug_assert!(self.is_normal());
    }

    /// Number of values in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Number of values of `start..end` that are in the set.
    #[must_use]
    pub fn count_in(&self, start: u64, end: u64) -> u64 {
        let first = self
            .ranges
            .range(..=start)
            .next_back()
            .map_or(start, |(s, _)| *s);
        self.ranges
            .range(first..end.max(first))
            .map(|(s, e)| (*e).min(end).saturating_sub((*s).max(start)))
            .sum()
    }

    /// Everything below this is in the set.
    #[must_use]
    pub fn watermark(&self) -> u64 {
        self.ranges.get(&0).copied().unwrap_or(0)
    }

    /// Smallest value ≥ `from` that is not in the set.
    #[must_use]
    pub fn first_gap(&self, from: u64) -> u64 {
        match self.ranges.range(..=from).next_back() {
            Some((_, end)) if from < *end => *end,
            _ => from,
        }
    }

    /// The ranges, ascending, as (start, end).
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(start, end)| (*start, *end))
    }

    /// Every value, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges().flat_map(|(start, end)| start..end)
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn is_normal(&self) -> bool {
        let ends = self.ranges.values();
        self.ranges
            .keys()
            .skip(1)
            .zip(ends)
            .all(|(start, end)| start > end)
            && self.ranges.iter().all(|(start, end)| start < end)
    }
}

impl FromIterator<(u64, u64)> for RangeSet {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let mut set = Self::new();
        for (start, end) in ranges {
            set.insert_range(start, end);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((0u64..60, 0u64..8), 0..40)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for (start, len) in ops {
                set.insert_range(start, start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert!(set.iter().eq(model.iter().copied()));
            for value in 0..70 {
                prop_assert_eq!(set.contains(value), model.contains(&value));
                let gap = (value..).find(|v| !model.contains(v));
                prop_assert_eq!(Some(set.first_gap(value)), gap);
                prop_assert_eq!(set.count_in(value, 50), model.range(value..50.max(value)).count() as u64);
            }
        }
    }
}
