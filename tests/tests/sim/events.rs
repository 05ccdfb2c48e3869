//! Who takes part, what travels, what can happen.

use volley_learner_core::Batch;
use volley_protocol::client::{ClientReply, ClientRequest};
use volley_protocol::delivery::FromSink;
use volley_protocol::learner::{FromLearner, ToLearner};
use volley_protocol::worker::{FromWorker, ToWorker};
use volley_protocol::{AdapterVersion, AttemptId, JobId};
use volley_testkit::NetEvent;

use crate::relay::Kept;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Coordinator,
    Learner,
    Client,
    /// By peer id.
    Worker(u64),
}

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    FromWorker(Box<FromWorker>),
    ToWorker(Box<ToWorker>),
    FromLearner(Box<FromLearner>),
    ToLearner(Box<ToLearner>),
    Request(Box<ClientRequest>),
    Reply(Box<ClientReply>),
    Page(Box<Page>),
    FromSink(FromSink),
    Fetch(Box<AdapterVersion>),
    Adapter(Box<AdapterVersion>),
    /// Trajectories, a bulk stream of their own.
    Results {
        first_seq: u64,
        records: Vec<volley_learner_core::Arrival>,
    },
}

/// A page of results, as the relay reads it from its files.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) id: u32,
    pub(crate) job: JobId,
    pub(crate) records: Vec<Kept>,
    pub(crate) next_cursor: u64,
    pub(crate) complete: bool,
}

/// What can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Net(NetEvent<Node, Wire>),
    /// Time is looked at, by that life of a node.
    Tick(Node, u64),
    /// The coordinator's group commit is on the disk.
    Committed(u64),
    /// It is not: the disk has failed, or is full.
    CommitFailed(u64),
    /// The relay has synced what it wrote up to this number.
    RelaySynced {
        life: u64,
        write: u64,
    },
    /// A worker process was asked for.
    WorkerStarts {
        provision: u64,
        life: u64,
    },
    /// pidfd says so, to that life of the coordinator.
    WorkerExited {
        provision: u64,
        life: u64,
    },
    EpisodeEnds {
        worker: u64,
        attempt: AttemptId,
    },
    IntakeSynced {
        life: u64,
        number: u64,
    },
    /// It is not: the disk has failed, or is full.
    IntakeFailed(u64),
    /// The update is computed; its step record is to be written.
    StepEnds {
        life: u64,
        batch: Box<Batch>,
    },
    Restart(Node),
    /// In the middle of a commit.
    CrashCoordinator(u64),
    /// A process that stood still goes on.
    Resume(Node, u64),
    /// It has been silent for longer than sessions bear.
    Silent(Node, u64),
    /// Something goes wrong.
    Chaos,
}

// Events are moved about more than anything else.
const _: () = assert!(size_of::<Event>() <= 80);

impl From<NetEvent<Node, Wire>> for Event {
    fn from(event: NetEvent<Node, Wire>) -> Self {
        Self::Net(event)
    }
}

impl Event {
    /// The process that notices it; `None` when it happens whether a process runs or not.
    pub(crate) const fn node(&self) -> Option<Node> {
        match self {
            Self::Net(
                NetEvent::Opened { at, .. }
                | NetEvent::Arrives { at, .. }
                | NetEvent::Closed { at, .. },
            ) => Some(*at),
            Self::Tick(node, _) => Some(*node),
            Self::Committed(_)
            | Self::CommitFailed(_)
            | Self::RelaySynced { .. }
            | Self::WorkerExited { .. } => Some(Node::Coordinator),
            Self::EpisodeEnds { worker, .. } => Some(Node::Worker(*worker)),
            Self::IntakeSynced { .. } | Self::IntakeFailed(_) | Self::StepEnds { .. } => {
                Some(Node::Learner)
            }
            Self::Net(NetEvent::Idle { .. })
            | Self::WorkerStarts { .. }
            | Self::Restart(_)
            | Self::CrashCoordinator(_)
            | Self::Resume(..)
            | Self::Silent(..)
            | Self::Chaos => None,
        }
    }
}

/// Tells events of the network apart in a trace.
pub(crate) fn event_number(event: &NetEvent<Node, Wire>) -> u64 {
    let node = |node: Node| match node {
        Node::Coordinator => 1,
        Node::Learner => 2,
        Node::Client => 3,
        Node::Worker(id) => id,
    };
    match event {
        NetEvent::Opened { session, at, .. } => session * 8 + node(*at) * 4096,
        NetEvent::Arrives { session, at, .. } => session * 8 + 1 + node(*at) * 4096,
        NetEvent::Closed { session, at } => session * 8 + 2 + node(*at) * 4096,
        NetEvent::Idle { .. } => 3,
    }
}
