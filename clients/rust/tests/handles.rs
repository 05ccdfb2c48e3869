//! Jobs as values: outcomes in both orders, handles that outlive their client, waiting in vain.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::{FakeCluster, page};
use volley_client::{Client, Order};
use volley_protocol::client::{ReplyBody, RequestBody, ResultPage, ResultRecord};
use volley_protocol::codec::Blob;
use volley_protocol::job::{JobState, Take};
use volley_protocol::snapshot::JobSummary;
use volley_protocol::trajectory::TrajectoryHeader;
use volley_protocol::{
    AttemptId, EnvSpec, Epoch, ErrorCode, Fault, JobId, JobKind, JobSpec, PeerId, PolicyRef,
    RetryPolicy, RolloutId, SamplingSpec, SinkRef, Split, Trajectory,
};

const JOB: JobId = JobId(7);

fn spec(take: Option<Take>) -> JobSpec {
    JobSpec {
        job: JOB,
        name: "test".into(),
        kind: JobKind::Map,
        env: EnvSpec {
            name: "guess".into(),
            split: Split::Eval,
            config: BTreeMap::new(),
        },
        first_instance: 0,
        rollouts: 5,
        group_size: 1,
        policy: PolicyRef::Base,
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 0,
        take,
        priority: 0,
    }
}

fn summary(state: JobState, take: u64) -> JobSummary {
    JobSummary {
        job: JOB,
        name: "test".into(),
        environment: "guess".into(),
        kind: JobKind::Map,
        state,
        rollouts: 5,
        dispatchable: 0,
        queued: 0,
        leased: 0,
        accepted: 3,
        failed: 2,
        retries: 0,
        last_failure: None,
        cancelled: 0,
        take,
        priority: 0,
    }
}

fn finished(index: u64) -> ResultRecord {
    let rollout = RolloutId { job: JOB, index };
    let header = TrajectoryHeader {
        attempt: AttemptId {
            rollout,
            epoch: Epoch(1),
            number: 1,
        },
        worker: PeerId(3),
        instance: index,
        version: None,
        numerics: "n".into(),
        reward: index as f64,
        metrics: BTreeMap::new(),
        turns: 1,
        truncated: false,
        transcript: Vec::new(),
        episode_ms: 1,
    };
    ResultRecord::Finished(Box::new(Trajectory {
        header,
        tokens: vec![1],
        logprobs: vec![0.0],
        sampled: vec![0],
    }))
}

/// Five results, 1 and 3 failed, in the order 4 3 0 1 2.
fn results() -> ReplyBody {
    let failed = |index| {
        let fault = Fault::new(ErrorCode::EnvPanic, format!("rollout {index}"));
        ResultRecord::Failed { index, fault }
    };
    let mut records = Vec::new();
    for record in [finished(4), failed(3), finished(0), failed(1), finished(2)] {
        ResultPage::push_record(&mut records, &record.encode());
    }
    ReplyBody::Results(ResultPage {
        records: Blob(records),
        next_cursor: 1,
        complete: true,
    })
}

