//! The page, from top to bottom.

use std::fmt::Write as _;

use volley_protocol::run::StepReport;

use super::charts::reward_curve;
use super::words::{bytes, count, duration, escape, number, reward};
use super::{CHART_CSS, PAGE_CSS, Report, THEME_CSS, figures};
use crate::run_dir::{Evaluation, RunProgress, utc_text};

/// Steps whose mean stands for "at the beginning" and "at the end" where nothing was held out.
const ENDS_STEPS: usize = 5;

/// The whole page.
pub(super) fn html(report: &Report) -> String {
    let title = escape(&report.info.name);
    let body = [
        header(report),
        hero(report),
        facts(&report.steps),
        rewards(report),
        figures::learning(&report.steps),
        figures::environment(&report.steps),
        figures::time(&report.steps),
        samples(report),
        recipe(&report.recipe_text),
        machine(report),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · Volley</title>\n<style>\n{THEME_CSS}{PAGE_CSS}{CHART_CSS}</style>\n\
         </head>\n<body>\n<main>\n{}\
         <footer>Volley {} · every figure on this page is in metrics.jsonl and run.json beside \
         it</footer>\n</main>\n</body>\n</html>\n",
        body.concat(),
        escape(&report.info.volley),
    )
}

fn header(report: &Report) -> String {
    let (info, recipe) = (&report.info, &report.recipe);
    let model = recipe
        .model
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let lead = format!(
        "A LoRA of rank {} on {model}, trained for {} of {} steps in the environment {}.",
        recipe.lora.rank,
        report.steps.last().map_or(0, |step| step.step),
        recipe.train.steps,
        info.environment,
    );
    let mut html = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{} <span class=\"once\">{}</span></p>\n",
        escape(&info.name),
        escape(&lead),
        utc_text(info.begun_unix_ms)
    );
    let state = match (info.progress, &info.fault) {
        (RunProgress::Finished, _) => None,
        (RunProgress::Training, _) => {
            Some("This run has not ended; the page shows it so far.".into())
        }
        (RunProgress::Stopped, _) => {
            Some("This run was stopped before its last step and can be resumed.".into())
        }
        (RunProgress::Failed, fault) => Some(format!(
            "This run was stopped by an error; its last good version is kept.\n{}",
            fault.as_deref().unwrap_or_default()
        )),
    };
    if let Some(state) = state {
        let _ = writeln!(html, "<p class=\"state\">{}</p>", escape(state.trim_end()));
    }
    html
}

fn hero(report: &Report) -> String {
    let change = |name: &str, from: f64, to: Option<f64>| {
        let to = to.map(|to| {
            let to = reward(to);
            format!("<span class=\"arrow\">→</span><span class=\"to\">{to}</span>")
        });
        format!(
            "<div><div class=\"name\">{name}</div><div class=\"change\">\
             <span class=\"from\">{}</span>{}</div></div>\n",
            reward(from),
            to.unwrap_or_default()
        )
    };
    let steps = &report.steps;
    let mut html = String::from("<div class=\"hero\">\n");
    if let Some(before) = report.info.before() {
        let after = report.info.after();
        let after = |figure: fn(&Evaluation) -> f64| after.map(figure);
        html += &change(
            "Held-out reward, greedy",
            before.greedy,
            after(|e| e.greedy),
        );
        html += &change(
            "Held-out reward, sampled",
            before.sampled,
            after(|e| e.sampled),
        );
    } else if !steps.is_empty() {
        let mean = |part: &[StepReport]| {
            part.iter().map(|step| step.reward_mean).sum::<f64>() / part.len() as f64
        };
        let few = steps.len().min(ENDS_STEPS);
        let (first, last) = (mean(&steps[..few]), mean(&steps[steps.len() - few..]));
        html += &change("Training reward, first and last steps", first, Some(last));
    } else {
        return String::new();
    }
    html.push_str("</div>\n");
    html
}

