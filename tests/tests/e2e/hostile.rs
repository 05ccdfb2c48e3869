//! Peers that lie, over the real link, against a real coordinator.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;
use volley_link::{
    CloseReason, ClusterCa, Connected, Endpoint, Identity, LinkConfig, LinkError, LinkRuntime, Role,
};
use volley_protocol::JobId;
use volley_protocol::client::{ClientRequest, RequestBody};
use volley_protocol::codec::{self, FrameKind};
use volley_protocol::ids::PeerId;
use volley_protocol::learner::FromLearner;
use volley_protocol::version::{Hello, PROTOCOL_VERSION};
use volley_runtime::greeting::greet;

use crate::cluster::{Cluster, assert_complete};
use crate::home::Home;
use crate::process::DEADLINE;

/// A handshake on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn dial(cluster: &Cluster<'_>, identity: &Identity) -> Result<Connected, LinkError> {
    let runtime = LinkRuntime::start()?;
    let config = LinkConfig {
        handshake_timeout: PATIENCE,
        ..LinkConfig::default()
    };
    let endpoint = Endpoint::client(&runtime, identity, config)?;
    let address = cluster.address().parse().expect("an address");
    endpoint.dial(address, Role::Coordinator).await
}

fn identity(cluster: &Cluster<'_>, role: Role) -> Identity {
    let path = cluster.data_dir.join(format!("identities/{role}.identity"));
    Identity::load(&path).expect("an identity of the cluster")
}

/// A session that has said hello properly.
async fn greeted(cluster: &Cluster<'_>, role: Role, peer: u64) -> Connected {
    let dialled = dial(cluster, &identity(cluster, role)).await;
    let mut connected = dialled.expect("the cluster's own identity");
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        peer: PeerId(peer),
        name: "hostile".into(),
        pid: 0,
    };
    greet(&mut connected, &hello).await.expect("a welcome");
    connected
}

/// Sends a frame and hears why the session is closed.
async fn answer(connected: &Connected, kind: u8, payload: &[u8]) -> String {
    connected.sender.send(kind, payload).await.expect("queued");
    let closed = timeout(DEADLINE, connected.session.closed()).await;
    match closed.expect("the coordinator closes the session") {
        CloseReason::Peer { reason, .. } => reason,
        other => panic!("not closed by the coordinator: {other}"),
    }
}

#[tokio::test]
async fn a_worker_that_speaks_as_a_learner_is_thrown_out() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let admit = FromLearner::Admit {
        job: JobId(1),
        upto: u64::MAX,
    };
    let peer = greeted(&cluster, Role::Worker, 11).await;
    let reason = answer(&peer, FrameKind::FromLearner as u8, &codec::encode(&admit)).await;
    assert!(reason.contains("FORBIDDEN"), "{reason}");
    cluster.still_serves();
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_session() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    // A generator's output, so that a failure can be repeated.
    let mut state = 0x9e37_79b9_u32;
    let mut noise = [0_u8; 4_096];
    for byte in &mut noise {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state as u8;
    }
    let cases = [
        (Role::Worker, FrameKind::FromWorker as u8),
        (Role::Learner, FrameKind::FromLearner as u8),
        (Role::Client, FrameKind::ClientRequest as u8),
        (Role::Worker, 0xEE),
    ];
    for (peer, (role, kind)) in (20..).zip(cases) {
        for payload in [&noise[..], &noise[..3], &[]] {
            let connected = greeted(&cluster, role, peer).await;
            let reason = answer(&connected, kind, payload).await;
            assert!(reason.contains("DECODE_ERROR"), "{role} {kind}: {reason}");
        }
    }
    cluster.still_serves();
}

#[tokio::test]
async fn an_identity_of_another_authority_is_refused() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let id = fs::read_to_string(cluster.data_dir.join("ca/cluster-id")).expect("the cluster's id");
    let foreign = ClusterCa::create(id.trim()).expect("an authority");
    for role in [Role::Worker, Role::Learner, Role::Client] {
        let identity = foreign.issue(role, "stranger").expect("an identity");
        let error = dial(&cluster, &identity).await.expect_err("refused");
        assert_eq!(error.code(), "PEER_UNTRUSTED", "{error}");
    }
    cluster.still_serves();
}

#[tokio::test]
async fn a_client_that_never_reads_slows_nobody_down() {
    let home = Home::new();
    let cluster = Cluster::scripted(&home, &[]);
    let deaf = greeted(&cluster, Role::Client, 31).await;
    let ask = |id| ClientRequest {
        id,
        body: RequestBody::Snapshot,
    };
    let kind = FrameKind::ClientRequest as u8;
    let mut id = 0;
    // It asks until somebody has had enough, and reads none of the answers.
    let flood = async {
        loop {
            id += 1;
            if deaf
                .sender
                .send(kind, &codec::encode(&ask(id)))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let map = cluster.begin(&["map", "noop", "--seeds", "0..5000", "--json"]);
    timeout(DEADLINE, flood).await.expect("its session ends");
    let CloseReason::Peer { reason, .. } = deaf.session.closed().await else {
        panic!("not closed by the coordinator");
    };
    assert!(reason.contains("send queue is full"), "{reason}");
    assert_complete(&map.end().with(0), 5_000);
    cluster.still_serves();
}
