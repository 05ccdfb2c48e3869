//! One result, as a line for people and as an object for programs; and what all of them add up to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use volley_protocol::Trajectory;
use volley_protocol::client::ResultRecord;

use crate::errors::{FAILED, Stop};
use crate::json;
use crate::output::Output;
use crate::text;

/// Columns for the words of a result, so that a line fits an ordinary terminal.
const EXCERPT_COLUMNS: usize = 56;

/// A line for people.
pub(crate) fn line(record: &ResultRecord) -> String {
    match record {
        ResultRecord::Finished(trajectory) => {
            let header = &trajectory.header;
            let cut = if header.truncated { " (cut off)" } else { "" };
            let words = text::line(answer(trajectory), EXCERPT_COLUMNS);
            format!(
                "{:>8}  {:>8.3}  {words}{cut}",
                record.index(),
                header.reward
            )
        }
        ResultRecord::Failed { index, fault } => {
            let words = text::line(&fault.message, EXCERPT_COLUMNS);
            format!("{index:>8}    failed  {}: {words}", fault.code)
        }
    }
}

/// An object for programs.
pub(crate) fn object(record: &ResultRecord) -> Value {
    match record {
        ResultRecord::Finished(trajectory) => {
            let header = &trajectory.header;
            let said = header.transcript.iter();
            let transcript: Vec<Value> = said
                .map(|(role, text)| json!({ "role": role, "content": text }))
                .collect();
            json!({
                "index": record.index(),
                "instance": header.instance,
                "reward": header.reward,
                "metrics": header.metrics,
                "transcript": transcript,
                "tokens": trajectory.tokens.len(),
                "sampled_tokens": sampled(trajectory),
                "turns": header.turns,
                "truncated": header.truncated,
                "version": header.version.as_ref().map(json::version),
                "numerics": header.numerics,
                "worker": header.worker.to_string(),
                "episode_ms": header.episode_ms,
            })
        }
        ResultRecord::Failed { index, fault } => {
            json!({ "index": index, "error": json::fault(fault) })
        }
    }
}

/// The last thing the policy said.
fn answer(trajectory: &Trajectory) -> &str {
    let mut said = trajectory.header.transcript.iter().rev();
    said.find(|(role, _)| role == "assistant")
        .map_or("", |(_, text)| text)
}

fn sampled(trajectory: &Trajectory) -> u64 {
    trajectory
        .sampled
        .iter()
        .map(|sampled| u64::from(*sampled))
        .sum()
}

/// What results add up to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    reward_sum: f64,
    sampled_tokens: u64,
    /// By code: how many, and the first message.
    failures: BTreeMap<&'static str, (u64, String)>,
}

impl Tally {
    pub(crate) fn add(&mut self, record: &ResultRecord) {
        match record {
            ResultRecord::Finished(trajectory) => {
                self.finished += 1;
                self.reward_sum += trajectory.header.reward;
                self.sampled_tokens += sampled(trajectory);
            }
            ResultRecord::Failed { fault, .. } => {
                self.failed += 1;
                let first = || (0, fault.message.clone());
                self.failures
                    .entry(fault.code.name())
                    .or_insert_with(first)
                    .0 += 1;
            }
        }
    }

    pub(crate) fn settled(&self) -> u64 {
        self.finished + self.failed
    }

    pub(crate) fn reward_mean(&self) -> Option<f64> {
        (self.finished > 0).then(|| self.reward_sum / self.finished as f64)
    }

    /// What to tell at the end; rates only where the rollouts were waited for.
    pub(crate) fn summary(&self, took: Option<Duration>) -> Vec<String> {
        let mean = self
            .reward_mean()
            .map_or_else(|| "-".to_owned(), |mean| format!("{mean:.3}"));
        let (settled, failed) = (text::count(self.settled()), text::count(self.failed));
        let mut told = format!("{settled} rollouts, {failed} failed, mean reward {mean}");
        if let Some(took) = took {
            let seconds = took.as_secs_f64().max(1e-9);
            let rollouts = text::rate(self.settled() as f64 / seconds);
            let tokens = text::rate(self.sampled_tokens as f64 / seconds);
            let took = text::duration(took);
            told.push_str(&format!(
                ", {rollouts} rollouts/s, {tokens} tokens/s, {took}"
            ));
        }
        let mut lines = vec![told];
        lines.extend(self.failures.iter().map(|(code, (count, message))| {
            let message = text::line(message, 100);
            format!("  {} x {code}: {message}", text::count(*count))
        }));
        lines
    }

