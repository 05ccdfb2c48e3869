//! The charts of a run.

use volley_protocol::run::StepReport;

use super::scale::{Points, Scale, smoothed, thinned};
use super::svg::{Plot, Svg};
use super::words::{number, reward, share, short};
use crate::run_dir::Evaluation;

/// Up to this many steps have a column of their own to rest the pointer on.
const TIPS_MAX: usize = 400;

/// Bars of the chart of time.
const BARS_MAX: usize = 120;

/// How a figure is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Number,
    /// In per cent.
    Share,
}

impl Unit {
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Number => number(value),
            Self::Share => share(value),
        }
    }

    /// The same for the marks of an axis, where there is little room.
    fn mark(self) -> fn(f64) -> String {
        match self {
            Self::Number => short,
            Self::Share => |value| share(value).replace(' ', ""),
        }
    }
}

/// The reward curve: raw and smoothed mean of each batch, held-out evaluations as points.
pub(super) fn reward_curve(
    reports: &[StepReport],
    evaluations: &[Evaluation],
    style: &str,
) -> String {
    let raw = series(reports, |report| report.reward_mean);
    let held_out = evaluations.iter().flat_map(|e| [e.greedy, e.sampled]);
    let last = reports.last().map_or(0, |report| report.step);
    let last = evaluations.iter().map(|e| e.step).fold(last, u64::max);
    let mut x = Scale::steps(last as f64);
    if evaluations.iter().any(|evaluation| evaluation.step == 0) {
        // Room for the labels of the base policy, left of its points.
        x.low -= 0.065 * x.high;
    }
    let mut svg = Svg::new(960.0, 360.0);
    let plot = Plot {
        left: 46.0,
        right: svg.width() - 58.0,
        top: 40.0,
        bottom: 318.0,
        x,
        y: Scale::holding(raw.iter().map(|p| p.1).chain(held_out), 5),
    };
    reward_legend(&mut svg, !raw.is_empty(), !evaluations.is_empty());
    svg.axes(&plot, short);
    svg.text(plot.right, 350.0, "end", "optimiser step");
    let thin = thinned(&raw);
    svg.curve(&plot, &thin, "thin s-raw");
    svg.curve(&plot, &thinned(&smoothed(&raw)), "line s-one");
    for evaluation in evaluations {
        held_out_points(&mut svg, &plot, evaluation, last);
    }
    reward_tips(&mut svg, &plot, reports);
    let label = match (reports.first(), reports.last()) {
        (Some(first), Some(last)) => format!(
            "Mean reward of each training batch, from {} at step {} to {} at step {}",
            reward(first.reward_mean),
            first.step,
            reward(last.reward_mean),
            last.step
        ),
        _ => "Reward curve without steps".to_owned(),
    };
    svg.finish(&label, style)
}

fn reward_legend(svg: &mut Svg, trained: bool, held_out: bool) {
    let trained = [
        ("━━", "f-one", "training batches, smoothed"),
        ("──", "f-raw", "each batch"),
    ]
    .into_iter()
    .filter(|_| trained);
    let held_out = [
        ("●", "f-two", "held out, greedy"),
        ("○", "f-two", "held out, sampled"),
    ]
    .into_iter()
    .filter(|_| held_out);
    let entries: Vec<_> = trained.chain(held_out).collect();
    svg.legend((46.0, 18.0), &entries);
}

fn held_out_points(svg: &mut Svg, plot: &Plot, evaluation: &Evaluation, last: u64) {
    let x = plot.x(evaluation.step as f64);
    let (greedy, sampled) = (plot.y(evaluation.greedy), plot.y(evaluation.sampled));
    // Both ends have a margin for labels; points in between explain themselves.
    let label = match evaluation.step {
        0 => Some((x - 11.0, "strong end")),
        step if step == last => Some((x + 11.0, "strong")),
        _ => None,
    };
    let apart = (15.0 - (greedy - sampled).abs()).max(0.0) / 2.0;
    let up = if greedy <= sampled { -apart } else { apart };
    let points = [
        (evaluation.sampled, sampled, sampled - up, "ring"),
        (evaluation.greedy, greedy, greedy + up, "dot"),
    ];
    for (value, y, label_y, mark) in points.into_iter().filter(|point| point.0.is_finite()) {
        svg.circle(x, y, if mark == "dot" { 5.5 } else { 4.5 }, mark);
        if let Some((label_x, class)) = label {
            svg.text(label_x, label_y + 4.0, class, &reward(value));
        }
    }
}

