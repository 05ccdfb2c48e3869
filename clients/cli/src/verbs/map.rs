//! `volley map`: plays an environment over seeds; every result is printed as it lands.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use volley_client::{OrderedResults, ResultStream};
use volley_protocol::client::ResultRecord;
use volley_protocol::job::JobKind;
use volley_protocol::{Fault, JobId};

use super::Interruption;
use super::record::{self, Tally};
use super::work::{Seeds, WorkArgs};
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::{FAILED, Stop};
use crate::output::Output;
use crate::text;

/// Play an environment over a range of seeds; results come as they land.
#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Seeds of the scenarios, for example 0..1024; the end is not played.
    #[arg(long, value_name = "A..B")]
    seeds: Seeds,
    /// Rollouts of each seed, played with the same adapter version and compared with each other.
    #[arg(long, value_name = "G", default_value_t = 1)]
    group: u32,
    /// Print results by index instead of as they complete.
    #[arg(long)]
    ordered: bool,
    /// Id of the job; repeating a finished one brings its results again. Default: a new one.
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: MapArgs, output: &Output, end: &Interruption) -> Result<(), Stop> {
    args.work.environment(args.seeds.sample())?;
    let client = super::connect(&args.cluster, "volley map").await?;
    let job = args.job.unwrap_or_else(|| JobId(rand::random()));
    let name = format!("map {}", args.work.env);
    let sample = args.seeds.sample();
    let mut spec = args
        .work
        .spec(&client, job, JobKind::Map, name, sample)
        .await?;
    spec.first_instance = args.seeds.0.start;
    spec.group_size = args.group;
    let rollouts = args.seeds.count().checked_mul(u64::from(args.group));
    spec.rollouts = rollouts.ok_or_else(|| Stop::usage("seeds times --group overflow"))?;
    let rollouts = spec.rollouts;
    let show = Show::new(output, args.format.json, Some(rollouts));
    end.leaves(job);
    client.submit(spec).await?;
    output.talk(&format!(
        "job {job}: {} rollouts of {}",
        text::count(rollouts),
        args.work.env
    ));
    let outcome = show
        .all(Results::new(client.results(job), args.ordered))
        .await;
    client.close().await;
    outcome
}

/// Results in one order or the other.
#[derive(Debug)]
pub(crate) enum Results {
    AsCompleted(ResultStream),
    Ordered(OrderedResults),
}

impl Results {
    pub(crate) fn new(stream: ResultStream, ordered: bool) -> Self {
        if ordered {
            Self::Ordered(OrderedResults::new(stream))
        } else {
            Self::AsCompleted(stream)
        }
    }

    async fn next(&mut self) -> Result<Option<ResultRecord>, Fault> {
        match self {
            Self::AsCompleted(stream) => stream.next().await,
            Self::Ordered(results) => results.next().await,
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::AsCompleted(stream) => stream.is_ready(),
            Self::Ordered(results) => results.is_ready(),
        }
    }
}

/// Prints results.
pub(crate) struct Show<'a> {
    output: &'a Output,
    json: bool,
    /// How many are due, if that is known.
    due: Option<u64>,
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl<'a> Show<'a> {
    pub(crate) fn new(output: &'a Output, json: bool, due: Option<u64>) -> Self {
        let bar = due.filter(|_| output.shows_progress()).map(progress_bar);
        Self {
            output,
            json,
            due,
            bar,
            begun: Instant::now(),
        }
    }

    /// Prints every result and what they add up to.
    pub(crate) async fn all(&self, mut results: Results) -> Result<(), Stop> {
        let mut tally = Tally::default();
        let outcome = self.each(&mut results, &mut tally).await;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        outcome?;
        let told = tally.conclude(self.due.map(|_| self.begun.elapsed()), self.output);
        match self.due.filter(|due| *due != tally.settled()) {
            Some(due) => {
                let message = format!("the job ended with {} of {due} results", tally.settled());
                self.output.talk(&format!("{message}: it was cancelled"));
                Err(Stop::Status(FAILED))
            }
            None => told,
        }
    }

    async fn each(&self, results: &mut Results, tally: &mut Tally) -> Result<(), Stop> {
        while let Some(record) = results.next().await? {
            if self.json {
                self.output.json(&record::object(&record))?;
            } else {
                self.output.data(record::line(&record))?;
            }
            tally.add(&record);
            // Many at once leave together; the last of them at once.
            if !results.is_ready() {
                self.output.flush()?;
                if let Some(bar) = &self.bar {
                    bar.set_position(tally.settled());
                    bar.set_message(progress_words(tally));
                }
            }
        }
        Ok(())
    }
}

fn progress_words(tally: &Tally) -> String {
    let mean = tally
        .reward_mean()
        .map_or_else(|| "-".to_owned(), |mean| format!("{mean:.3}"));
    format!("mean reward {mean}, {} failed", text::count(tally.failed))
}

fn progress_bar(due: u64) -> ProgressBar {
    const TEMPLATE: &str = "{bar:30} {human_pos}/{human_len}  {per_sec}  {msg}  {eta}";
    let style = ProgressStyle::with_template(TEMPLATE).expect("a test parses the template");
    let bar = ProgressBar::new(due).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_is_sound() {
        assert_eq!(progress_bar(3).length(), Some(3));
        let mut tally = Tally::default();
        tally.add(&record::tests::failed(1));
        assert_eq!(progress_words(&tally), "mean reward -, 1 failed");
    }
}
