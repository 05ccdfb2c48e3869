//! Samples of plain data: what messages consist of.

use volley_protocol::codec::Blob;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, GroupIndex};
use volley_protocol::job::{JobKind, JobState, PolicyRef, SinkRef, Split, Take};
use volley_protocol::run::{RunState, RunSummary};
use volley_protocol::snapshot::{JobSummary, WorkerState};

use super::Sample;
use super::data::*;

/// All samples of plain data.
pub(crate) fn all() -> Vec<Sample> {
    [ids(), jobs(), runs(), cluster()]
        .into_iter()
        .flatten()
        .collect()
}

fn ids() -> Vec<Sample> {
    vec![
        Sample::of("JobId", JOB),
        Sample::of("RunId", RUN),
        Sample::of("PeerId", PEER),
        Sample::of("Epoch", Epoch(3)),
        Sample::of("GroupIndex", GroupIndex(6)),
        Sample::of("RolloutId", rollout()),
        Sample::of("AttemptId", attempt()),
        Sample::of("Digest", digest(0)),
        Sample::of("AdapterVersion", version()),
        Sample::of("AdapterEntry", entry()),
        Sample::of("Fault", fault()),
        Sample::of("Fault.without_hint", Fault::new(ErrorCode::Internal, "x")),
        Sample::of("Blob", Blob(vec![1, 2, 3])),
        Sample::of("SocketAddr.V4", addr_v4()),
        Sample::of("SocketAddr.V6", addr_v6()),
    ]
}

fn jobs() -> Vec<Sample> {
    vec![
        Sample::of("JobSpec", job()),
        Sample::of("EnvSpec", job().env),
        Sample::of("SamplingSpec", job().sampling),
        Sample::of("RetryPolicy", job().retry),
        Sample::of(
            "Take",
            Take {
                results: 6,
                bias_ok: true,
            },
        ),
        Sample::of("DeadLetter", dead_letter()),
        Sample::of("Extent", extent()),
        Sample::of("JobKind.Map", JobKind::Map),
        Sample::of("JobKind.Queue", JobKind::Queue),
        Sample::of("JobKind.Train", JobKind::Train),
        Sample::of("JobKind.Retry", JobKind::Retry),
        Sample::of("JobState.Open", JobState::Open),
        Sample::of("JobState.Done", JobState::Done),
        Sample::of("JobState.Cancelled", JobState::Cancelled),
        Sample::of("Split.Train", Split::Train),
        Sample::of("Split.Eval", Split::Eval),
        Sample::of("PolicyRef.Base", PolicyRef::Base),
        Sample::of("PolicyRef.Version", PolicyRef::Version(version())),
        Sample::of("PolicyRef.Latest", PolicyRef::Latest(RUN)),
        Sample::of("SinkRef.Relay", SinkRef::Relay),
        Sample::of("SinkRef.Learner", SinkRef::Learner(RUN)),
    ]
}

fn runs() -> Vec<Sample> {
    let trained = RunSummary {
        last: Some(step_report()),
        ..run_summary()
    };
    vec![
        Sample::of("RunInfo", run_info()),
        Sample::of("RunState.Training", RunState::Training),
        Sample::of("RunState.Finished", RunState::Finished),
        Sample::of("RunState.Stopped", RunState::Stopped),
        Sample::of("RunState.Failed", RunState::Failed(fault())),
        Sample::of("StepReport", step_report()),
        Sample::of("RunSummary", run_summary()),
        Sample::of("RunSummary.trained", trained),
    ]
}

fn cluster() -> Vec<Sample> {
    let untroubled = JobSummary {
        last_failure: None,
        ..job_summary()
    };
    vec![
        Sample::of("JobSummary", job_summary()),
        Sample::of("JobSummary.untroubled", untroubled),
        Sample::of("WorkerState.Starting", WorkerState::Starting),
        Sample::of("WorkerState.Up", WorkerState::Up),
        Sample::of("WorkerState.Draining", WorkerState::Draining),
        Sample::of("WorkerState.Lost", WorkerState::Lost),
        Sample::of("WorkerSummary", worker_summary()),
        Sample::of("ScalingSummary", scaling()),
        Sample::of("Notice", notice()),
        Sample::of("ClusterSnapshot", snapshot()),
    ]
}
