//! What is told stays within a control frame, whatever was told to us: lists give as many entries,
//! or as much of each, as their bound allows.

use volley_protocol::codec;
use volley_protocol::limits::PAGED_REPLY_BYTES_MAX;
use volley_protocol::run::{RunSummary, StepReport};

use crate::config::{RUN_BYTES_MIN, RUNS_BYTES_MAX, SENTENCE_BYTES_MAX};

/// Longest message and hint, each, of a failed run that is listed without its figures.
const BRIEF_TEXT_BYTES_MAX: usize = 96;

/// A sentence for people, cut where it is longer than [`SENTENCE_BYTES_MAX`].
pub(crate) fn sentence(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SENTENCE_BYTES_MAX));
    text
}

/// As many reports as fit an answer, at least one if there is one. The next question goes on
/// behind the last.
pub(crate) fn reports<'a>(all: impl Iterator<Item = &'a StepReport>) -> Vec<StepReport> {
    let mut bytes = 0;
    let fits = |report: &&StepReport| {
        bytes += codec::encode(*report).len();
        bytes <= PAGED_REPLY_BYTES_MAX
    };
    all.take_while(fits).cloned().collect()
}

/// The same runs; where they are too many for an answer, some without report and history. Those
/// with a learner keep theirs first.
pub(crate) fn runs(mut all: Vec<RunSummary>) -> Vec<RunSummary> {
    let mut spare = RUNS_BYTES_MAX.saturating_sub(all.len() * RUN_BYTES_MIN);
    for connected in [true, false] {
        for run in all.iter_mut().filter(|run| run.connected == connected) {
            let more = codec::encode(run).len().saturating_sub(RUN_BYTES_MIN);
            if more <= spare {
                spare -= more;
            } else {
                brief(run);
                debug_assert!(codec::encode(run).len() <= RUN_BYTES_MIN);
            }
        }
    }
    all
}

fn brief(run: &mut RunSummary) {
    run.last = None;
    run.reward_history.clear();
    run.state = run.state.clone().cut_to(BRIEF_TEXT_BYTES_MAX);
}

#[cfg(test)]
mod tests {
    use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
    use volley_protocol::client::{ClientReply, ReplyBody};
    use volley_protocol::job::{JobKind, JobState};
    use volley_protocol::limits::{
        CONTROL_FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, REPORT_METRICS_MAX,
    };
    use volley_protocol::run::{RunInfo, RunState};
    use volley_protocol::snapshot::{
        ClusterSnapshot, JobSummary, Notice, ScalingSummary, WorkerState, WorkerSummary,
    };
    use volley_protocol::{Digest, Epoch, ErrorCode, Fault, JobId, PeerId, RunId};

    use super::*;
    use crate::attempts::SUMMARY_TEXT_MAX;
    use crate::config::{
        JOBS_PER_REPLY_MAX, REPORTS_PER_REPLY_MAX, REWARD_HISTORY_MAX, RUNS_MAX,
        VERSIONS_PER_REPLY_MAX,
    };
    use crate::snapshot::{PROBLEMS_MAX, SNAPSHOT_JOBS_MAX, SNAPSHOT_WORKERS_MAX};
    use crate::stats::{HISTORY_MAX, NOTICES_MAX};

    fn name() -> String {
        "n".repeat(NAME_BYTES_MAX)
    }

    /// The largest that is kept of what a learner may say.
    fn report(step: u64) -> StepReport {
        let metrics = (0..2 * REPORT_METRICS_MAX).map(|i| (format!("{i:0NAME_BYTES_MAX$}"), 0.5));
        let report = StepReport {
            step,
            metrics: metrics.collect(),
            ..StepReport::default()
        };
        report.cut()
    }

    fn failed() -> RunState {
        let long = || "m".repeat(2 * MESSAGE_BYTES_MAX);
        RunState::Failed(Fault::new(ErrorCode::Internal, long()).with_hint(long())).cut()
    }

    fn run(id: u128) -> RunSummary {
        RunSummary {
            info: RunInfo {
                run: RunId(id),
                name: name(),
                environment: name(),
                base: Digest::default(),
                steps_total: 1,
                rank: 1,
                retain_versions: 1,
            },
            state: failed(),
            connected: id >= 900,
            step: 1,
            last: Some(report(1)),
            reward_history: vec![0.5; REWARD_HISTORY_MAX],
        }
    }

