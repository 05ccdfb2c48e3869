//! What a caller may rely on who puts payloads: everything once, in bounded time.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::FakeCluster;
use volley_client::{Client, ClientOptions, Putter};
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::limits::PAYLOAD_BYTES_MAX;
use volley_protocol::{ErrorCode, Fault, JobId, Payloads};

const JOB: JobId = JobId(0xab);

fn accepted() -> Option<ReplyBody> {
    Some(ReplyBody::Accepted {
        job: JOB,
        existed: false,
    })
}

fn busy(retry_after_ms: u64) -> Option<ReplyBody> {
    Some(ReplyBody::Busy {
        fault: Fault::new(ErrorCode::QueueFull, "full"),
        retry_after_ms,
    })
}

async fn putter(cluster: &FakeCluster) -> Putter {
    let options = ClientOptions {
        full_queue: Duration::from_millis(500),
        ..ClientOptions::default()
    };
    let client = Client::connect_with(cluster.address(), options).await;
    client.expect("it runs").putter(JOB, 2)
}

/// Every request that was seen: its id, its first instance, its payloads.
fn seen(cluster: &FakeCluster) -> Vec<(u128, u64, Payloads)> {
    let asked = cluster.asked.lock().expect("no panic").clone();
    let put = |body: RequestBody| match body {
        RequestBody::PutPayloads {
            job,
            extent,
            payloads,
        } => {
            assert_eq!(job, JOB);
            let payloads = Payloads::parse(extent.rollouts / 2, payloads).expect("well formed");
            (extent.put, extent.first_instance, payloads)
        }
        other => panic!("{other:?}"),
    };
    asked.into_iter().map(put).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_travel_many_at_a_time_and_all_arrive() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| accepted());
    let mut putter = putter(&cluster).await;
    let texts: Vec<String> = (0..5_000).map(|n| format!("{n:064}")).collect();
    for text in &texts {
        putter.push(text.as_bytes()).await.expect("room");
    }
    assert_eq!(putter.finish().await, Ok(5_000));
    let seen = seen(&cluster);
    assert!(seen.len() <= 6, "{} requests", seen.len());
    let mut next = 0;
    for (_, first, payloads) in seen {
        assert_eq!(first as usize, next);
        for number in 0..payloads.count() {
            assert_eq!(payloads.get(number), texts[next].as_bytes());
            next += 1;
        }
    }
    assert_eq!(next, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_asked_again_after_its_own_time_under_the_same_id() {
    let mut cluster = FakeCluster::new();
    let refusals = AtomicUsize::new(0);
    cluster.start(move |_| match refusals.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => busy(20),
        _ => accepted(),
    });
    let mut putter = putter(&cluster).await;
    putter.push(b"a").await.expect("gathered");
    assert_eq!(putter.finish().await, Ok(1));
    let seen = seen(&cluster);
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|put| *put == seen[0]), "one put, repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_has_an_end() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| busy(10));
    let mut full = putter(&cluster).await;
    full.push(b"a").await.expect("gathered");
    let fault = full.finish().await.expect_err("full for ever");
    assert_eq!(fault.code, ErrorCode::QueueFull);
    let times = seen(&cluster).len();
    assert!(times >= 2, "asked {times} times");

    let mut later = putter(&cluster).await;
    let large = vec![0; PAYLOAD_BYTES_MAX + 1];
    let fault = later.push(&large).await.expect_err("too large for any");
    assert_eq!(fault.code, ErrorCode::InvalidRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_when_the_coordinator_died_is_repeated() {
    let mut cluster = FakeCluster::new();
    cluster.start(|_| None);
    let mut putter = putter(&cluster).await;
    putter.push(b"a").await.expect("gathered");
    putter.flush().await.expect("sent");
    while cluster.asked.lock().expect("no panic").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.stop().await;
    cluster.start(|_| accepted());
    assert_eq!(putter.finish().await, Ok(1));
    let seen = seen(&cluster);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
}
