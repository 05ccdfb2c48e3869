//! Differences of range sets, which the protocol's [`RangeSet`] does not have.

use volley_protocol::RangeSet;

/// Half-open ranges, ascending.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// What is in `set` and below `end`, but not in `other`.
pub(crate) fn difference(set: &RangeSet, other: &RangeSet, end: u64) -> Ranges {
    let mut cuts = other.ranges().peekable();
    let mut out = Ranges::new();
    for (start, stop) in set.ranges() {
        let (mut at, stop) = (start, stop.min(end));
        while at < stop {
            while cuts.next_if(|(_, cut_end)| *cut_end <= at).is_some() {}
            match cuts.peek() {
                Some((cut, _)) if *cut >= stop => {
                    out.push((at, stop));
                    at = stop;
                }
                Some((cut, cut_end)) => {
                    if *cut > at {
                        out.push((at, *cut));
                    }
                    at = *cut_end;
                }
                None => {
                    out.push((at, stop));
                    at = stop;
                }
            }
        }
    }
    debug_assert!(out.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    out
}

/// The whole set as a list.
pub(crate) fn list(set: &RangeSet) -> Ranges {
    set.ranges().collect()
}

/// The set without one value. Walks all ranges: for rare corrections.
pub(crate) fn without(set: &RangeSet, value: u64) -> RangeSet {
    let cut = RangeSet::from_iter([(value, value.saturating_add(1))]);
    difference(set, &cut, u64::MAX).into_iter().collect()
}

/// Ranges of single values that rise, melted where they touch.
pub(crate) fn melt(values: impl IntoIterator<Item = u64>) -> Ranges {
    let mut set = RangeSet::new();
    for value in values {
        set.insert(value);
    }
    list(&set)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set_of(ranges: &[(u64, u64)]) -> RangeSet {
        ranges.iter().map(|(s, len)| (*s, s + len)).collect()
    }

    proptest! {
        #[test]
        fn difference_is_that_of_sets(
            a in prop::collection::vec((0u64..60, 0u64..9), 0..12),
            b in prop::collection::vec((0u64..60, 0u64..9), 0..12),
            end in 0u64..70,
        ) {
            let (a, b) = (set_of(&a), set_of(&b));
            let got: RangeSet = difference(&a, &b, end).into_iter().collect();
            let want: BTreeSet<u64> = a.iter().filter(|v| !b.contains(*v) && *v < end).collect();
            prop_assert!(got.iter().eq(want.iter().copied()));
            let fewer = without(&a, 7);
            prop_assert!(!fewer.contains(7));
            prop_assert_eq!(fewer.count(), a.count() - u64::from(a.contains(7)));
        }
    }
}
