//! The charts of a run.

use volley_protocol::run::StepReport;

use super::scale::{Points, Scale, smoothed, thinned};
use super::svg::{Plot, Svg};
use super::words::{number, reward};
use crate::run_dir::Evaluation;

/// Up to this many steps have a column of their own to rest the pointer on.
const TIPS_MAX: usize = 400;

/// Bars of the chart of time.
const BARS_MAX: usize = 120;

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
    let mut svg = Svg::new(960.0, 360.0);
    let plot = Plot {
        left: 46.0,
        right: svg.width() - 18.0,
        top: 40.0,
        bottom: 318.0,
        x: Scale::steps(last as f64),
        y: Scale::holding(raw.iter().map(|p| p.1).chain(held_out), 5),
    };
    reward_legend(&mut svg, !evaluations.is_empty(), !raw.is_empty());
    svg.axes(&plot);
    svg.text(plot.right, 350.0, "end", "optimiser step");
    let thin = thinned(&raw);
    svg.curve(&plot, &thin, "thin s-raw");
    svg.curve(&plot, &thinned(&smoothed(&raw)), "line s-one");
    for evaluation in evaluations {
        held_out_points(&mut svg, &plot, evaluation);
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

fn reward_legend(svg: &mut Svg, held_out: bool, trained: bool) {
    let mut x = 46.0;
    if trained {
        svg.rule((x, 14.0), (x + 20.0, 14.0), "line s-one");
        svg.text(x + 27.0, 18.0, "", "training batches, smoothed");
        svg.rule((x + 200.0, 14.0), (x + 220.0, 14.0), "thin s-raw");
        svg.text(x + 227.0, 18.0, "", "each batch");
        x += 314.0;
    }
    if held_out {
        svg.circle(x + 5.0, 14.0, 5.0, "dot");
        svg.text(x + 17.0, 18.0, "", "held out, greedy");
        svg.circle(x + 132.0, 14.0, 4.5, "ring");
        svg.text(x + 144.0, 18.0, "", "held out, sampled");
    }
}

fn held_out_points(svg: &mut Svg, plot: &Plot, evaluation: &Evaluation) {
    let x = plot.x(evaluation.step as f64);
    let (greedy, sampled) = (plot.y(evaluation.greedy), plot.y(evaluation.sampled));
    // Labels stand on the side where there is room, and apart from each other.
    let (side, class) = match x > (plot.left + plot.right) / 2.0 {
        true => (-11.0, "strong end"),
        false => (11.0, "strong"),
    };
    let apart = (15.0 - (greedy - sampled).abs()).max(0.0) / 2.0;
    let up = if greedy <= sampled { -apart } else { apart };
    let inside = |y: f64| y.clamp(plot.top - 2.0, plot.bottom - 6.0) + 4.0;
    if sampled.is_finite() {
        svg.circle(x, sampled, 4.5, "ring");
        svg.text(
            x + side,
            inside(sampled - up),
            class,
            &reward(evaluation.sampled),
        );
    }
    if greedy.is_finite() {
        svg.circle(x, greedy, 5.5, "dot");
        svg.text(
            x + side,
            inside(greedy + up),
            class,
            &reward(evaluation.greedy),
        );
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
pub(super) fn small(label: &str, main: &Points, behind: Option<&Points>) -> String {
    let mut svg = Svg::new(296.0, 128.0);
    let all = main.iter().chain(behind.into_iter().flatten());
    let last = main.last().map_or(1.0, |point| point.0);
    let mut y = Scale::holding(all.map(|point| point.1), 2);
    if main.iter().all(|point| point.1 == 0.0) && behind.is_none() {
        // Always zero: the line lies on the ground, and no invented height is labelled.
        y.ticks = vec![0.0];
    }
    let plot = Plot {
        left: 42.0,
        right: svg.width() - 6.0,
        top: 10.0,
        bottom: 104.0,
        x: Scale {
            ticks: vec![0.0, last],
            ..Scale::steps(last)
        },
        y,
    };
    svg.axes(&plot);
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
    let bars: Vec<(u64, [f64; 3])> = reports
        .chunks(size)
        .map(|part| {
            let split = [
                mean(part, |report| report.wait_ms),
                mean(part, |report| report.forward_backward_ms),
                mean(part, |report| report.publish_ms),
            ];
            (part[0].step, split)
        })
        .collect();
    let mut svg = Svg::new(960.0, 220.0);
    let last = reports.last().map_or(1, |report| report.step) as f64;
    let plot = Plot {
        left: 46.0,
        right: svg.width() - 18.0,
        top: 36.0,
        bottom: 178.0,
        x: Scale::steps(last),
        y: Scale::holding(bars.iter().map(|(_, s)| s.iter().sum()).chain([0.0]), 3),
    };
    let names = [
        "waiting for rollouts",
        "forward and backward",
        "update and publish",
    ];
    for (at, (name, class)) in names.iter().zip(["f-raw", "f-one", "f-three"]).enumerate() {
        let x = 46.0 + 168.0 * at as f64;
        svg.bar((x, 8.0), (11.0, 11.0), class);
        svg.text(x + 18.0, 18.0, "", name);
    }
    svg.axes(&plot);
    svg.text(plot.right, 18.0, "end", "seconds per step");
    let width = (plot.right - plot.left) / last.max(1.0) * size as f64;
    for (step, split) in &bars {
        let x = plot.x(*step as f64 - 1.0);
        let mut ground = 0.0;
        for (seconds, class) in split.iter().zip(["f-raw", "f-one", "f-three"]) {
            let (top, bottom) = (plot.y(ground + seconds), plot.y(ground));
            svg.bar((x, top), (width * 0.82, bottom - top), class);
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
