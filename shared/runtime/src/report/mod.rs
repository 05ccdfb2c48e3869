//! `report.html`: what a run has learned, on one page that needs nothing but itself.
//!
//! No scripts, no fonts or pictures from elsewhere: the file can be mailed, printed and opened in
//! ten years. Light and dark follow the reader's system.

mod charts;
mod figures;
mod page;
mod samples;
mod scale;
mod svg;
mod words;

use std::path::PathBuf;

use volley_protocol::Fault;
use volley_protocol::run::StepReport;

use crate::recipe::Recipe;
use crate::run_dir::{Evaluation, RunDir, RunInfoFile};
use crate::{faults, files};

const THEME_CSS: &str = include_str!("theme.css");
const CHART_CSS: &str = include_str!("chart.css");
const PAGE_CSS: &str = include_str!("page.css");

/// Everything that the page shows.
#[derive(Debug)]
struct Report {
    info: RunInfoFile,
    recipe: Recipe,
    recipe_text: String,
    steps: Vec<StepReport>,
    samples: Vec<samples::Page>,
}

/// Writes the report of a run into its directory, whole or not at all, and tells where it is.
/// Runs that have not ended, or have not begun to learn, have a report too.
///
/// # Errors
/// `CHECKPOINT_INVALID` or `CONFIG_INVALID` when the directory is damaged, `IO_FAILED`.
pub fn write(run: &RunDir) -> Result<PathBuf, Fault> {
    let recipe_file = run.recipe_file();
    let report = Report {
        info: run.info()?,
        recipe: run.recipe()?,
        recipe_text: std::fs::read_to_string(&recipe_file)
            .map_err(|error| faults::io("read", &recipe_file, &error))?,
        steps: run.reports()?,
        samples: samples::first_and_last(&run.transcripts()),
    };
    let path = run.report();
    files::write_atomic(&path, page::html(&report).as_bytes(), 0o644)
        .map_err(|error| faults::io("write", &path, &error))?;
    Ok(path)
}

/// The reward curve as an SVG file of its own, light and dark, for a README.
#[must_use]
pub fn curve_svg(steps: &[StepReport], evaluations: &[Evaluation]) -> String {
    charts::reward_curve(steps, evaluations, &format!("{THEME_CSS}{CHART_CSS}"))
}

#[cfg(test)]
mod tests;