fn brain(state: JobState, take: u64) -> impl Fn(&RequestBody) -> Option<ReplyBody> {
    move |body| match body {
        RequestBody::Submit(spec) => Some(ReplyBody::Accepted {
            job: spec.job,
            existed: false,
        }),
        RequestBody::JobRetry { retry, .. } => Some(ReplyBody::Accepted {
            job: *retry,
            existed: false,
        }),
        RequestBody::JobShow(JOB) => Some(ReplyBody::Jobs(vec![summary(state, take)])),
        RequestBody::JobShow(_) => {
            let fault = Fault::new(ErrorCode::NotFound, "no such job");
            Some(ReplyBody::Fault(fault))
        }
        RequestBody::Results { cursor: 0, .. } | RequestBody::ResultsNear { cursor: 0, .. } => {
            Some(results())
        }
        RequestBody::Results { .. } | RequestBody::ResultsNear { .. } => Some(page(&[], 1, true)),
        _ => Some(ReplyBody::Done),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_rollout_is_an_item_in_either_order() {
    let mut cluster = FakeCluster::new();
    cluster.start(brain(JobState::Done, 0));
    let client = Client::connect(cluster.address())
        .await
        .expect("it is there");
    for (order, due) in [
        (Order::AsCompleted, [4, 3, 0, 1, 2]),
        (Order::ByIndex, [0, 1, 2, 3, 4]),
    ] {
        let mut outcomes = client.map(spec(None), order).await.expect("accepted");
        let mut seen = Vec::new();
        while let Some((index, result)) = outcomes.next().await.expect("no error of the whole") {
            match result {
                Ok(trajectory) => assert_eq!(trajectory.header.reward, index as f64),
                Err(fault) => {
                    assert!([1, 3].contains(&index));
                    assert_eq!(fault.code, ErrorCode::EnvPanic);
                }
            }
            seen.push(index);
        }
        assert_eq!(seen, due);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_a_few_gets_as_many_whatever_the_order() {
    let mut cluster = FakeCluster::new();
    cluster.start(brain(JobState::Done, 2));
    let client = Client::connect(cluster.address())
        .await
        .expect("it is there");
    let take = Some(Take {
        results: 2,
        bias_ok: false,
    });
    let handle = client.spawn(spec(take)).await.expect("accepted");
    for (order, due) in [
        (Order::AsCompleted, vec![4, 3, 0]),
        (Order::ByIndex, vec![0, 3, 4]),
    ] {
        let mut outcomes = handle.outcomes(order);
        let mut seen = Vec::new();
        while let Some((index, _)) = outcomes.next().await.expect("no error") {
            seen.push(index);
        }
        assert_eq!(seen, due, "the third result came in the same moment");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_client_gets_the_same_job_by_its_id() {
    let mut cluster = FakeCluster::new();
    cluster.start(brain(JobState::Done, 0));
    let first = Client::connect(cluster.address())
        .await
        .expect("it is there");
    let job = first.spawn(spec(None)).await.expect("accepted").job();
    first.close().await;
    cluster.stop().await;
    cluster.start(brain(JobState::Done, 0));
    let second = Client::connect(cluster.address())
        .await
        .expect("it is there");
    let handle = second.attach(job).await.expect("it is known");
    assert_eq!(
        handle.wait(None).await.expect("ended").state,
        JobState::Done
    );
    let outcomes = handle
        .get(Some(Duration::from_secs(20)))
        .await
        .expect("all");
    let indices: Vec<u64> = outcomes.iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
    assert_eq!(
        outcomes
            .iter()
            .filter(|(_, result)| result.is_err())
            .count(),
        2
    );
    let retry = handle.retry(vec![1, 3]).await.expect("accepted");
    assert_ne!(retry.job(), job);
    let unknown = second.attach(JobId(8)).await.expect_err("nobody knows it");
    assert_eq!(unknown.code, ErrorCode::NotFound);
    handle.cancel().await.expect("done");
    let asked = cluster.asked.lock().expect("no panic");
    assert!(asked.contains(&RequestBody::JobCancel(JOB)));
    assert!(asked.iter().any(|body| matches!(
        body,
        RequestBody::JobRetry { job: JOB, indices, .. } if *indices == [1, 3]
    )));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_in_vain_ends_and_the_job_goes_on() {
    let mut cluster = FakeCluster::new();
    cluster.start(|body| match body {
        // A long poll that nobody answers.
        RequestBody::Results { .. } | RequestBody::ResultsNear { .. } => None,
        other => brain(JobState::Open, 0)(other),
    });
    let client = Client::connect(cluster.address())
        .await
        .expect("it is there");
    let handle = client.attach(JOB).await.expect("it is known");
    let patience = Some(Duration::from_millis(80));
    let waited = handle.wait(patience).await.expect_err("it is open");
    assert_eq!(waited.code, ErrorCode::WaitTimeout);
    let got = handle.get(patience).await.expect_err("nothing comes");
    assert_eq!(got.code, ErrorCode::WaitTimeout);
    let asked = cluster.asked.lock().expect("no panic");
    assert!(!asked.contains(&RequestBody::JobCancel(JOB)));
}
