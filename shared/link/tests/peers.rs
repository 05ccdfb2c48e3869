//! Who gets in, who does not, and that the listener goes on serving whatever happens.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use support::{Cluster, loopback};
use volley_link::{
    CloseReason, ClusterCa, Endpoint, Identity, LinkConfig, LinkRuntime, ResetKey, Role,
};

/// A well-behaved worker is served.
async fn assert_serving(cluster: &Cluster, listener: &mut volley_link::Listener) {
    let (worker, mut coordinator) = cluster.pair_with(listener).await;
    worker.sender.send(1, b"hello").await.unwrap();
    assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 1);
}

#[tokio::test]
async fn every_role_is_told_from_its_certificate() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Learner);
    for role in Role::ALL {
        let endpoint = cluster.endpoint(role);
        let dialled = endpoint.dial(listener.local_addr(), Role::Learner);
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        assert_eq!(accepted.unwrap().session.peer_role(), role);
        assert_eq!(dialled.unwrap().session.peer_role(), Role::Learner);
    }
}

#[tokio::test]
async fn a_worker_cannot_pose_as_a_coordinator() {
    let cluster = Cluster::new();
    for poser in [Role::Worker, Role::Learner, Role::Client, Role::Monitor] {
        let listener = cluster.listener(poser);
        let endpoint = cluster.endpoint(Role::Worker);
        let error = endpoint
            .dial(listener.local_addr(), Role::Coordinator)
            .await
            .unwrap_err();
        assert_eq!(error.code(), "PEER_WRONG_ROLE", "{error}");
        assert!(
            error.to_string().contains(poser.as_str()),
            "it says what was found: {error}"
        );
    }
}

#[tokio::test]
async fn a_peer_of_another_authority_is_refused_and_others_are_served() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    // Same cluster id, another key: the name alone proves nothing.
    let foreign = ClusterCa::create("test")
        .unwrap()
        .issue(Role::Worker, "one")
        .unwrap();
    let endpoint = Endpoint::client(&cluster.runtime, &foreign, LinkConfig::default()).unwrap();
    let error = endpoint
        .dial(listener.local_addr(), Role::Coordinator)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PEER_UNTRUSTED", "{error}");
    assert_serving(&cluster, &mut listener).await;
    assert_eq!(listener.refused_total(), 1);
}

/// Trusts the right authority and is refused nevertheless, because of its own certificate.
#[tokio::test]
async fn an_expired_or_future_certificate_is_refused_and_others_are_served() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    for (issued, validity) in [(now - 3 * day, day), (now + 3 * day, day)] {
        let identity = cluster
            .ca
            .issue_at(Role::Worker, "late", issued, validity)
            .unwrap();
        let endpoint =
            Endpoint::client(&cluster.runtime, &identity, LinkConfig::default()).unwrap();
        let error = endpoint
            .dial(listener.local_addr(), Role::Coordinator)
            .await
            .unwrap_err();
        assert_eq!(error.code(), "IDENTITY_REFUSED", "{error}");
    }
    assert_serving(&cluster, &mut listener).await;
    assert_eq!(listener.refused_total(), 2);
}

#[tokio::test]
async fn an_expired_coordinator_is_not_trusted() {
    let cluster = Cluster::new();
    let day = Duration::from_secs(24 * 3600);
    let past = SystemTime::now() - 3 * day;
    let identity = cluster
        .ca
        .issue_at(Role::Coordinator, "old", past, day)
        .unwrap();
    let listener = Endpoint::listen(
        &cluster.runtime,
        loopback(0),
        &identity,
        LinkConfig::default(),
    )
    .unwrap();
    let endpoint = cluster.endpoint(Role::Worker);
    let error = endpoint
        .dial(listener.local_addr(), Role::Coordinator)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PEER_UNTRUSTED", "{error}");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_or_foreign_is_a_typed_error() {
    let cluster = Cluster::new();
    let listener = cluster.listener(Role::Coordinator);
    let identity = cluster.identity(Role::Coordinator);
    let listen = |addr| {
        Endpoint::listen(&cluster.runtime, addr, &identity, LinkConfig::default())
            .unwrap_err()
            .code()
    };
    assert_eq!(listen(listener.local_addr()), "ADDRESS_IN_USE");
    assert_eq!(listen(([192, 0, 2, 1], 0).into()), "ADDRESS_NOT_LOCAL");
}

