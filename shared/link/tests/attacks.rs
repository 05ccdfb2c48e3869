//! Peers that speak QUIC and nothing else we like. After each, the listener serves the next one.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use quinn::{Connection, ConnectionError, crypto::rustls::QuicClientConfig};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use support::{Cluster, loopback};
use volley_link::{ClusterCa, Identity, LinkConfig, Listener, Role, close_code};

const ALPN: &[u8] = b"volley/1";

/// The three parts of an identity's blob that matter here: authority, key, certificate.
fn parts(identity: &Identity) -> (CertificateDer<'static>, Vec<u8>, CertificateDer<'static>) {
    let bytes = identity.to_bytes();
    let mut rest = &bytes[6..];
    let mut next = || {
        let len = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let part = rest[4..4 + len].to_vec();
        rest = &rest[4 + len..];
        part
    };
    let (authority, key, cert) = (next(), next(), next());
    (authority.into(), key, cert.into())
}

/// A bare QUIC connection, with the certificate of `shown` or none, that trusts `trusted`.
async fn connect(
    addr: SocketAddr,
    trusted: &Identity,
    shown: Option<&Identity>,
    alpn: &[u8],
) -> Result<(quinn::Endpoint, Connection), ConnectionError> {
    let mut roots = RootCertStore::empty();
    roots.add(parts(trusted).0).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match shown.map(parts) {
        None => tls.with_no_client_auth(),
        Some((_, key, cert)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
            tls.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut endpoint = quinn::Endpoint::client(loopback(0)).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).unwrap(),
    )));
    let connection = endpoint
        .connect(addr, "coordinator.test.volley")
        .unwrap()
        .await?;
    Ok((endpoint, connection))
}

/// A verified worker that has sent `bytes` on its first stream.
async fn speak(
    cluster: &Cluster,
    listener: &Listener,
    bytes: &[u8],
) -> (quinn::Endpoint, Connection) {
    let identity = cluster.identity(Role::Worker);
    let (endpoint, connection) = connect(listener.local_addr(), &identity, Some(&identity), ALPN)
        .await
        .unwrap();
    let (mut send, recv) = connection.open_bi().await.unwrap();
    // It fails where the listener has already hung up on the first bytes.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    std::mem::forget(recv);
    (endpoint, connection)
}

