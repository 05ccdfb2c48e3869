//! Which data share a beginning, and how a batch is cut into micro-batches.
//!
//! The members of a group answer the same prompt. Its rows are computed once, forward and
//! backward; each answer then attends to them. The numerics contract makes a shared prefix equal
//! to a computed one, so no log-probability changes by a bit.

use std::ops::Range;

/// Consecutive data that begin with the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Number of data.
    pub(crate) members: usize,
    /// Input tokens that all of them begin with; 0 for a single datum.
    pub(crate) prefix: usize,
    /// Rows to compute.
    pub(crate) rows: usize,
}

/// Tokens from which a common beginning is shared. Every member copies its keys and values, which
/// costs about as much as computing a few rows of them again.
const PREFIX_MIN: usize = 8;

/// Joins neighbours as long as that saves rows and the bundle has at most `rows_max`: what a bundle
/// leaves behind for its backward pass is in memory at once. `inputs` are the data's input tokens.
pub(crate) fn bundles<'a>(inputs: impl Iterator<Item = &'a [u32]>, rows_max: usize) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    // What the members of the last bundle have in common.
    let mut common: &[u32] = &[];
    for tokens in inputs {
        if let Some(last) = bundles.last_mut() {
            let shared = common
                .iter()
                .zip(tokens)
                .take_while(|(a, b)| a == b)
                .count();
            // k members with a prefix of p rows save (k - 1) p of them.
            let (saved, would_save) = ((last.members - 1) * last.prefix, last.members * shared);
            let rows = last.rows + saved + tokens.len() - would_save;
            if shared >= PREFIX_MIN && would_save >= saved && rows <= rows_max {
                *last = Bundle {
                    members: last.members + 1,
                    prefix: shared,
                    rows,
                };
                common = &common[..shared];
                continue;
            }
        }
        common = tokens;
        bundles.push(Bundle {
            members: 1,
            prefix: 0,
            rows: tokens.len(),
        });
    }
    bundles
}

/// Micro-batches that a batch is cut into at least, rows permitting: threads take one each, and
/// usual numbers of threads divide it.
const MICRO_BATCHES_MIN: usize = 16;
/// Rows below which a micro-batch is not made smaller: the weights pass the cache once per
/// micro-batch, and a matrix product of a few rows waits for them. Short sums are also the more
/// exact ones: gradients of many small micro-batches round less than one long chain.
const MICRO_BATCH_ROWS_MIN: usize = 32;

/// Cuts a batch into runs of whole bundles, in order, of about the same number of rows and of
/// at most `rows_max`; a larger bundle is a run of its own. The cut depends on nothing else, so
/// sums over runs do not depend on the machine.
pub(super) fn micro_batches(bundles: &[Bundle], rows_max: usize) -> Vec<Range<usize>> {
    let total: usize = bundles.iter().map(|bundle| bundle.rows).sum();
    let many = (total / MICRO_BATCH_ROWS_MIN).min(MICRO_BATCHES_MIN);
    let count = total.div_ceil(rows_max.max(1)).max(many).max(1);
    let rows_wanted = total.div_ceil(count);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut sum, mut before, mut part) = (0, 0, 0);
    for (index, bundle) in bundles.iter().enumerate() {
        // A bundle belongs to the part of the batch in which it begins.
        let same = std::mem::replace(&mut part, before / rows_wanted) == before / rows_wanted;
        before += bundle.rows;
        match runs.last_mut() {
            Some(run) if same && sum + bundle.rows <= rows_max => {
                run.end = index + 1;
                sum += bundle.rows;
            }
            _ => {
                runs.push(index..index + 1);
                sum = bundle.rows;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sequences: &[&[u32]]) -> Vec<Bundle> {
        bundles(sequences.iter().copied(), 1000)
    }

    const fn bundle(members: usize, prefix: usize, rows: usize) -> Bundle {
        Bundle {
            members,
            prefix,
            rows,
        }
    }

    /// `0, 1, ..`, then the given tokens.
    fn after(common: u32, tokens: &[u32]) -> Vec<u32> {
        (0..common).chain(tokens.iter().copied()).collect()
    }

    #[test]
    fn neighbours_with_a_common_beginning_share_it() {
        let group = [
            after(10, &[91, 92]),
            after(10, &[91, 93, 94]),
            after(9, &[95]),
        ];
        let other = [after(8, &[81]), after(8, &[82])].map(|mut tokens| {
            tokens[0] = 80;
            tokens
        });
        let all: Vec<&[u32]> = group.iter().chain(&other).map(Vec::as_slice).collect();
        let expected = [bundle(3, 9, 9 + 3 + 4 + 1), bundle(2, 8, 8 + 1 + 1)];
        assert_eq!(of(&all), expected);
    }

    #[test]
    fn a_bundle_stays_within_the_budget() {
        let members: Vec<Vec<u32>> = (0..50).map(|i| after(20, &[i; 30])).collect();
        let found = bundles(members.iter().map(Vec::as_slice), 120);
        assert!(found.iter().all(|bundle| bundle.rows <= 120), "{found:?}");
        assert_eq!(found[0], bundle(3, 20, 110));
        assert_eq!(found.iter().map(|bundle| bundle.members).sum::<usize>(), 50);
        let long = after(500, &[]);
        let alone = bundles([long.as_slice(), &long].into_iter(), 120);
        assert_eq!(alone, [bundle(1, 0, 500), bundle(1, 0, 500)]);
    }

    #[test]
    fn a_neighbour_that_would_cost_rows_stays_apart() {
        let (long, short) = (after(50, &[]), after(9, &[99]));
        let found = of(&[&long, &long, &long, &short]);
        assert_eq!(found, [bundle(3, 50, 50), bundle(1, 0, 10)]);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[&[1, 2], &[1, 3]]), [bundle(1, 0, 2), bundle(1, 0, 2)]);
    }

    #[test]
    fn runs_cover_everything_in_order_within_the_budget() {
        let cut = |rows: &[usize], rows_max| {
            let bundles: Vec<Bundle> = rows.iter().map(|rows| bundle(1, 0, *rows)).collect();
            micro_batches(&bundles, rows_max)
        };
        for (rows, rows_max) in [
            (vec![3, 3, 3, 9, 1], 6),
            (vec![5, 1, 6], 6),
            (vec![20], 6),
            (vec![49; 24], 512),
            (vec![256; 8], 512),
            (vec![1000, 3, 500, 513], 512),
        ] {
            let runs = cut(&rows, rows_max);
            let flat: Vec<usize> = runs.iter().cloned().flatten().collect();
            assert_eq!(flat, (0..rows.len()).collect::<Vec<_>>());
            for run in runs {
                let sum: usize = rows[run.clone()].iter().sum();
                assert!(sum <= rows_max || run.len() == 1, "{rows:?} {run:?}");
            }
        }
        assert_eq!(cut(&[256; 8], 512).len(), 8);
        assert_eq!(cut(&[64; 64], 512).len(), 16);
        assert_eq!(cut(&[49; 24], 512).len(), 16);
        assert!(cut(&[], 6).is_empty());
    }
}
