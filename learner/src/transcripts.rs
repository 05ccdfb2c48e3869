//! Samples for people: the best, the worst and the median episode of a step, as Markdown. Reward
//! hacking is seen here first.

use std::fmt::Write as _;

use volley_protocol::Trajectory;

/// Characters of one message that are shown; the arrays keep everything.
const MESSAGE_CHARS_MAX: usize = 4_000;

/// One page for one step.
pub(crate) fn page(step: u64, trajectories: &[&Trajectory]) -> String {
    let mut ranked: Vec<&Trajectory> = trajectories.to_vec();
    // Ties in reward fall to the rollout's index, so that equal runs show equal samples.
    ranked.sort_by(|a, b| {
        let by_reward = a.header.reward.total_cmp(&b.header.reward);
        by_reward.then(a.header.attempt.rollout.cmp(&b.header.attempt.rollout))
    });
    let mut text = format!("# Step {step}\n");
    let picks = [
        ("Best", ranked.last()),
        ("Median", ranked.get(ranked.len() / 2)),
        ("Worst", ranked.first()),
    ];
    for (title, pick) in picks {
        if let Some(trajectory) = pick {
            describe(&mut text, title, trajectory);
        }
    }
    text
}

fn describe(text: &mut String, title: &str, trajectory: &Trajectory) {
    let header = &trajectory.header;
    let sampled = trajectory
        .sampled
        .iter()
        .filter(|sampled| **sampled == 1)
        .count();
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "\n## {title}: reward {:.3}\n\nrollout {} · instance {} · {} turns · {sampled} sampled tokens{}",
        header.reward,
        header.attempt.rollout.index,
        header.instance,
        header.turns,
        if header.truncated { " · cut off" } else { "" },
    );
    let metrics: Vec<_> = header
        .metrics
        .iter()
        .map(|(name, value)| format!("{name} {value:.3}"))
        .collect();
    if !metrics.is_empty() {
        let _ = writeln!(text, "\n{}", metrics.join(" · "));
    }
    for (role, content) in &header.transcript {
        let shown: String = content.chars().take(MESSAGE_CHARS_MAX).collect();
        let _ = writeln!(text, "\n**{role}**\n\n{}", quote(&shown));
    }
}

/// A block quote that no text can break out of.
fn quote(text: &str) -> String {
    text.lines()
        .map(|line| format!("> {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
