//! What the limits promise about messages: the largest of each kind that a peer may lawfully send
//! fits where it has to go.

use std::net::{SocketAddr, SocketAddrV6};

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::client::{ClientReply, ReplyBody, ResultPage};
use volley_protocol::codec::{self, Blob};
use volley_protocol::ids::{AttemptId, Epoch, JobId, RolloutId, RunId};
use volley_protocol::learner::{FromLearner, ReceiptEntry, Verdict};
use volley_protocol::limits::{
    BATCH_ENTRIES_MAX, CONTROL_FRAME_BYTES_MAX, LEASE_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX, REGISTER_VERSIONS_MAX, RESULT_PAGE_BYTES_MAX, TRAJECTORY_BATCH_BYTES_MAX,
    TRAJECTORY_HEADER_BYTES_MAX, TRAJECTORY_TOKENS_MAX,
};
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::worker::{Lease, LeasePolicy, SinkAddr, ToWorker};
use volley_protocol::{AdapterVersion, Digest, ErrorCode, Fault};

/// A length in front of a text, a list or a blob.
const LEN_BYTES: usize = 8;

/// The longest address.
const ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 1);

fn rollout() -> RolloutId {
    let job = JobId(1);
    RolloutId { job, index: 1 }
}

#[test]
fn a_full_frame_is_read_and_one_byte_more_is_not() {
    let blob = |payload: usize| Blob(vec![7; payload - LEN_BYTES]);
    let full = blob(CONTROL_FRAME_BYTES_MAX);
    let bytes = codec::encode(&full);
    assert_eq!(bytes.len(), CONTROL_FRAME_BYTES_MAX);
    assert_eq!(codec::decode::<Blob>(&bytes).ok(), Some(full));
    let over = codec::encode(&blob(CONTROL_FRAME_BYTES_MAX + 1));
    assert!(codec::decode::<Blob>(&over).is_err());
}

#[test]
fn the_most_leases_fit_a_frame() {
    let version = AdapterVersion {
        run: RunId(1),
        lineage: 1,
        step: 1,
        digest: Digest::default(),
    };
    let attempt = AttemptId {
        rollout: rollout(),
        epoch: Epoch(1),
        number: 1,
    };
    let lease = Lease {
        attempt,
        instance: 1,
        seed: 1,
        policy: LeasePolicy::Adapter {
            version,
            source: ADDR,
        },
        sink: SinkAddr::Learner(ADDR),
        lease_ms: 1,
        payload: Blob::default(),
    };
    let mut leases = vec![lease; BATCH_ENTRIES_MAX];
    leases[0].payload = Blob(vec![1; LEASE_PAYLOAD_BYTES_MAX]);
    let message = ToWorker::Lease {
        epoch: Epoch(1),
        leases,
    };
    let bytes = codec::encode(&message);
    assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX, "{}", bytes.len());
    assert!(codec::decode::<ToWorker>(&bytes).is_ok_and(|back| back == message));
}

#[test]
fn the_longest_receipt_fits_a_frame() {
    let entry = ReceiptEntry {
        rollout: rollout(),
        verdict: Verdict::Accepted,
    };
    let message = FromLearner::Receipt {
        seq: 1,
        entries: vec![entry; BATCH_ENTRIES_MAX],
    };
    let bytes = codec::encode(&message);
    assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX, "{}", bytes.len());
    assert!(codec::decode::<FromLearner>(&bytes).is_ok_and(|back| back == message));
}

#[test]
fn the_longest_register_of_a_learner_fits_a_frame() {
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
    let long = || "x".repeat(2 * MESSAGE_BYTES_MAX);
    let fault = Fault::new(ErrorCode::Internal, long()).with_hint(long());
    let message = FromLearner::Register {
        info: RunInfo {
            run: RunId(1),
            name: "n".repeat(NAME_BYTES_MAX),
            environment: "e".repeat(NAME_BYTES_MAX),
            base: Digest::default(),
            steps_total: 1,
            rank: 1,
            retain_versions: 1,
        },
        sink: ADDR,
        versions: vec![entry; REGISTER_VERSIONS_MAX],
        state: RunState::Failed(fault).cut(),
    };
    let bytes = codec::encode(&message);
    assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX, "{}", bytes.len());
    assert!(codec::decode::<FromLearner>(&bytes).is_ok_and(|back| back == message));
}

#[test]
fn the_largest_trajectory_fits_a_page_and_a_batch() {
    // header length, header, n, then nine bytes for each token
    let record = 4 + TRAJECTORY_HEADER_BYTES_MAX + 4 + 9 * TRAJECTORY_TOKENS_MAX;
    let tag_and_len = 1 + 4;
    assert!(record + tag_and_len <= RESULT_PAGE_BYTES_MAX, "{record}");
    let batch_head = 1 + 8 + 4;
    assert!(record + batch_head <= TRAJECTORY_BATCH_BYTES_MAX);
}

#[test]
fn the_largest_page_fits_a_frame() {
    let page = ResultPage {
        records: Blob(vec![0; RESULT_PAGE_BYTES_MAX]),
        next_cursor: 1,
        complete: true,
    };
    let reply = ClientReply {
        id: 1,
        body: ReplyBody::Results(page),
    };
    let bytes = codec::encode(&reply);
    assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX, "{}", bytes.len());
    assert!(codec::decode::<ClientReply>(&bytes).is_ok_and(|back| back == reply));
}

#[test]
fn an_address_travels_without_its_scope() {
    // `fe80::1%3` arrives as `fe80::1`: a peer must not announce a link-local address.
    let local = SocketAddrV6::new([0xfe80, 0, 0, 0, 0, 0, 0, 1].into(), 4433, 5, 3);
    let back: SocketAddr = codec::decode(&codec::encode(&SocketAddr::V6(local))).expect("its own");
    assert_eq!(back, SocketAddr::from((*local.ip(), local.port())));
}