fn reward_tips(svg: &mut Svg, plot: &Plot, reports: &[StepReport]) {
    if reports.len() > TIPS_MAX {
        return;
    }
    let width = (plot.x(1.0) - plot.x(0.0)).max(1.0);
    for report in reports {
        let text = format!(
            "step {}: reward {} ± {}, {} of {} groups without difference",
            report.step,
            reward(report.reward_mean),
            number(report.reward_std),
            report.groups_zero_variance,
            report.groups
        );
        let corner = (plot.x(report.step as f64) - width / 2.0, plot.top);
        svg.tip(corner, (width, plot.bottom - plot.top), &text);
    }
}

/// A small chart of one figure, with a fainter second one (a maximum, say) behind it.
pub(super) fn small(label: &str, main: &Points, behind: Option<&Points>, unit: Unit) -> String {
    let mut svg = Svg::new(296.0, 128.0);
    let all = main
        .iter()
        .chain(behind.into_iter().flatten())
        .map(|point| point.1);
    let last = main.last().map_or(1.0, |point| point.0);
    let mut y = Scale::grounded(all.clone(), 2);
    if all.clone().all(|value| value == 0.0) {
        // Always zero: the line lies on the ground, and no invented height is labelled.
        y.ticks = vec![0.0];
        svg.text(
            (42.0 + svg.width()) / 2.0,
            62.0,
            "faint middle",
            "0 at every step",
        );
    }
    let plot = Plot {
        left: 44.0,
        right: svg.width() - 6.0,
        top: 10.0,
        bottom: 104.0,
        x: Scale {
            ticks: vec![0.0, last],
            ..Scale::steps(last)
        },
        y,
    };
    svg.axes(&plot, unit.mark());
    if let Some(behind) = behind {
        svg.curve(&plot, &thinned(behind), "thin s-raw");
    } else if main.len() > 24 {
        svg.curve(&plot, &thinned(main), "thin s-raw");
    }
    let line = if main.len() > 24 {
        smoothed(main)
    } else {
        main.clone()
    };
    svg.curve(&plot, &thinned(&line), "line s-one");
    svg.finish(label, "")
}

/// Where the time of each step went, as stacked bars.
pub(super) fn time_split(reports: &[StepReport]) -> String {
    let size = reports.len().div_ceil(BARS_MAX).max(1);
    let mean = |part: &[StepReport], figure: fn(&StepReport) -> u64| {
        part.iter().map(figure).sum::<u64>() as f64 / part.len() as f64 / 1e3
    };
    // First step of a bar, steps in it, seconds of each part.
    let bars: Vec<(u64, usize, [f64; 3])> = reports
        .chunks(size)
        .map(|part| {
            let split = [
                mean(part, |report| report.wait_ms),
                mean(part, |report| report.forward_backward_ms),
                mean(part, |report| report.publish_ms),
            ];
            (part[0].step, part.len(), split)
        })
        .collect();
    let last = reports.last().map_or(1, |report| report.step) as f64;
    let mut x = Scale::steps(last);
    // A bar stands over its step.
    (x.low, x.high) = (0.5, last + 0.5);
    x.ticks.retain(|tick| *tick > 0.0);
    let mut svg = Svg::new(960.0, 208.0);
    let plot = Plot {
        left: 46.0,
        right: svg.width() - 18.0,
        top: 36.0,
        bottom: 178.0,
        x,
        y: Scale::grounded(bars.iter().map(|(.., split)| split.iter().sum()), 3),
    };
    let legend = [
        ("■", "f-raw", "waiting for rollouts"),
        ("■", "f-one", "forward and backward"),
        ("■", "f-three", "update and publish"),
    ];
    svg.legend((46.0, 18.0), &legend);
    svg.axes(&plot, short);
    svg.text(plot.right, 18.0, "end", "seconds per step");
    let step_width = plot.x(1.0) - plot.x(0.0);
    for (first, steps, split) in &bars {
        let (x, width) = (
            plot.x(*first as f64 - 0.41),
            step_width * (*steps as f64 - 0.18),
        );
        let mut ground = 0.0;
        for (seconds, class) in split.iter().zip(["f-raw", "f-one", "f-three"]) {
            let (top, bottom) = (plot.y(ground + seconds), plot.y(ground));
            svg.bar((x, top), (width, bottom - top), class);
            ground += seconds;
        }
    }
    svg.finish(
        "Time of each step: waiting, forward and backward, update and publish",
        "",
    )
}

/// One figure of each step, against the step.
pub(super) fn series(reports: &[StepReport], figure: impl Fn(&StepReport) -> f64) -> Points {
    reports
        .iter()
        .map(|report| (report.step as f64, figure(report)))
        .collect()
}
