//! Sessions as their users see them: control frames, bulk objects, back-pressure, the end.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::Cluster;
use volley_link::{
    BulkPriority, CloseReason, Connected, LinkConfig, Peer, Role, close_code,
    limits::{CONTROL_FRAME_BYTES_MAX, CONTROL_QUEUE_BYTES_MAX},
    memory_pair,
};

#[tokio::test]
async fn a_session_knows_its_peer_and_carries_frames_both_ways() {
    let cluster = Cluster::new();
    let (mut worker, mut coordinator) = cluster.pair().await;
    assert_eq!(worker.session.peer_role(), Role::Coordinator);
    assert_eq!(coordinator.session.peer_role(), Role::Worker);
    assert_eq!(coordinator.session.peer_name(), "one");
    assert!(coordinator.session.remote_addr().is_ipv4());

    worker.sender.send(7, b"hello").await.unwrap();
    let frame = coordinator.receiver.recv().await.unwrap().unwrap();
    assert_eq!((frame.kind, &frame.payload[..]), (7, &b"hello"[..]));
    coordinator.sender.send(8, b"").await.unwrap();
    let frame = worker.receiver.recv().await.unwrap().unwrap();
    assert_eq!((frame.kind, frame.payload.len()), (8, 0));
}

#[tokio::test]
async fn the_acceptor_may_speak_first() {
    let cluster = Cluster::new();
    let (mut worker, coordinator) = cluster.pair().await;
    coordinator.sender.send(1, b"welcome").await.unwrap();
    assert_eq!(worker.receiver.recv().await.unwrap().unwrap().kind, 1);
}