#[tokio::test]
async fn dialling_where_nobody_listens_fails_at_once() {
    let cluster = Cluster::new();
    let free = std::net::UdpSocket::bind(loopback(0))
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = cluster.endpoint(Role::Worker);
    let began = std::time::Instant::now();
    let error = endpoint.dial(free, Role::Coordinator).await.unwrap_err();
    assert_eq!(error.code(), "PEER_UNREACHABLE", "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "well before the deadline"
    );
}

#[tokio::test]
async fn dialling_a_silent_port_ends_at_the_deadline() {
    let cluster = Cluster::new();
    let silent = std::net::UdpSocket::bind(loopback(0)).unwrap();
    let config = LinkConfig {
        handshake_timeout: Duration::from_millis(300),
        ..LinkConfig::default()
    };
    let identity = cluster.identity(Role::Worker);
    let endpoint = Endpoint::client(&cluster.runtime, &identity, config).unwrap();
    let error = endpoint
        .dial(silent.local_addr().unwrap(), Role::Coordinator)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PEER_UNREACHABLE", "{error}");
}

/// Re-runs one test of this binary in another process, which is handed an identity through the
/// pipe at its standard input and becomes the peer.
fn spawn_peer(test: &str, identity: &Identity, addr: std::net::SocketAddr) -> std::process::Child {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("VOLLEY_TEST_ADDR", addr.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    identity.write_to(child.stdin.take().unwrap()).unwrap();
    child
}

/// Set in the child of a test, nowhere else.
#[expect(
    clippy::disallowed_methods,
    reason = "the child of a test learns the address"
)]
fn peer_addr() -> Option<std::net::SocketAddr> {
    std::env::var("VOLLEY_TEST_ADDR")
        .ok()
        .map(|addr| addr.parse().unwrap())
}

#[tokio::test]
async fn peer_that_will_be_killed() {
    let Some(addr) = peer_addr() else { return };
    let identity = Identity::read_from(std::io::stdin()).unwrap();
    let runtime = LinkRuntime::start().unwrap();
    let endpoint = Endpoint::client(&runtime, &identity, LinkConfig::default()).unwrap();
    let connected = endpoint.dial(addr, Role::Coordinator).await.unwrap();
    connected.sender.send(1, b"hello").await.unwrap();
    connected.session.closed().await;
}

