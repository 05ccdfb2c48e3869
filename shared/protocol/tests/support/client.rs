//! The greeting, and client ↔ coordinator.

use volley_protocol::client::{ClientReply, ClientRequest, ReplyBody, RequestBody, ResultPage};
use volley_protocol::codec::Blob;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, JobId, PeerId};
use volley_protocol::payload::PayloadWriter;
use volley_protocol::run::RunState;
use volley_protocol::version::{Hello, PROTOCOL_VERSION, Welcome};

use super::Sample;
use super::bulk;
use super::data::{self, JOB, PEER, RUN};

/// First words of every session.
pub(crate) fn handshake() -> Vec<Sample> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        peer: PEER,
        name: "volley map".into(),
        pid: 4242,
    };
    let accepted = Welcome::Accepted {
        protocol: PROTOCOL_VERSION,
        cluster: "demo".into(),
        epoch: Epoch(3),
        peer: PeerId(0x2122_2324_2526_2728),
    };
    let refused = Fault::new(ErrorCode::UnsupportedProtocol, "too old");
    vec![
        Sample::of("Hello", hello),
        Sample::of("Welcome.Accepted", accepted),
        Sample::of("Welcome.Refused", Welcome::Refused(refused)),
    ]
}

/// Questions, then answers.
pub(crate) fn conversation() -> Vec<Sample> {
    let mut samples = requests();
    samples.extend(replies());
    samples
}

fn requests() -> Vec<Sample> {
    let ask = |name: &str, body| {
        let request = ClientRequest { id: 3, body };
        Sample::of(format!("ClientRequest.{name}"), request)
    };
    let put = RequestBody::Put {
        job: JOB,
        extent: data::extent(),
    };
    let mut writer = PayloadWriter::default();
    assert!(writer.push(b"2+2=") && writer.push(b""));
    let put_payloads = RequestBody::PutPayloads {
        job: JOB,
        extent: data::extent(),
        payloads: writer.take(),
    };
    let results = RequestBody::Results {
        job: JOB,
        cursor: 7,
        wait_ms: 20_000,
    };
    let near = RequestBody::ResultsNear {
        job: JOB,
        cursor: 7,
        wait_ms: 20_000,
    };
    let progress = RequestBody::RunProgress {
        run: RUN,
        after_step: 41,
        wait_ms: 20_000,
    };
    let delete = RequestBody::AdapterDelete { run: RUN, step: 40 };
    let retry = RequestBody::JobRetry {
        job: JOB,
        retry: JobId(0x33),
        indices: vec![7],
    };
    vec![
        ask("Submit", RequestBody::Submit(data::job())),
        ask("Put", put),
        ask("JobList", RequestBody::JobList),
        ask("JobShow", RequestBody::JobShow(JOB)),
        ask("JobCancel", RequestBody::JobCancel(JOB)),
        ask("Results", results),
        ask("Snapshot", RequestBody::Snapshot),
        ask("RunList", RequestBody::RunList),
        ask("RunProgress", progress),
        ask("AdapterList", RequestBody::AdapterList(RUN)),
        ask("AdapterDelete", delete),
        ask("DeadLetters", RequestBody::DeadLetters(JOB)),
        ask("JobRetry", retry),
        ask("PutPayloads", put_payloads),
        ask("ResultsNear", near),
    ]
}

fn replies() -> Vec<Sample> {
    let answer = |name: &str, body| {
        let reply = ClientReply { id: 3, body };
        Sample::of(format!("ClientReply.{name}"), reply)
    };
    let accepted = ReplyBody::Accepted {
        job: JOB,
        existed: true,
    };
    let mut records = Vec::new();
    ResultPage::push_record(&mut records, &bulk::failed().encode());
    let page = ResultPage {
        records: Blob(records),
        next_cursor: 8,
        complete: true,
    };
    let progress = ReplyBody::Progress {
        reports: vec![data::step_report()],
        state: RunState::Training,
    };
    let adapters = |source| ReplyBody::Adapters {
        entries: vec![data::entry()],
        source,
    };
    let dead = ReplyBody::DeadLetters(vec![data::dead_letter()]);
    let busy = ReplyBody::Busy {
        fault: data::fault(),
        retry_after_ms: 1_500,
    };
    let snapshot = ReplyBody::Snapshot(Box::new(data::snapshot()));
    let near = ReplyBody::ResultsNear {
        path: "/d/a.results".into(),
        upto: 9,
        complete: true,
    };
    vec![
        answer("Accepted", accepted),
        answer("Jobs", ReplyBody::Jobs(vec![data::job_summary()])),
        answer("Done", ReplyBody::Done),
        answer("Results", ReplyBody::Results(page)),
        answer("Snapshot", snapshot),
        answer("Runs", ReplyBody::Runs(vec![data::run_summary()])),
        answer("Progress", progress),
        answer("Adapters", adapters(Some(data::addr_v4()))),
        answer("Adapters.sourceless", adapters(None)),
        answer("Fault", ReplyBody::Fault(data::fault())),
        answer("DeadLetters", dead),
        answer("Busy", busy),
        answer("ResultsNear", near),
    ]
}
