//! The figures of each step, as small charts side by side.

use volley_protocol::run::StepReport;

use super::charts::{Unit, series, small, time_split};
use super::scale::Points;
use super::words::escape;

/// A figure of a step: title, why it is looked at, how it is written, how it is had.
type Figure = (&'static str, &'static str, Unit, fn(&StepReport) -> f64);

/// What every run shows.
const LEARNING: &[Figure] = &[
    (
        "Loss",
        "per trained token; its size tells little",
        Unit::Number,
        |s| s.loss,
    ),
    (
        "Entropy",
        "nats per token; near 0 nothing new is tried",
        Unit::Number,
        |s| s.entropy,
    ),
    ("Gradient norm", "before clipping", Unit::Number, |s| {
        s.grad_norm
    }),
    (
        "Groups without difference",
        "all rewards equal: no gradient comes from them",
        Unit::Share,
        |s| s.groups_zero_variance as f64 / s.groups.max(1) as f64,
    ),
    (
        "Reward spread",
        "standard deviation over the batch",
        Unit::Number,
        |s| s.reward_std,
    ),
    ("Cut-off answers", "token limit reached", Unit::Share, |s| {
        s.truncated
    }),
    (
        "Drift",
        "KL of the learner against the sampler; 0 on policy",
        Unit::Number,
        |s| s.drift_kl,
    ),
    (
        "Mismatch",
        "largest gap of log-probabilities on the trained version; must be 0",
        Unit::Number,
        |s| s.mismatch_max,
    ),
    (
        "Staleness",
        "steps between the version that played and the one trained; faint: largest",
        Unit::Number,
        |s| s.staleness_mean,
    ),
];

/// What is shown when there is something to see.
const SOMETIMES: &[Figure] = &[
    (
        "Clipped tokens",
        "importance ratio out of bounds",
        Unit::Share,
        |s| s.clip_fraction,
    ),
    (
        "Degraded groups",
        "lost members to failures",
        Unit::Number,
        |s| s.groups_degraded as f64,
    ),
];

/// Something that is counted in a step, and shown per second of it.
type Rate = (&'static str, fn(&StepReport) -> u64);

const RATES: &[Rate] = &[
    ("Rollouts a second", |s| s.rollouts),
    ("Tokens sampled a second", |s| s.tokens_sampled),
    ("Tokens trained a second", |s| s.tokens_trained),
];

/// How the learning went.
pub(super) fn learning(steps: &[StepReport]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let mut charts: Vec<String> = Vec::new();
    for (what, why, unit, figure) in LEARNING {
        // Of the staleness the largest is told too: the bound is about that one.
        let behind = (*what == "Staleness").then(|| series(steps, |s| s.staleness_max as f64));
        charts.push(card(
            what,
            why,
            *unit,
            &series(steps, figure),
            behind.as_ref(),
        ));
    }
    for (what, why, unit, figure) in SOMETIMES {
        let points = series(steps, figure);
        if points.iter().any(|point| point.1 != 0.0) {
            charts.push(card(what, why, *unit, &points, None));
        }
    }
    let rates = series(steps, |s| s.learning_rate);
    if rates.windows(2).any(|pair| pair[0].1 != pair[1].1) {
        charts.push(card(
            "Learning rate",
            "as the recipe asks",
            Unit::Number,
            &rates,
            None,
        ));
    }
    let note = "Figures of each step, at the right that of the last one. The strong line is \
                smoothed, the faint one is not.";
    grid("Learning", note, &charts.concat())
}

/// What the environment measured.
pub(super) fn environment(steps: &[StepReport]) -> String {
    let Some(last) = steps.last().filter(|step| !step.metrics.is_empty()) else {
        return String::new();
    };
    let charts = last.metrics.keys().map(|name| {
        let of = |step: &StepReport| step.metrics.get(name).copied().unwrap_or(f64::NAN);
        card(name, "", Unit::Number, &series(steps, of), None)
    });
    let note = "What the environment measured, mean of each batch.";
    grid("Environment", note, &charts.collect::<String>())
}

/// Where the time went.
pub(super) fn time(steps: &[StepReport]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let charts = RATES.iter().map(|(what, figure)| {
        let rate = |step: &StepReport| {
            let ms = step.wait_ms + step.forward_backward_ms + step.publish_ms;
            if ms == 0 {
                f64::NAN
            } else {
                figure(step) as f64 * 1e3 / ms as f64
            }
        };
        card(what, "", Unit::Number, &series(steps, rate), None)
    });
    format!(
        "<h2>Time</h2>\n<p class=\"note\">Where each step’s time went. Much waiting asks for more \
         workers or the async schedule.</p>\n<figure class=\"card wide above\">{}</figure>\n\
         <div class=\"grid\">\n{}</div>\n",
        time_split(steps),
        charts.collect::<String>()
    )
}

fn grid(title: &str, note: &str, charts: &str) -> String {
    format!(
        "<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n<div class=\"grid\">\n{charts}</div>\n"
    )
}

fn card(what: &str, why: &str, unit: Unit, main: &Points, behind: Option<&Points>) -> String {
    let now = main
        .last()
        .map_or_else(String::new, |point| unit.show(point.1));
    let why = if why.is_empty() {
        String::new()
    } else {
        format!("<p class=\"why\">{why}</p>")
    };
    format!(
        "<figure class=\"card\"><figcaption><span class=\"what\">{}</span>\
         <span class=\"now\">{now}</span></figcaption>{}{why}</figure>\n",
        escape(what),
        small(what, main, behind, unit)
    )
}
