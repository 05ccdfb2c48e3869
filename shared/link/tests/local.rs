//! Bulk objects between two processes of one machine: same face, another way.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::Cluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use volley_link::{BulkPriority, Connected, LinkConfig, LinkError, Role};

/// Two ends, each with bulk by Unix sockets or without.
async fn pair(cluster: &Cluster, dialler: bool, listener: bool) -> (Connected, Connected) {
    let config = |local_bulk| LinkConfig {
        local_bulk,
        bulk_stall_timeout: Duration::from_secs(5),
        ..LinkConfig::default()
    };
    let mut listener = cluster.listener_with(Role::Coordinator, config(listener));
    let endpoint = cluster.endpoint_with(Role::Worker, config(dialler));
    let dialled = endpoint.dial(listener.local_addr(), Role::Coordinator);
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (dialled.unwrap(), accepted.unwrap())
}

fn object(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

/// Sends an object; tells whether it went by a Unix socket.
async fn send(from: &Connected, bytes: &[u8]) -> bool {
    let mut stream = from.session.open_bulk(BulkPriority::Normal).await.unwrap();
    let local = stream.is_local();
    stream.write_chunk(bytes.to_vec().into()).await.unwrap();
    stream.finish().await.unwrap();
    local
}

async fn receive(at: &Connected) -> Result<Vec<u8>, LinkError> {
    let stream = at.session.accept_bulk().await.unwrap();
    stream.read_to_end(64 << 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_any_size_pass_both_ways_by_unix_sockets() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster, true, true).await;
    for len in [0, 1, 4_700, 256 << 10, (9 << 20) + 1] {
        let bytes = object(len);
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (local, received) = tokio::join!(send(from, &bytes), receive(to));
            assert!(local, "{len} bytes");
            assert!(received.unwrap() == bytes, "{len} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_each_whole() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster, true, true).await;
    let sent = async {
        let sends = (1..=300).map(|len| {
            let session = a.session.clone();
            tokio::spawn(async move {
                let mut stream = session.open_bulk(BulkPriority::Normal).await.unwrap();
                stream.write_all(&object(len * 100)).await.unwrap();
                stream.finish().await.unwrap();
            })
        });
        for send in sends.collect::<Vec<_>>() {
            send.await.unwrap();
        }
    };
    let received = async {
        let mut lengths = Vec::new();
        for _ in 0..300 {
            let bytes = receive(&b).await.unwrap();
            assert!(bytes == object(bytes.len()));
            lengths.push(bytes.len() / 100);
        }
        lengths.sort_unstable();
        assert!(lengths.into_iter().eq(1..=300));
    };
    tokio::join!(sent, received);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_without_a_door_is_reached_by_quic() {
    let cluster = Cluster::new();
    for (dialler, listener) in [(true, false), (false, true), (false, false)] {
        let (a, b) = pair(&cluster, dialler, listener).await;
        for (from, to) in [(&a, &b), (&b, &a)] {
            let bytes = object(10_000);
            let (local, received) = tokio::join!(send(from, &bytes), receive(to));
            assert!(!local && received.unwrap() == bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_come_one_by_one_and_an_object_that_is_given_up_is_no_object() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster, true, true).await;
    let mut stream = a.session.open_bulk(BulkPriority::Normal).await.unwrap();
    stream.write_all(&object(1_000)).await.unwrap();
    let mut arriving = b.session.accept_bulk().await.unwrap();
    let piece = arriving.read_chunk().await.unwrap().unwrap();
    assert!(!piece.is_empty() && object(1_000).starts_with(&piece));
    drop(stream);
    let end = loop {
        match arriving.read_chunk().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Err(LinkError::BulkAborted { .. })), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_above_the_readers_bound_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster, true, true).await;
    let bytes = object(100_000);
    let sending = async {
        let mut stream = a.session.open_bulk(BulkPriority::Normal).await.unwrap();
        // The reader leaves in the middle.
        let _ = stream.write_all(&bytes).await;
    };
    let receiving = async {
        let stream = b.session.accept_bulk().await.unwrap();
        stream.read_to_end(50_000).await
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert!(matches!(
        received,
        Err(LinkError::BulkTooLarge { limit: 50_000 })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_door_get_no_answer_and_disturb_nobody() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener_with(Role::Coordinator, LinkConfig::default());
    let port = listener.local_addr().port();
    let endpoint = cluster.endpoint_with(Role::Worker, LinkConfig::default());
    let dialled = endpoint.dial(listener.local_addr(), Role::Coordinator);
    let (a, b) = tokio::join!(dialled, listener.accept());
    let (a, b) = (a.unwrap(), b.unwrap());
    let name = format!("\0volley/bulk/{port}");
    let mut silent = Vec::new();
    for noise in 0..40_u8 {
        let mut stranger = UnixStream::connect(&name).await.unwrap();
        if noise % 2 == 0 {
            stranger.write_all(&[noise; 33]).await.unwrap();
            let mut answer = Vec::new();
            stranger.read_to_end(&mut answer).await.unwrap();
            assert!(answer.is_empty());
        } else {
            silent.push(stranger);
        }
    }
    let (local, received) = tokio::join!(send(&a, b"sound"), receive(&b));
    assert!(local && received.unwrap() == b"sound");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_ends_its_passage() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster, true, true).await;
    assert!(tokio::join!(send(&a, b"x"), receive(&b)).0);
    b.session.close(1, "enough");
    a.session.closed().await;
    assert!(a.session.open_bulk(BulkPriority::Normal).await.is_err());
    assert!(a.session.accept_bulk().await.is_err());
    let (c, d) = pair(&cluster, false, false).await;
    assert!(!tokio::join!(send(&c, b"y"), receive(&d)).0);
}
