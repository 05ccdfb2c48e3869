//! `volley map`: plays an environment over seeds; every result is printed as it lands.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use volley_client::{Client, Order, Outcomes};
use volley_protocol::JobId;
use volley_protocol::job::{JobKind, JobSpec, Take};

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
    /// Be done with the first N results; the rest is cancelled. Short episodes are the first.
    #[arg(long, value_name = "N")]
    take: Option<NonZeroU64>,
    /// Print the job's id and return; its results wait for `volley job results`.
    #[arg(long, conflicts_with = "ordered")]
    detach: bool,
    /// Id of the job; repeating a finished one brings its results again. Default: a new one.
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: MapArgs, output: &Output, end: &Interruption) -> Result<(), Stop> {
    args.work.check(args.seeds.sample())?;
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
    spec.take = args.take.map(|results| Take {
        results: results.get(),
        bias_ok: false,
    });
    if args.detach {
        return detach(&client, spec, output, args.format.json).await;
    }
    let due = Due::of(rollouts, spec.take.map_or(0, |take| take.results));
    let show = Show::new(output, args.format.json, Some(due));
    end.leaves(job);
    let handle = client.spawn(spec).await?;
    output.talk(&format!(
        "job {job}: {} rollouts of {}",
        text::count(rollouts),
        args.work.env
    ));
    let outcome = show.all(handle.outcomes(order(args.ordered))).await;
    client.close().await;
    outcome
}

/// Leaves the job behind; only its id is data.
async fn detach(client: &Client, spec: JobSpec, output: &Output, json: bool) -> Result<(), Stop> {
    let rollouts = spec.rollouts;
    let job = client.spawn(spec).await?.job();
    client.clone().close().await;
    if json {
        return output.json(&json!({ "job": job.to_string(), "rollouts": rollouts }));
    }
    output.talk(&format!(
        "{} rollouts submitted; results:",
        text::count(rollouts)
    ));
    output.talk(&format!("  volley job results {job} --follow"));
    output.data(job)
}

pub(crate) const fn order(ordered: bool) -> Order {
    if ordered {
        Order::ByIndex
    } else {
        Order::AsCompleted
    }
}

/// What a job is to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A result or a failure for each rollout.
    All(u64),
    /// So many results.
    First(u64),
}

impl Due {
    /// Of a job with so many rollouts that takes so many results; 0 takes all.
    pub(crate) const fn of(rollouts: u64, take: u64) -> Self {
        match take {
            0 => Self::All(rollouts),
            take => Self::First(take),
        }
    }

    const fn count(self) -> u64 {
        match self {
            Self::All(count) | Self::First(count) => count,
        }
    }

    /// How many of them are there.
    fn done(self, tally: &Tally) -> u64 {
        match self {
            Self::All(_) => tally.settled(),
            Self::First(_) => tally.finished,
        }
    }
}

/// Prints results.
pub(crate) struct Show<'a> {
    output: &'a Output,
    json: bool,
    /// How many are due, if that is known.
    due: Option<Due>,
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl<'a> Show<'a> {
    pub(crate) fn new(output: &'a Output, json: bool, due: Option<Due>) -> Self {
        let shown = due.filter(|_| output.shows_progress());
        let bar = shown.map(|due| progress_bar(due.count()));
        Self {
            output,
            json,
            due,
            bar,
            begun: Instant::now(),
        }
    }

    /// Prints every result and what they add up to.
    pub(crate) async fn all(&self, mut results: Outcomes) -> Result<(), Stop> {
        let mut tally = Tally::default();
        let outcome = self.each(&mut results, &mut tally).await;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        outcome?;
        let told = tally.conclude(self.due.map(|_| self.begun.elapsed()), self.output);
        match self.due.filter(|due| due.done(&tally) != due.count()) {
            Some(due) => {
                let (done, count) = (due.done(&tally), due.count());
                let why = match due {
                    Due::All(_) => "it was cancelled",
                    Due::First(_) => "it was cancelled, or too many failed",
                };
                self.output.talk(&format!(
                    "the job ended with {done} of {count} results: {why}"
                ));
                Err(Stop::Status(FAILED))
            }
            None => told,
        }
    }

    async fn each(&self, results: &mut Outcomes, tally: &mut Tally) -> Result<(), Stop> {
        while let Some(record) = results.next_record().await? {
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
                    bar.set_position(self.due.map_or(0, |due| due.done(tally)));
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
