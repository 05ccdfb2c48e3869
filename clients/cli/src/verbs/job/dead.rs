//! `volley job dead` and `volley job retry`: what was given up, and trying it anew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use volley_protocol::dead::DeadLetter;
use volley_protocol::{JobId, limits};

use super::find_job;
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::json as objects;
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct DeadArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RetryJobArgs {
    /// Id, the beginning of one, or a name.
    job: String,
    /// A rollout that was given up; may be repeated.
    #[arg(long, value_name = "N", conflicts_with = "all")]
    index: Vec<u64>,
    /// Every dead letter that was not tried anew yet.
    #[arg(long, required_unless_present = "index")]
    all: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Lists dead letters, oldest first.
pub(super) async fn list(args: DeadArgs, output: &Output) -> Result<(), Stop> {
    let client = super::super::connect(&args.cluster, "volley job").await?;
    let job = find_job(&client, &args.job).await?;
    let failed = client.job(job).await?.failed;
    let letters = client.dead_letters(job).await?;
    client.close().await;
    if args.format.json {
        let letters: Vec<_> = letters.iter().map(objects::dead_letter).collect();
        return output.json(&json!({
            "schema": "volley.dead/1",
            "job": job.to_string(),
            "failed": failed,
            "dead_letters": letters,
        }));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    table(&letters, now.unwrap_or_default().as_millis() as u64)
        .lines()
        .into_iter()
        .try_for_each(|line| output.data(line))?;
    let kept = letters.len() as u64;
    if kept < failed {
        let most = text::count(limits::DEAD_LETTERS_PER_JOB_MAX as u64);
        output.talk(&format!(
            "{} more were given up; of a job the newest {most} are kept",
            text::count(failed - kept)
        ));
    }
    if kept > 0 {
        output.talk(&format!("try them anew: volley job retry {job} --all"));
    }
    Ok(())
}

/// Since then, by this machine's clock.
fn ago(at_ms: u64, now_ms: u64) -> String {
    let since = Duration::from_millis(now_ms.saturating_sub(at_ms));
    format!("{} ago", text::duration(since))
}

fn table(letters: &[DeadLetter], now_ms: u64) -> Table {
    let columns = [
        ("INDEX", Align::Right),
        ("INSTANCE", Align::Right),
        ("FAILED", Align::Right),
        ("LOST", Align::Right),
        ("WHEN", Align::Left),
        ("RETRIED AS", Align::Left),
        ("ERROR", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for letter in letters {
        let retried = letter
            .retried_as
            .map(|job: JobId| job.to_string()[..12].to_owned());
        table.row([
            letter.index.to_string(),
            letter.instance.to_string(),
            text::count(u64::from(letter.failures)),
            text::count(u64::from(letter.losses)),
            ago(letter.at_ms, now_ms),
            retried.unwrap_or_else(|| "-".to_owned()),
            format!(
                "{}: {}",
                letter.fault.code,
                text::line(&letter.fault.message, 80)
            ),
        ]);
    }
    table
}

/// Makes a job of dead letters.
pub(super) async fn retry(args: RetryJobArgs, output: &Output) -> Result<(), Stop> {
    let client = super::super::connect(&args.cluster, "volley job").await?;
    let job = find_job(&client, &args.job).await?;
    let retry = JobId(rand::random());
    let retry = client.retry(job, retry, args.index).await?.job;
    let rollouts = client.job(retry).await?.rollouts;
    client.close().await;
    if args.format.json {
        let object =
            json!({ "job": retry.to_string(), "of": job.to_string(), "rollouts": rollouts });
        return output.json(&object);
    }
    output.talk(&format!(
        "{} rollouts are tried anew; results:",
        text::count(rollouts)
    ));
    output.talk(&format!("  volley job results {retry} --follow"));
    output.data(retry)
}

#[cfg(test)]
mod tests {
    use volley_protocol::{ErrorCode, Fault};

    use super::*;

    #[test]
    fn a_letter_is_one_line_whatever_it_says() {
        let letter = DeadLetter {
            index: 7,
            instance: 107,
            fault: Fault::new(ErrorCode::PoisonRollout, "four\nworkers\x1b[2J"),
            failures: 1,
            losses: 4,
            returns: 0,
            at_ms: 1_000,
            retried_as: Some(JobId(0xabcd << 112)),
        };
        let lines = table(&[letter], 121_000).lines();
        assert_eq!(lines.len(), 2);
        let ago = format!("{} ago", text::duration(Duration::from_secs(120)));
        assert!(lines[1].contains(&ago), "{lines:?}");
        assert!(lines[1].contains("abcd00000000"), "{lines:?}");
        assert!(
            lines[1].ends_with("POISON_ROLLOUT: four workers\\u{1b}[2J"),
            "{lines:?}"
        );
    }
}