/// 20,000 frames of growing size in both directions at once, in order and complete.
async fn flood(a: Connected, b: Connected) {
    const FRAMES: u32 = 20_000;
    let payload = |i: u32| vec![i as u8; (i % 200) as usize];
    let senders = [a.sender.clone(), b.sender.clone()].map(|sender| {
        tokio::spawn(async move {
            for i in 0..FRAMES {
                sender.send((i % 251) as u8, &payload(i)).await.unwrap();
            }
            sender.finish().await.unwrap();
        })
    });
    let receivers = [a.receiver, b.receiver].map(|mut receiver| {
        tokio::spawn(async move {
            for i in 0..FRAMES {
                let frame = receiver.recv().await.unwrap().unwrap();
                assert_eq!(u32::from(frame.kind), i % 251);
                assert_eq!(frame.payload, payload(i));
            }
            assert!(receiver.recv().await.unwrap().is_none(), "finished cleanly");
        })
    });
    for task in senders.into_iter().chain(receivers) {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn twenty_thousand_frames_cross_both_ways() {
    let cluster = Cluster::new();
    let (worker, coordinator) = cluster.pair().await;
    flood(worker, coordinator).await;
}

#[tokio::test]
async fn twenty_thousand_frames_cross_in_memory() {
    let (worker, coordinator) = in_memory();
    flood(worker, coordinator).await;
}

fn in_memory() -> (Connected, Connected) {
    memory_pair(
        Peer::new(Role::Worker, "one", "test").unwrap(),
        Peer::new(Role::Coordinator, "one", "test").unwrap(),
    )
}

#[tokio::test]
async fn frames_queued_together_arrive_together() {
    let cluster = Cluster::new();
    let (worker, mut coordinator) = cluster.pair().await;
    for i in 0..100u8 {
        worker.sender.try_send(i, b"together").unwrap();
    }
    worker.sender.flush().await.unwrap();
    let mut wakeups = 0;
    let mut frames = 0;
    while frames < 100 {
        assert_eq!(
            coordinator.receiver.recv().await.unwrap().unwrap().kind,
            frames
        );
        (wakeups, frames) = (wakeups + 1, frames + 1);
        while let Some(frame) = coordinator.receiver.next_ready() {
            assert_eq!(frame.kind, frames);
            frames += 1;
        }
    }
    assert!(
        wakeups < 50,
        "100 frames took {wakeups} wake-ups: writes are not coalesced"
    );
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_its_senders_at_the_bound() {
    let cluster = Cluster::new();
    let (worker, mut coordinator) = cluster.pair().await;
    let payload = vec![3u8; 64 << 10];
    let mut sent = 0u64;
    // Fill every buffer on the way; the last refusals come when nothing moves any more.
    let mut refusals = 0;
    while refusals < 20 {
        match worker.sender.try_send(1, &payload) {
            Ok(()) => (sent, refusals) = (sent + 1, 0),
            Err(error) => {
                assert_eq!(error.code(), "SEND_QUEUE_FULL");
                refusals += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let bound = CONTROL_QUEUE_BYTES_MAX as u64 + (32 << 20);
        assert!(
            sent * (payload.len() as u64) < bound,
            "{sent} frames were taken"
        );
    }
    let more = tokio::spawn({
        let sender = worker.sender.clone();
        async move { sender.send(2, b"last").await }
    });
    for _ in 0..sent {
        assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 1);
    }
    assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 2);
    more.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frame_above_the_cap_is_refused_before_it_is_queued() {
    let cluster = Cluster::new();
    let (worker, mut coordinator) = cluster.pair().await;
    let error = worker
        .sender
        .send(1, &vec![0; CONTROL_FRAME_BYTES_MAX + 1])
        .await
        .unwrap_err();
    assert_eq!(error.code(), "FRAME_TOO_LARGE");
    // The session is none the worse, and the cap itself passes.
    worker
        .sender
        .send(2, &vec![5; CONTROL_FRAME_BYTES_MAX])
        .await
        .unwrap();
    let frame = coordinator.receiver.recv().await.unwrap().unwrap();
    assert_eq!(
        (frame.kind, frame.payload.len()),
        (2, CONTROL_FRAME_BYTES_MAX)
    );
}

#[tokio::test]
async fn dropping_a_sender_delivers_what_it_queued() {
    let cluster = Cluster::new();
    let (worker, mut coordinator) = cluster.pair().await;
    worker.sender.send(1, b"last words").await.unwrap();
    drop(worker);
    assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 1);
    assert!(coordinator.receiver.recv().await.unwrap().is_none());
    let reason = coordinator.session.closed().await;
    assert_eq!(
        reason,
        CloseReason::Peer {
            code: close_code::NORMAL,
            reason: String::new()
        }
    );
}

async fn one_large_object(worker: &Connected, coordinator: &mut Connected) {
    const OBJECT: usize = 64 << 20;
    let object: Vec<u8> = (0..OBJECT).map(|i| (i / 4096) as u8).collect();
    let expected = object.clone();
    let session = worker.session.clone();
    let push = tokio::spawn(async move {
        let mut bulk = session.open_bulk(BulkPriority::Background).await.unwrap();
        bulk.write_all(&object).await.unwrap();
        bulk.finish().await.unwrap();
    });
    let session = coordinator.session.clone();
    let pull = tokio::spawn(async move {
        session
            .accept_bulk()
            .await
            .unwrap()
            .read_to_end(OBJECT)
            .await
            .unwrap()
    });
    // Control frames pass meanwhile, each exactly once and in order.
    for i in 0..200u8 {
        worker.sender.send(i, b"ping").await.unwrap();
        assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, i);
    }
    push.await.unwrap();
    assert!(
        pull.await.unwrap() == expected,
        "the object arrived unchanged"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_passes_while_control_frames_do() {
    let cluster = Cluster::new();
    let (worker, mut coordinator) = cluster.pair().await;
    one_large_object(&worker, &mut coordinator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_passes_in_memory() {
    let (worker, mut coordinator) = in_memory();
    one_large_object(&worker, &mut coordinator).await;
}

/// More objects than streams are allowed: opening waits, nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_objects_over_four_streams() {
    let cluster = Cluster::new();
    let config = LinkConfig {
        bulk_streams_max: 4,
        ..LinkConfig::default()
    };
    let mut listener = cluster.listener_with(Role::Coordinator, config);
    let (worker, coordinator) = cluster.pair_with(&mut listener).await;
    let push = tokio::spawn(async move {
        for i in 0..1000u32 {
            let mut bulk = worker
                .session
                .open_bulk(BulkPriority::Normal)
                .await
                .unwrap();
            bulk.write_all(&i.to_le_bytes()).await.unwrap();
            bulk.finish().await.unwrap();
        }
        worker
    });
    let mut sum = 0u64;
    for _ in 0..1000 {
        let bulk = coordinator.session.accept_bulk().await.unwrap();
        let object = bulk.read_to_end(4).await.unwrap();
        sum += u64::from(u32::from_le_bytes(object.try_into().unwrap()));
    }
    assert_eq!(sum, 999 * 1000 / 2);
    push.await.unwrap();
}

async fn bad_objects(worker: &Connected, coordinator: &Connected) {
    let mut bulk = worker
        .session
        .open_bulk(BulkPriority::Normal)
        .await
        .unwrap();
    bulk.write_all(&[1; 1001]).await.unwrap();
    bulk.finish().await.unwrap();
    let bulk = coordinator.session.accept_bulk().await.unwrap();
    assert_eq!(
        bulk.read_to_end(1000).await.unwrap_err().code(),
        "BULK_TOO_LARGE"
    );

    let mut bulk = worker
        .session
        .open_bulk(BulkPriority::Normal)
        .await
        .unwrap();
    bulk.write_all(&[1; 1000]).await.unwrap();
    let reader = coordinator.session.accept_bulk().await.unwrap();
    drop(bulk);
    assert_eq!(
        reader.read_to_end(1000).await.unwrap_err().code(),
        "BULK_ABORTED"
    );

    let mut bulk = worker
        .session
        .open_bulk(BulkPriority::Normal)
        .await
        .unwrap();
    bulk.write_all(&[1; 10]).await.unwrap();
    drop(coordinator.session.accept_bulk().await.unwrap());
    let refused = loop {
        if let Err(error) = bulk.write_all(&[1; 1000]).await {
            break error;
        }
    };
    assert_eq!(refused.code(), "BULK_ABORTED");
}

#[tokio::test]
async fn objects_too_large_or_given_up_are_errors_on_either_side() {
    let cluster = Cluster::new();
    let (worker, coordinator) = cluster.pair().await;
    bad_objects(&worker, &coordinator).await;
    let (worker, coordinator) = in_memory();
    bad_objects(&worker, &coordinator).await;
}

#[tokio::test]
async fn a_stalled_object_is_given_up() {
    let cluster = Cluster::new();
    let config = LinkConfig {
        bulk_stall_timeout: Duration::from_millis(200),
        ..LinkConfig::default()
    };
    let mut listener = cluster.listener_with(Role::Coordinator, config);
    let (worker, coordinator) = cluster.pair_with(&mut listener).await;
    let mut bulk = worker
        .session
        .open_bulk(BulkPriority::Normal)
        .await
        .unwrap();
    bulk.write_all(b"and then nothing").await.unwrap();
    let reader = coordinator.session.accept_bulk().await.unwrap();
    assert_eq!(
        reader.read_to_end(1000).await.unwrap_err().code(),
        "BULK_STALLED"
    );
}

async fn the_end(worker: Connected, mut coordinator: Connected) {
    worker
        .session
        .close(close_code::APPLICATION_MIN, "drained\u{7}");
    let expected = CloseReason::Peer {
        code: 16,
        reason: "drained\u{fffd}".into(),
    };
    assert_eq!(coordinator.session.closed().await, expected);
    assert_eq!(worker.session.closed().await, CloseReason::Local);
    assert!(!expected.is_lost());
    let error = coordinator.receiver.recv().await.unwrap_err();
    assert_eq!(error.code(), "SESSION_CLOSED");
    let refused = loop {
        match coordinator.sender.send(1, b"too late").await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), "SESSION_CLOSED");
    assert!(coordinator.session.accept_bulk().await.is_err());
    assert!(
        coordinator
            .session
            .open_bulk(BulkPriority::Normal)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn closing_tells_both_sides_who_and_why() {
    let cluster = Cluster::new();
    let (worker, coordinator) = cluster.pair().await;
    the_end(worker, coordinator).await;
    let (worker, coordinator) = in_memory();
    the_end(worker, coordinator).await;
}

/// Engines saturate their threads for seconds; the network thread keeps the session alive.
#[tokio::test]
async fn a_saturated_runtime_does_not_lose_its_session() {
    let cluster = Cluster::new();
    let (mut worker, mut coordinator) = cluster.pair().await;
    worker.sender.send(1, b"hello").await.unwrap();
    assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 1);
    // Longer than the idle timeout, and this runtime has no other thread.
    std::thread::sleep(Duration::from_millis(5500));
    coordinator.sender.send(9, b"still there?").await.unwrap();
    assert_eq!(worker.receiver.recv().await.unwrap().unwrap().kind, 9);
}
