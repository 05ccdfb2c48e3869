//! What somebody probably meant.

/// The known name nearest to `name`, if one is near enough to be meant: a few typing errors, or
/// a beginning of it.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = fold(name);
    let errors_max = (wanted.len() / 3).max(1);
    let near = known.into_iter().filter_map(|candidate| {
        let folded = fold(candidate);
        let distance = match wanted.len() {
            0 => return None,
            // Longer beginnings are certain enough to beat a mistyped other name.
            3.. if folded.iter().take(wanted.len()).eq(&wanted) => 0,
            _ => edits(&wanted, &folded),
        };
        (distance <= errors_max).then_some((distance, candidate))
    });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case and the kind of dash do not matter.
fn fold(name: &str) -> Vec<char> {
    let lower = name.chars().flat_map(char::to_lowercase);
    lower.map(|c| if c == '-' { '_' } else { c }).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = [
            "steps",
            "group_size",
            "groups_per_step",
            "learning_rate",
            "loss",
        ];
        for (typed, meant) in [
            ("step", Some("steps")),
            ("setps", Some("steps")),
            ("lr", None),
            ("learning-rate", Some("learning_rate")),
            ("LearningRate", Some("learning_rate")),
            ("learning", Some("learning_rate")),
            ("groupsize", Some("group_size")),
            ("temperature", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
    }

    #[test]
    fn edits_are_counted() {
        let count = |a: &str, b: &str| edits(&fold(a), &fold(b));
        assert_eq!(
            (count("abc", "abc"), count("abc", "acb"), count("", "abc")),
            (0, 1, 3)
        );
        assert_eq!(count("kitten", "sitting"), 3);
    }
}