#[tokio::test]
async fn a_killed_peer_is_noticed_within_the_idle_timeout() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let identity = cluster.identity(Role::Worker);
    let mut child = spawn_peer("peer_that_will_be_killed", &identity, listener.local_addr());
    let mut peer = listener.accept().await.unwrap();
    assert_eq!(peer.receiver.recv().await.unwrap().unwrap().kind, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let limit = LinkConfig::default().idle_timeout + Duration::from_secs(3);
    let reason = tokio::time::timeout(limit, peer.session.closed())
        .await
        .unwrap();
    assert_eq!(reason, CloseReason::IdleTimeout);
    assert!(reason.is_lost());
    assert_eq!(peer.receiver.recv().await.unwrap_err().code(), "PEER_LOST");
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn listener_that_will_be_killed() {
    let Some(addr) = peer_addr() else { return };
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    let (key, identity) = input.split_at(32);
    let identity = Identity::from_bytes(identity).unwrap();
    let reset_key = Some(ResetKey::from_bytes(key).unwrap());
    let runtime = LinkRuntime::start().unwrap();
    let config = LinkConfig {
        reset_key,
        ..LinkConfig::default()
    };
    let mut listener = Endpoint::listen(&runtime, addr, &identity, config).unwrap();
    let connected = listener.accept().await.unwrap();
    connected.session.closed().await;
}

#[tokio::test]
async fn a_restarted_listener_disowns_old_sessions_at_once() {
    let cluster = Cluster::new();
    let identity = cluster.identity(Role::Coordinator);
    let key = ResetKey::generate();
    // A port that was free a moment ago; both processes of the listener use it in turn.
    let addr = std::net::UdpSocket::bind(loopback(0))
        .unwrap()
        .local_addr()
        .unwrap();
    let mut first = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["listener_that_will_be_killed", "--exact"])
        .env("VOLLEY_TEST_ADDR", addr.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(key.as_bytes()).unwrap();
    identity.write_to(&mut stdin).unwrap();
    drop(stdin);

    let endpoint = cluster.endpoint(Role::Worker);
    let worker = loop {
        match endpoint.dial(addr, Role::Coordinator).await {
            Ok(connected) => break connected,
            Err(error) => assert_eq!(error.code(), "PEER_UNREACHABLE", "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    first.kill().unwrap();
    first.wait().unwrap();
    let config = LinkConfig {
        reset_key: Some(key),
        ..LinkConfig::default()
    };
    let mut second = Endpoint::listen(&cluster.runtime, addr, &identity, config).unwrap();
    let reason = worker.session.closed().await;
    assert_eq!(
        reason,
        CloseReason::Reset,
        "told by the new process, not by the clock"
    );
    assert_serving(&cluster, &mut second).await;
}

#[test]
fn files_are_private_and_exposed_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create("c1").unwrap();
    ca.save(dir.path()).unwrap();
    for file in ["ca.key", "ca.der", "cluster-id"] {
        let mode = std::fs::metadata(dir.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let again = ClusterCa::load(dir.path()).unwrap();
    assert_eq!(again.cluster_id(), "c1");
    let identity = again.issue(Role::Learner, "l0").unwrap();
    let path = dir.path().join("learner.id");
    identity.save(&path).unwrap();
    let loaded = Identity::load(&path).unwrap();
    assert_eq!(
        (loaded.role(), loaded.name(), loaded.cluster_id()),
        (Role::Learner, "l0", "c1")
    );

    for (file, code) in [
        ("ca.key", "KEY_FILE_EXPOSED"),
        ("learner.id", "KEY_FILE_EXPOSED"),
    ] {
        let path = dir.path().join(file);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = match file {
            "ca.key" => ClusterCa::load(dir.path()).unwrap_err(),
            _ => Identity::load(&path).unwrap_err(),
        };
        assert_eq!(error.code(), code);
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    assert_eq!(
        Identity::load(&dir.path().join("none")).unwrap_err().code(),
        "IDENTITY_FILE"
    );
}

#[test]
fn a_key_of_another_authority_is_refused_on_load() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    ClusterCa::create("c1").unwrap().save(one.path()).unwrap();
    ClusterCa::create("c1").unwrap().save(two.path()).unwrap();
    std::fs::copy(two.path().join("ca.key"), one.path().join("ca.key")).unwrap();
    assert_eq!(
        ClusterCa::load(one.path()).unwrap_err().code(),
        "IDENTITY_INVALID"
    );
}

#[test]
fn identities_survive_the_pipe_and_nothing_else_does() {
    let identity = Cluster::new().identity(Role::Worker);
    let (reader, writer) = std::io::pipe().unwrap();
    identity.write_to(writer).unwrap();
    assert_eq!(Identity::read_from(reader).unwrap().peer(), identity.peer());

    let bytes = identity.to_bytes();
    assert!(
        Identity::read_from(std::io::repeat(b'V')).is_err(),
        "endless input is bounded"
    );
    for cut in 0..bytes.len() {
        assert_eq!(
            Identity::from_bytes(&bytes[..cut]).unwrap_err().code(),
            "IDENTITY_INVALID"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Identity::from_bytes(&longer).is_err());
    let mut newer = bytes;
    newer[4] = 2;
    assert!(
        Identity::from_bytes(&newer)
            .unwrap_err()
            .to_string()
            .contains("version 2")
    );
    assert!(!format!("{identity:?}").contains("PRIVATE"));
}

/// One flipped bit anywhere: refused, or harmless, but never a panic or another role.
#[test]
fn a_damaged_identity_never_becomes_another() {
    let identity = Cluster::new().identity(Role::Worker);
    let bytes = identity.to_bytes();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        if let Ok(read) = Identity::from_bytes(&damaged) {
            assert_eq!(read.peer(), identity.peer(), "byte {at}");
        }
    }
}
