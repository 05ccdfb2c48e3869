//! How a run is told: NDJSON for programs, a live bar on a terminal, plain lines otherwise. Every
//! event also goes into the run directory's `events.jsonl`.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::run::StepReport;
use volley_runtime::run_dir::Evaluation;

/// Rewards in the live line's curve.
const CURVE_STEPS: usize = 24;

/// Where a run's events go.
#[derive(Debug)]
pub(crate) struct Voice {
    json: bool,
    bar: Option<ProgressBar>,
    events: File,
    rewards: Vec<f64>,
    /// Steps in a row from which nothing was learnt.
    idle_steps: u64,
}

/// Steps in a row without a gradient after which that is said; at first such a step may be chance.
const IDLE_STEPS_TOLD: u64 = 3;

impl Voice {
    pub(crate) fn open(json: bool, events: &Path) -> Result<Self, Fault> {
        let opened = File::options().append(true).create(true).open(events);
        let events = opened.map_err(|error| {
            Fault::new(
                ErrorCode::IoFailed,
                format!("{}: {error}", events.display()),
            )
        })?;
        Ok(Self {
            json,
            bar: None,
            events,
            rewards: Vec::new(),
            idle_steps: 0,
        })
    }

    /// One event, as an object with an `event` key, and the same in words.
    pub(crate) fn event(&mut self, event: &Value, words: &str) {
        let line = event.to_string();
        // The copy in the run directory is for later; a full disk is reported by the learner.
        let _ = writeln!(self.events, "{line}");
        if self.json {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        } else {
            self.words(words);
        }
    }

    /// For people only.
    pub(crate) fn words(&self, words: &str) {
        if words.is_empty() {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(words),
            // Nobody reads a closed standard error.
            None => drop(writeln!(std::io::stderr().lock(), "{words}")),
        }
    }

    /// Training begins at `done` of `steps`.
    pub(crate) fn begin(&mut self, steps: u64, done: u64) {
        if self.json || !std::io::stderr().is_terminal() {
            return;
        }
        let style = "{msg}\n{bar:40.cyan/dim} step {pos}/{len}  {elapsed_precise} < {eta_precise}";
        // The template is a constant, and a test parses it.
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        bar.set_style(style);
        bar.set_position(done);
        bar.enable_steady_tick(Duration::from_millis(250));
        bar.set_message("waiting for the first step");
        self.bar = Some(bar);
    }

    pub(crate) fn step(&mut self, report: &StepReport, steps: u64) {
        self.rewards.push(report.reward_mean);
        let step_s = (report.wait_ms + report.forward_backward_ms + report.publish_ms) as f64 / 1e3;
        let words = format!(
            "step {:>4}/{steps}  reward {:.3} ±{:.3}  entropy {:.3}  grad {:.3}  zero-variance {}/{}  \
             mismatch {:.0e}  {:.1} s",
            report.step,
            report.reward_mean,
            report.reward_std,
            report.entropy,
            report.grad_norm,
            report.groups_zero_variance,
            report.groups,
            report.mismatch_max,
            step_s,
        );
        let event = json!({ "event": "step", "report": report });
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                bar.set_message(format!("{}\nreward {}", words, curve(&self.rewards)));
                self.event(&event, "");
            }
            None => self.event(&event, &words),
        }
        let is_idle = report.groups_zero_variance == report.groups;
        self.idle_steps = if is_idle { self.idle_steps + 1 } else { 0 };
        // Whole groups that all failed are told at once, and again and again: it will not pass.
        if report.groups == 0 || self.idle_steps == IDLE_STEPS_TOLD {
            let warning = nothing_learnt(report, self.idle_steps);
            self.event(
                &json!({ "event": "warning", "step": report.step, "message": warning }),
                &warning,
            );
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    pub(crate) fn evaluated(&mut self, when: &str, evaluation: &Evaluation) {
        let words = format!(
            "held out, {when}: greedy {:.3}, sampled {:.3} ({} instances each)",
            evaluation.greedy, evaluation.sampled, evaluation.instances
        );
        self.event(
            &json!({ "event": "evaluated", "when": when, "result": evaluation }),
            &words,
        );
    }
}

/// Why a run stands still, and where to look.
fn nothing_learnt(report: &StepReport, idle_steps: u64) -> String {
    if report.groups == 0 {
        return format!(
            "warning: step {} had no group to learn from: its rollouts failed. See `volley job list`, \
             `volley job show` and the workers' logs",
            report.step
        );
    }
    format!(
        "warning: nothing was learnt in {idle_steps} steps: within every group all rewards are equal \
         (mean {:.3}). Read transcripts/ in the run directory: are answers cut off, is the task out \
         of reach, or solved already?",
        report.reward_mean
    )
}

/// The last rewards as blocks, scaled to what they cover.
fn curve(rewards: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &rewards[rewards.len().saturating_sub(CURVE_STEPS)..];
    let low = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shown.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = (high - low).max(1e-9);
    let block = |reward: &f64| {
        let level = ((reward - low) / span * 7.0).round().clamp(0.0, 7.0);
        BLOCKS[level as usize]
    };
    let blocks: String = shown.iter().map(block).collect();
    format!("{blocks} {low:.2}..{high:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_spans_its_values() {
        assert!(curve(&[0.1, 0.5, 0.9]).starts_with("▁▅█"));
        assert_eq!(curve(&[0.5]).chars().next(), Some('▁'));
        assert_eq!(
            curve(&vec![1.0; 100])
                .chars()
                .take_while(|c| *c == '▁')
                .count(),
            CURVE_STEPS
        );
    }

    #[test]
    fn a_run_that_stands_still_says_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let events = dir.path().join("events.jsonl");
        let mut voice = Voice::open(true, &events).expect("writable");
        let mut step = |groups, groups_zero_variance| {
            let report = StepReport {
                groups,
                groups_zero_variance,
                ..StepReport::default()
            };
            voice.step(&report, 9);
            let text = std::fs::read_to_string(&events).expect("written");
            text.matches("\"event\":\"warning\"").count()
        };
        assert_eq!([step(4, 4), step(4, 4), step(4, 3), step(4, 4)], [0; 4]);
        assert_eq!([step(4, 4), step(4, 4), step(4, 4)], [0, 1, 1], "once");
        assert_eq!([step(0, 0), step(0, 0)], [2, 3], "every time");
    }
}