fn facts(steps: &[StepReport]) -> String {
    let Some(last) = steps.last() else {
        return "<p class=\"state\">No step has been made yet.</p>\n".to_owned();
    };
    let sum = |figure: fn(&StepReport) -> u64| steps.iter().map(figure).sum::<u64>() as f64;
    let seconds = last.train_ms_total as f64 / 1e3;
    let rate = |value: f64| {
        if seconds > 0.0 {
            value / seconds
        } else {
            f64::NAN
        }
    };
    let (rollouts, tokens) = (sum(|s| s.rollouts), sum(|s| s.tokens_sampled));
    let mismatch = steps
        .iter()
        .map(|step| step.mismatch_max)
        .fold(0.0, f64::max);
    let compared = count(sum(|s| s.mismatch_tokens));
    let facts = [
        (
            "Training time",
            duration(last.train_ms_total),
            String::new(),
        ),
        (
            "Rollouts",
            count(rollouts),
            format!("{} a second", number(rate(rollouts))),
        ),
        (
            "Tokens sampled",
            count(tokens),
            format!("{} a second", number(rate(tokens))),
        ),
        (
            "Sampler against learner",
            number(mismatch),
            format!("largest gap, {compared} tokens"),
        ),
    ];
    let mut html = String::from("<dl class=\"facts\">\n");
    for (name, value, aside) in facts {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd>{} <small>{}</small></dd></div>",
            escape(&value),
            escape(&aside)
        );
    }
    html.push_str("</dl>\n");
    html
}

fn rewards(report: &Report) -> String {
    let evaluations = &report.info.evaluations;
    if report.steps.is_empty() && evaluations.is_empty() {
        return String::new();
    }
    let note = match evaluations.first() {
        Some(evaluation) => format!(
            "Mean reward of each training batch. The points are the same {} held-out instances, \
             never trained on.",
            count(evaluation.instances as f64)
        ),
        None => "Mean reward of each training batch. Nothing was held out.".to_owned(),
    };
    format!(
        "<h2>Reward</h2>\n<p class=\"note\">{note}</p>\n<figure class=\"card wide\">{}</figure>\n",
        reward_curve(&report.steps, evaluations, "")
    )
}

fn samples(report: &Report) -> String {
    if report.samples.is_empty() {
        return String::new();
    }
    let pages: String = report
        .samples
        .iter()
        .map(super::samples::Page::html)
        .collect();
    format!(
        "<h2>Episodes</h2>\n<p class=\"note\">Best, median and worst of the last and of the first \
         step. Look here before believing a curve: a reward that is earned the wrong way is seen \
         here first.</p>\n{pages}"
    )
}

/// The recipe in its sections, so that none is torn between two columns.
fn recipe(text: &str) -> String {
    let mut sections = vec![String::new()];
    for line in text.trim().lines() {
        if line.starts_with('[') {
            sections.push(String::new());
        }
        if let Some(section) = sections.last_mut() {
            section.push_str(line);
            section.push('\n');
        }
    }
    let shown = sections.iter().filter(|section| !section.trim().is_empty());
    let shown: String = shown
        .map(|section| format!("<pre>{}</pre>\n", escape(section.trim())))
        .collect();
    format!(
        "<h2>Recipe</h2>\n<p class=\"note\">With every default filled in.</p>\n\
             <div class=\"card recipe\">\n{shown}</div>\n"
    )
}

fn machine(report: &Report) -> String {
    let (info, host) = (&report.info, &report.info.host);
    let digest = report.steps.last().map(|step| step.digest.to_string());
    let rows = [
        ("Run", info.run.clone()),
        ("Newest adapter", digest.unwrap_or_default()),
        ("Begun", utc_text(info.begun_unix_ms)),
        (
            "Ended",
            info.ended_unix_ms.map(utc_text).unwrap_or_default(),
        ),
        ("Processor", host.processor.clone()),
        ("Cores", host.cores.to_string()),
        (
            "Memory",
            if host.memory_bytes > 0 {
                bytes(host.memory_bytes)
            } else {
                String::new()
            },
        ),
        ("System", format!("{} {}", host.system, host.kernel)),
    ];
    let mut html = String::from("<h2>Run and machine</h2>\n<table>\n");
    for (name, value) in rows.iter().filter(|(_, value)| !value.trim().is_empty()) {
        let _ = writeln!(
            html,
            "<tr><th>{name}</th><td>{}</td></tr>",
            escape(value.trim())
        );
    }
    html.push_str("</table>\n");
    html
}
