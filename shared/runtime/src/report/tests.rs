use std::f64::consts::PI;
use std::fs;

use super::*;
use crate::run_dir::{RunProgress, metrics_line};

/// A step of a run that learns, like a real one in its figures.
fn step(at: u64, of: u64) -> StepReport {
    let x = at as f64 / of as f64;
    let noise = (at as f64 * 2.3 * PI).sin() * 0.04;
    let reward_mean = 0.3 + 0.65 / (1.0 + (-9.0 * (x - 0.4)).exp()) + noise;
    StepReport {
        step: at,
        rollouts: 192,
        groups: 24,
        groups_zero_variance: (x * 20.0) as u64,
        reward_mean,
        reward_std: 0.4 * (1.0 - x) + 0.05,
        reward_max: 1.0,
        metrics: [("exact".to_owned(), reward_mean * 0.9)].into(),
        loss: -0.02 + noise / 3.0,
        grad_norm: 0.6 - 0.4 * x + noise,
        learning_rate: 7e-4,
        entropy: 1.2 * (1.0 - x) + 0.1,
        mismatch_tokens: 5000,
        tokens_sampled: 5000,
        tokens_trained: 20_000,
        wait_ms: 900,
        forward_backward_ms: 600,
        publish_ms: 60,
        train_ms_total: at * 1560,
        ..StepReport::default()
    }
}

fn run_with(dir: &std::path::Path, steps: u64) -> RunDir {
    let text = "name = \"routing\"\nmodel = \"/models/<tiny>\"\nenvironment = \"routing\"\n";
    let recipe: Recipe = toml::from_str(text).expect("a recipe");
    let run = RunDir::create(dir, &recipe).expect("begin");
    let lines: String = (1..=steps)
        .map(|at| metrics_line(&step(at, steps)))
        .collect();
    fs::write(run.metrics(), lines).expect("metrics");
    for (at, greedy, sampled) in [(0, 0.313, 0.287), (steps, 0.963, 0.931)] {
        let evaluation = Evaluation {
            step: at,
            greedy,
            sampled,
            instances: 300,
            ..Evaluation::default()
        };
        run.keep_evaluation(&evaluation).expect("keep");
    }
    let sample =
        "# Step 1\n\n## Best: reward 1.000\n\n**assistant**\n\n> <script>alert(1)</script>\n";
    fs::write(run.transcripts().join("step-000001.md"), sample).expect("transcript");
    run
}

fn page(run: &RunDir) -> String {
    let path = write(run).expect("report");
    assert_eq!(path, run.report());
    fs::read_to_string(path).expect("page")
}

#[test]
fn the_page_needs_nothing_but_itself_and_obeys_nobody() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = run_with(dir.path(), 60);
    let html = page(&run);
    for foreign in [
        "<script", "src=", "href=", "url(", "@import", "<tiny>", "NaN", "inf",
    ] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for shown in [
        "0.313",
        "0.963",
        "0.287",
        "0.931",
        "11,520",
        "&lt;script&gt;",
        "[train]",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(html.contains("prefers-color-scheme: dark"));
    for element in [
        "svg", "figure", "div", "dl", "pre", "table", "p", "span", "title", "text",
    ] {
        let opened = html.matches(&format!("<{element}>")).count()
            + html.matches(&format!("<{element} ")).count();
        assert_eq!(
            opened,
            html.matches(&format!("</{element}>")).count(),
            "{element}"
        );
    }
}

#[test]
fn every_state_of_a_run_has_a_page() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for steps in [0, 1, 2, 30] {
        let run = run_with(dir.path(), steps);
        assert!(page(&run).contains("has not ended"), "{steps} steps");
        let fault = Some("LOSS_NONFINITE: <oops>".to_owned());
        run.update(|info| {
            info.evaluations.clear();
            info.set_progress(RunProgress::Failed, fault);
        })
        .expect("update");
        let html = page(&run);
        assert!(html.contains("LOSS_NONFINITE: &lt;oops&gt;") && !html.contains("NaN"));
        assert_eq!(html.contains("No step has been made"), steps == 0);
    }
}

#[test]
fn a_long_run_has_a_small_page() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let html = page(&run_with(dir.path(), 5000));
    assert!(html.len() < 400_000, "{} bytes", html.len());
}

#[test]
fn figures_that_are_no_numbers_do_no_harm() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = run_with(dir.path(), 3);
    // JSON has no NaN: it is written as null.
    let lines = fs::read_to_string(run.metrics()).expect("metrics");
    let lines = lines.replace("\"drift_kl\":0.0", "\"drift_kl\":null");
    let lines = lines.replacen("\"grad_norm\":0.", "\"grad_norm\":1e308,\"ignored\":0.", 1);
    fs::write(run.metrics(), lines).expect("write");
    let html = page(&run);
    assert!(html.contains("1.0e308"), "the axis holds it");
}

#[test]
fn the_curve_stands_alone() {
    let steps: Vec<StepReport> = (1..=60).map(|at| step(at, 60)).collect();
    let evaluation = Evaluation {
        step: 60,
        greedy: 0.9,
        sampled: 0.9,
        ..Evaluation::default()
    };
    let svg = curve_svg(&steps, &[evaluation]);
    assert!(svg.starts_with("<svg") && svg.contains("<style>") && svg.contains("xmlns="));
    assert!(
        svg.contains("held out, greedy") && svg.len() < 60_000,
        "{}",
        svg.len()
    );
    assert!(curve_svg(&[], &[]).contains("</svg>"));
}