fn app_code(error: ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

async fn assert_serving(cluster: &Cluster, listener: &mut Listener) {
    let (worker, mut coordinator) = cluster.pair_with(listener).await;
    worker.sender.send(1, b"hello").await.unwrap();
    assert_eq!(coordinator.receiver.recv().await.unwrap().unwrap().kind, 1);
}

/// Codes of all refusals that were logged, by the peer's port.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Log;

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("volley_link")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        LOGGED.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

async fn assert_logged(peer: SocketAddr, code: &str) {
    for _ in 0..100 {
        let found = LOGGED.lock().unwrap().iter().any(|line| {
            line.contains(&format!("peer={peer} ")) && line.contains(&format!("code=\"{code}\""))
        });
        if found {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "no line with {code} for {peer} in {:#?}",
        LOGGED.lock().unwrap()
    );
}

fn log() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| tracing::subscriber::set_global_default(Log).unwrap());
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused_logged_and_forgotten() {
    log();
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let trusted = cluster.identity(Role::Worker);
    let (endpoint, connection) = connect(listener.local_addr(), &trusted, None, ALPN)
        .await
        .unwrap();
    let error = connection.closed().await;
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_logged(endpoint.local_addr().unwrap(), "PEER_NO_CERTIFICATE").await;
    assert_eq!(listener.refused_total(), 1);
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_the_listener_too() {
    log();
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let trusted = cluster.identity(Role::Worker);
    let foreign = ClusterCa::create("test")
        .unwrap()
        .issue(Role::Worker, "one")
        .unwrap();
    let (endpoint, connection) = connect(listener.local_addr(), &trusted, Some(&foreign), ALPN)
        .await
        .unwrap();
    connection.closed().await;
    assert_logged(endpoint.local_addr().unwrap(), "PEER_UNTRUSTED").await;
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn another_application_protocol_gets_no_session() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let identity = cluster.identity(Role::Worker);
    let result = connect(listener.local_addr(), &identity, Some(&identity), b"h3").await;
    assert!(result.is_err());
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn an_oversized_frame_ends_the_session_with_its_code() {
    log();
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let bytes = b"VLY\x01\x02\x00\x00\x00\x07ok\xff\xff\xff\xff\x01";
    let (endpoint, connection) = speak(&cluster, &listener, bytes).await;
    let mut accepted = listener.accept().await.unwrap();
    let frame = accepted.receiver.recv().await.unwrap().unwrap();
    assert_eq!(
        (frame.kind, &frame.payload[..]),
        (7, &b"ok"[..]),
        "what came before is kept"
    );
    let error = accepted.receiver.recv().await.unwrap_err();
    assert!(
        error.to_string().contains("len=4294967295 max=1048576"),
        "{error}"
    );
    assert_eq!(
        app_code(connection.closed().await),
        Some(close_code::FRAME_TOO_LARGE.into())
    );
    assert_logged(endpoint.local_addr().unwrap(), "FRAME_TOO_LARGE").await;
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn a_wrong_preface_gets_no_session() {
    log();
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    for bytes in [&b"GET / HTTP/1.1"[..], b"VLY\x02", b"VL", b""] {
        let (endpoint, connection) = speak(&cluster, &listener, bytes).await;
        assert_eq!(
            app_code(connection.closed().await),
            Some(close_code::BAD_PREFACE.into())
        );
        assert_logged(endpoint.local_addr().unwrap(), "BAD_PREFACE").await;
    }
    assert_serving(&cluster, &mut listener).await;
}

#[tokio::test]
async fn silence_after_the_handshake_ends_at_the_first_frame_deadline() {
    log();
    let cluster = Cluster::new();
    let config = LinkConfig {
        first_frame_timeout: Duration::from_millis(300),
        ..LinkConfig::default()
    };
    let mut listener = cluster.listener_with(Role::Coordinator, config);
    let identity = cluster.identity(Role::Worker);
    // Not even a preface.
    let (_endpoint, connection) = connect(listener.local_addr(), &identity, Some(&identity), ALPN)
        .await
        .unwrap();
    let code = Some(close_code::FIRST_FRAME_TIMEOUT.into());
    assert_eq!(app_code(connection.closed().await), code);
    // A preface and the beginning of a frame.
    let (_endpoint, connection) = connect(listener.local_addr(), &identity, Some(&identity), ALPN)
        .await
        .unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(b"VLY\x01\x10\x00\x00\x00\x01half")
        .await
        .unwrap();
    let mut accepted = listener.accept().await.unwrap();
    assert_eq!(
        accepted.receiver.recv().await.unwrap_err().code(),
        "FIRST_FRAME_TIMEOUT"
    );
    assert_eq!(app_code(connection.closed().await), code);
    assert_serving(&cluster, &mut listener).await;
}

/// Whatever a verified peer sends ends in frames or in a typed error.
#[test]
fn noise_after_the_handshake_is_survived() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let listener = Mutex::new(&mut listener);
    runner
        .run(&vec(any::<u8>(), 0..2000), |noise| {
            let mut listener = listener.lock().unwrap();
            let bytes = [b"VLY\x01", &noise[..]].concat();
            runtime.block_on(async {
                let peer = speak(&cluster, &listener, &bytes).await;
                let mut accepted = listener.accept().await.unwrap();
                let error = loop {
                    match accepted.receiver.recv().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break None,
                        Err(error) => break Some(error.code()),
                    }
                };
                let expected = [None, Some("FRAME_TOO_LARGE"), Some("FRAME_TRUNCATED")];
                assert!(expected.contains(&error), "{error:?}");
                drop(peer);
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(assert_serving(&cluster, &mut listener.lock().unwrap()));
}

/// Datagrams that are no QUIC at all, or begin like it.
#[tokio::test]
async fn garbage_datagrams_are_ignored() {
    let cluster = Cluster::new();
    let mut listener = cluster.listener(Role::Coordinator);
    let socket = std::net::UdpSocket::bind(loopback(0)).unwrap();
    for i in 0..500usize {
        let len = (i * 37) % 1400;
        let mut datagram: Vec<u8> = (0..len).map(|at| (at * i + (at >> 3)) as u8).collect();
        if let (true, Some(first)) = (i % 2 == 0, datagram.first_mut()) {
            *first |= 0xc0;
        }
        socket.send_to(&datagram, listener.local_addr()).unwrap();
    }
    assert_serving(&cluster, &mut listener).await;
}