    fn job() -> JobSummary {
        JobSummary {
            job: JobId(1),
            name: name(),
            environment: name(),
            kind: JobKind::Map,
            state: JobState::Open,
            rollouts: 1,
            dispatchable: 1,
            queued: 1,
            leased: 1,
            accepted: 1,
            failed: 1,
            retries: 1,
            last_failure: Some((ErrorCode::Internal, "\u{1F3D0}".repeat(SUMMARY_TEXT_MAX))),
            cancelled: 0,
            take: 0,
            priority: 0,
        }
    }

    fn assert_fits(body: ReplyBody) {
        let reply = ClientReply { id: 1, body };
        let bytes = codec::encode(&reply);
        assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX, "{}", bytes.len());
        assert!(codec::decode::<ClientReply>(&bytes).is_ok_and(|back| back == reply));
    }

    #[test]
    fn progress_of_the_largest_reports_fits_and_goes_on() {
        let all: Vec<_> = (0..REPORTS_PER_REPLY_MAX as u64).map(report).collect();
        assert_eq!(all[0].metrics.len(), REPORT_METRICS_MAX);
        let whole = codec::encode(&all).len();
        assert!(whole > CONTROL_FRAME_BYTES_MAX, "{whole}: not the largest");
        let told = reports(all.iter());
        assert!(!told.is_empty() && told.len() < all.len());
        let rest = reports(all[told.len()..].iter());
        assert_eq!([&told[..], &rest[..]].concat(), all);
        let state = failed();
        let reports = told;
        assert_fits(ReplyBody::Progress { reports, state });
    }

    #[test]
    fn the_most_runs_fit_and_those_at_work_keep_their_figures() {
        let all: Vec<_> = (0..RUNS_MAX as u128).map(run).collect();
        let told = runs(all.clone());
        assert_eq!(told.len(), all.len(), "none is left out");
        let in_full = |run: &&RunSummary| run.last.is_some();
        assert!(told.iter().any(|run| run.last.is_some()));
        assert!(told.iter().filter(in_full).all(|run| run.connected));
        assert!(told.iter().zip(&all).all(|(a, b)| a.info == b.info));
        assert_eq!(runs(all[..9].to_vec()), all[..9], "few are told in full");
        assert_fits(ReplyBody::Runs(told));
    }

    #[test]
    fn the_most_jobs_and_versions_fit() {
        assert_fits(ReplyBody::Jobs(vec![job(); JOBS_PER_REPLY_MAX]));
        let version = AdapterVersion {
            run: RunId(1),
            lineage: 1,
            step: 1,
            digest: Digest::default(),
        };
        let entry = AdapterEntry {
            version,
            parent: Digest::default(),
            bytes: 1,
        };
        let entries = vec![entry; VERSIONS_PER_REPLY_MAX];
        let source = Some(([0u16; 8], 1).into());
        assert_fits(ReplyBody::Adapters { entries, source });
    }

    #[test]
    fn the_fullest_snapshot_fits() {
        let text = || sentence("s".repeat(2 * SENTENCE_BYTES_MAX));
        let worker = WorkerSummary {
            worker: PeerId(1),
            name: name(),
            pid: 1,
            state: WorkerState::Up,
            slots: 1,
            leased: 1,
            adapter_step: 1,
            episodes_total: 1,
            tokens_per_s: 1.0,
            heartbeat_age_ms: 1,
        };
        let snapshot = ClusterSnapshot {
            cluster: name(),
            version: name(),
            epoch: Epoch(1),
            pid: 1,
            uptime_ms: 1,
            jobs: vec![job(); SNAPSHOT_JOBS_MAX],
            workers: vec![worker; SNAPSHOT_WORKERS_MAX],
            runs: runs((0..RUNS_MAX as u128).map(run).collect()),
            learner_pids: vec![1; RUNS_MAX],
            dispatchable: 1,
            leased: 1,
            rollouts_per_s: 1.0,
            tokens_per_s: 1.0,
            queue_history: vec![1; HISTORY_MAX],
            scaling: ScalingSummary {
                reason: text(),
                ..ScalingSummary::default()
            },
            problems: vec![text(); PROBLEMS_MAX],
            notices: vec![
                Notice {
                    at_ms: 1,
                    text: text()
                };
                NOTICES_MAX
            ],
            dead_letters: 1,
        };
        assert_fits(ReplyBody::Snapshot(Box::new(snapshot)));
    }
}