    /// Tells the end; failed rollouts show in the exit status.
    pub(crate) fn conclude(&self, took: Option<Duration>, output: &Output) -> Result<(), Stop> {
        output.flush()?;
        self.summary(took).iter().for_each(|line| output.talk(line));
        if self.failed == 0 {
            Ok(())
        } else {
            Err(Stop::Status(FAILED))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use volley_protocol::trajectory::TrajectoryHeader;
    use volley_protocol::{AttemptId, Epoch, ErrorCode, Fault, JobId, PeerId, RolloutId};

    use super::*;

    pub(crate) fn finished(index: u64, reward: f64, said: &str) -> ResultRecord {
        let rollout = RolloutId {
            job: JobId(1),
            index,
        };
        let header = TrajectoryHeader {
            attempt: AttemptId {
                rollout,
                epoch: Epoch(1),
                number: 1,
            },
            worker: PeerId(0xb),
            instance: index + 100,
            version: None,
            numerics: "scripted".into(),
            reward,
            metrics: BTreeMap::from([("format_ok".into(), 1.0)]),
            turns: 1,
            truncated: false,
            transcript: vec![
                ("user".into(), "hi".into()),
                ("assistant".into(), said.into()),
            ],
            episode_ms: 3,
        };
        let (tokens, logprobs, sampled) = (vec![1, 2, 3], vec![0.0, -1.0, -1.0], vec![0, 1, 1]);
        ResultRecord::Finished(Box::new(Trajectory {
            header,
            tokens,
            logprobs,
            sampled,
        }))
    }

    pub(crate) fn failed(index: u64) -> ResultRecord {
        let fault = Fault::new(ErrorCode::EnvPanic, "divided\nby zero");
        ResultRecord::Failed { index, fault }
    }

    #[test]
    fn lines_are_lines_whatever_was_said() {
        let record = finished(7, 0.5, "four\x1b]0;title\x07\nand more");
        assert_eq!(
            line(&record),
            "       7     0.500  four\\u{1b}]0;title\\u{7} and more"
        );
        assert_eq!(
            line(&failed(8)),
            "       8    failed  ENV_PANIC: divided by zero"
        );
    }

    #[test]
    fn objects_have_the_promised_names() {
        let object = object(&finished(7, 0.5, "4"));
        assert_eq!(object["index"], 7);
        assert_eq!(object["reward"], 0.5);
        assert_eq!(object["metrics"]["format_ok"], 1.0);
        assert_eq!(
            object["transcript"][1],
            json!({ "role": "assistant", "content": "4" })
        );
        assert_eq!(
            (&object["tokens"], &object["sampled_tokens"]),
            (&json!(3), &json!(2))
        );
        assert_eq!(object["version"], Value::Null);
        let object = super::object(&failed(8));
        assert_eq!(object["error"]["code"], "ENV_PANIC");
        assert_eq!(object["error"]["message"], "divided\nby zero");
    }

    #[test]
    fn sums_are_told_with_failures_by_code() {
        let mut tally = Tally::default();
        [
            finished(0, 1.0, ""),
            finished(1, 0.0, ""),
            failed(2),
            failed(3),
        ]
        .iter()
        .for_each(|record| tally.add(record));
        assert_eq!((tally.settled(), tally.reward_mean()), (4, Some(0.5)));
        let lines = tally.summary(Some(Duration::from_secs(2)));
        let told = "4 rollouts, 2 failed, mean reward 0.500, 2.00 rollouts/s, 2.00 tokens/s, 2.0s";
        assert_eq!(lines[0], told);
        assert_eq!(lines[1], "  2 x ENV_PANIC: divided by zero");
        assert!(Tally::default().summary(None)[0].ends_with("mean reward -"));
    }
}
