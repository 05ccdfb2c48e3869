//! What a caller may rely on while coordinators come and go.

mod support;

use std::time::{Duration, Instant};

use support::{FakeCluster, page};
use volley_client::{Client, ClientOptions, Contact, OrderedResults};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::job::{
    EnvSpec, JobKind, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef, Split,
};
use volley_protocol::{ErrorCode, JobId};

const JOB: JobId = JobId(0xab);

fn options(absence_ms: u64) -> ClientOptions {
    ClientOptions {
        name: "test".into(),
        first_contact: Duration::from_millis(300),
        absence: Duration::from_millis(absence_ms),
        near: false,
        full_queue: Duration::from_secs(5),
    }
}

/// A specification that the protocol accepts.
fn spec(job: JobId, rollouts: u64) -> JobSpec {
    JobSpec {
        job,
        name: "test".into(),
        kind: JobKind::Map,
        env: EnvSpec {
            name: "guess".into(),
            split: Split::Eval,
            config: Default::default(),
        },
        first_instance: 0,
        rollouts,
        group_size: 1,
        policy: PolicyRef::Base,
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 0,
        take: None,
        priority: 0,
    }
}

/// Pages of two: 1 0 | 3 2 | 5 4 | end.
fn pages(body: &RequestBody) -> Option<ReplyBody> {
    let RequestBody::Results { cursor, .. } = body else {
        return Some(ReplyBody::Accepted {
            job: JOB,
            existed: false,
        });
    };
    let first = cursor * 2;
    Some(page(&[first + 1, first], cursor + 1, *cursor == 2))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_result_comes_once_although_the_coordinator_dies_between_pages() {
    let mut cluster = FakeCluster::new();
    // The first life answers one page and leaves the second question open.
    cluster.start(|body| match body {
        RequestBody::Results { cursor: 1.., .. } => None,
        other => pages(other),
    });
    let client = Client::connect_with(cluster.address(), options(20_000))
        .await
        .expect("it runs");
    let submitted = client.submit(spec(JOB, 6)).await.expect("accepted");
    assert_eq!((submitted.job, submitted.existed), (JOB, false));
    let mut results = client.results(JOB);
    let mut indices = Vec::new();
    for _ in 0..2 {
        indices.push(
            results
                .next()
                .await
                .expect("a page")
                .expect("a record")
                .index(),
        );
    }
    cluster.stop().await;
    cluster.start(pages);
    while let Some(record) = results.next().await.expect("it came back") {
        indices.push(record.index());
    }
    assert_eq!(indices, [1, 0, 3, 2, 5, 4]);
    match &*client.contact().borrow() {
        Contact::Here { cluster, epoch } => assert_eq!((&**cluster, epoch.0), ("test", 2)),
        other => panic!("connected, not {other:?}"),
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_is_restored_and_the_end_is_told_again() {
    let mut cluster = FakeCluster::new();
    cluster.start(pages);
    let client = Client::connect_with(cluster.address(), options(1_000))
        .await
        .expect("it runs");
    let mut results = OrderedResults::new(client.results(JOB));
    for index in 0..6 {
        let record = results.next().await.expect("a page").expect("a record");
        assert_eq!(record.index(), index);
    }
    assert!(results.next().await.expect("the end").is_none());
    assert!(results.next().await.expect("the end").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_comes_twice_is_an_error() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| Some(page(&[7, 7], 1, true)));
    let client = Client::connect_with(cluster.address(), options(1_000))
        .await
        .expect("it runs");
    let fault = client.results(JOB).next().await.expect_err("twice");
    assert_eq!(fault.code, ErrorCode::Internal);
    assert!(fault.message.contains("rollout 7"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_soon_and_with_what_to_do() {
    let cluster = FakeCluster::new();
    let begun = Instant::now();
    let fault = Client::connect_with(cluster.address(), options(60_000))
        .await
        .expect_err("nobody listens");
    assert_eq!(fault.code, ErrorCode::CoordinatorUnreachable);
    assert!(fault.hint.contains("volley up"), "{fault}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_end_when_the_absence_is_too_long_and_work_again_after_it() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| None);
    let client = Client::connect_with(cluster.address(), options(400))
        .await
        .expect("it runs");
    let jobs = tokio::spawn({
        let client = client.clone();
        async move { client.jobs().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.stop().await;
    let fault = jobs.await.expect("no panic").expect_err("it is gone");
    assert_eq!(fault.code, ErrorCode::CoordinatorUnreachable);
    let begun = Instant::now();
    let fault = client.snapshot().await.expect_err("still gone");
    assert_eq!(fault.code, ErrorCode::CoordinatorUnreachable);
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "known to be gone: told at once"
    );
    cluster.start(|_| Some(ReplyBody::Jobs(Vec::new())));
    let mut contact = client.contact();
    let back = contact.wait_for(Contact::is_here);
    tokio::time::timeout(Duration::from_secs(5), back)
        .await
        .expect("in time")
        .expect("a driver");
    assert!(client.jobs().await.expect("it is back").is_empty());
    assert_eq!(
        client.job(JOB).await.expect_err("no jobs").code,
        ErrorCode::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_for_good() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| None);
    let mut address = FakeCluster::new().address();
    address.addr = cluster.addr;
    let fault = Client::connect_with(address, options(60_000))
        .await
        .expect_err("a stranger");
    assert_eq!(fault.code, ErrorCode::PeerUntrusted, "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_question_is_an_error() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| Some(ReplyBody::Done));
    let client = Client::connect_with(cluster.address(), options(1_000))
        .await
        .expect("it runs");
    assert_eq!(
        client.jobs().await.expect_err("no jobs").code,
        ErrorCode::DecodeError
    );
    client.cancel(JOB).await.expect("done");
    assert_eq!(cluster.asked.lock().expect("no panic").len(), 2);
    let mut spec = spec(JOB, 3);
    spec.group_size = 2;
    let fault = client.submit(spec).await.expect_err("not whole");
    assert_eq!(fault.code, ErrorCode::InvalidRequest);
    assert_eq!(
        cluster.asked.lock().expect("no panic").len(),
        2,
        "nothing was sent"
    );
}
