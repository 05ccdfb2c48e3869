//! The variants of every enum, in wire order. Adding one to the protocol does not compile until it
//! stands here too, and then the tests ask for a sample of it.

use std::net::SocketAddr;

use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::codec::{FrameKind, Message};
use volley_protocol::delivery::{BulkKind, FromSink, ToSink};
use volley_protocol::fault::ErrorCode;
use volley_protocol::job::{JobKind, JobState, PolicyRef, SinkRef, Split};
use volley_protocol::learner::{FromLearner, ToLearner, Verdict};
use volley_protocol::run::RunState;
use volley_protocol::snapshot::WorkerState;
use volley_protocol::version::Welcome;
use volley_protocol::worker::{FromWorker, LeasePolicy, SinkAddr, ToWorker};

/// Name of an enum and of its variants, in order.
pub(crate) type Enum = (&'static str, Vec<&'static str>);

/// Lists an enum's variants; the match that is never called makes the compiler count them.
macro_rules! variants {
    ($name:ident: $($variant:ident)*) => {{
        #[allow(dead_code, reason = "it only has to compile")]
        fn all(value: &$name) {
            match value { $($name::$variant { .. } => (),)* }
        }
        (stringify!($name), vec![$(stringify!($variant)),*])
    }};
}

/// The same for enums whose numbers stand in their definition.
macro_rules! numbered {
    ($name:ident: $($variant:ident)*) => {{
        #[allow(dead_code, reason = "it only has to compile")]
        fn all(value: $name) {
            match value { $($name::$variant => (),)* }
        }
        vec![$((stringify!($name), $name::$variant as u32, stringify!($variant))),*]
    }};
}

/// Every enum of the wire but [`ErrorCode`], whose list is made along with it.
pub(crate) fn enums() -> Vec<Enum> {
    vec![
        variants!(Welcome: Accepted Refused),
        variants!(RequestBody: Submit Put JobList JobShow JobCancel Results Snapshot RunList
            RunProgress AdapterList AdapterDelete DeadLetters JobRetry PutPayloads ResultsNear),
        variants!(ReplyBody: Accepted Jobs Done Results Snapshot Runs Progress Adapters Fault
            DeadLetters Busy ResultsNear),
        variants!(FromWorker: Register Ready Heartbeat AttemptFailed Live Drained),
        variants!(ToWorker: Job Lease Revoke Forget Announce Retire Drain Delivered),
        variants!(FromLearner: Register Submit Reconcile Admit Receipt Published Progress State
            Collected),
        variants!(ToLearner: Submitted ReceiptAck RolloutFailed Collect Stop),
        variants!(ToSink: Fetch),
        variants!(FromSink: Delivered AdapterMissing),
        variants!(JobKind: Map Queue Train Retry),
        variants!(JobState: Open Done Cancelled),
        variants!(Split: Train Eval),
        variants!(PolicyRef: Base Version Latest),
        variants!(SinkRef: Relay Learner),
        variants!(LeasePolicy: Base Adapter),
        variants!(SinkAddr: Relay Learner),
        variants!(Verdict: Accepted Failed),
        variants!(RunState: Training Finished Stopped Failed),
        variants!(WorkerState: Starting Up Draining Lost),
        variants!(SocketAddr: V4 V6),
    ]
}

/// First bytes of frames and of bulk streams.
pub(crate) fn kinds() -> Vec<(&'static str, u32, &'static str)> {
    let frames = numbered!(FrameKind: Hello Welcome ClientRequest ClientReply FromWorker ToWorker
        FromLearner ToLearner ToSink FromSink);
    let bulk = numbered!(BulkKind: Trajectories Adapter);
    [frames, bulk].concat()
}

/// The kind that announces a message, and the message's own name.
pub(crate) fn kind_of<M: Message>() -> (FrameKind, &'static str) {
    let name = std::any::type_name::<M>();
    let name = name.rsplit("::").next().unwrap_or(name);
    (M::KIND, name)
}

/// Lines of the file that freezes error codes.
pub(crate) fn error_code_lines() -> Vec<String> {
    let line = |(number, code): (usize, &ErrorCode)| format!("{number} {} {code:?}", code.name());
    ErrorCode::ALL.iter().enumerate().map(line).collect()
}
