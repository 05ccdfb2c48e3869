//! A coordinator that knows just enough to be restarted in the middle of a job.

#![allow(dead_code)] // Each test file uses its part.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use volley_client::ClusterAddress;
use volley_link::{ClusterCa, Connected, Endpoint, LinkConfig, LinkRuntime, Role};
use volley_protocol::client::{
    ClientReply, ClientRequest, ReplyBody, RequestBody, ResultPage, ResultRecord,
};
use volley_protocol::codec::{self, Blob, Message as _};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::{Epoch, PeerId};
use volley_runtime::greeting;

/// Answers a request; `None` leaves it open for ever.
pub(crate) type Brain = dyn Fn(&RequestBody) -> Option<ReplyBody> + Send + Sync;

/// Keys of a test cluster, and its coordinator while it runs.
pub(crate) struct FakeCluster {
    authority: ClusterCa,
    pub(crate) addr: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<RequestBody>>>,
    running: Option<(JoinHandle<()>, LinkRuntime)>,
    epoch: u64,
}

impl FakeCluster {
    pub(crate) fn new() -> Self {
        let authority = ClusterCa::create("test").expect("a valid cluster id");
        // A port that was just free; a clash fails loudly in `start`.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let addr = socket.local_addr().expect("bound");
        Self {
            authority,
            addr,
            asked: Arc::default(),
            running: None,
            epoch: 0,
        }
    }

    pub(crate) fn address(&self) -> ClusterAddress {
        let identity = self
            .authority
            .issue(Role::Client, "tester")
            .expect("a valid name");
        ClusterAddress {
            addr: self.addr,
            identity,
        }
    }

    /// Starts a coordinator that answers with `brain`.
    pub(crate) fn start(
        &mut self,
        brain: impl Fn(&RequestBody) -> Option<ReplyBody> + Send + Sync + 'static,
    ) {
        self.epoch += 1;
        let identity = self
            .authority
            .issue(Role::Coordinator, "c")
            .expect("a valid name");
        let runtime = LinkRuntime::start().expect("a thread");
        let config = LinkConfig::default();
        let mut listener =
            Endpoint::listen(&runtime, self.addr, &identity, config).expect("the port is free");
        let (asked, epoch) = (self.asked.clone(), Epoch(self.epoch));
        let brain: Arc<Brain> = Arc::new(brain);
        let task = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Some(connected) = listener.accept().await {
                sessions.spawn(serve(connected, epoch, brain.clone(), asked.clone()));
            }
        });
        self.running = Some((task, runtime));
    }

    /// Ends the coordinator without a word to anybody but its sessions.
    pub(crate) async fn stop(&mut self) {
        let (task, runtime) = self.running.take().expect("it runs");
        task.abort();
        let _ = task.await;
        drop(runtime);
        // The network thread says goodbye before it frees the port.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
}

async fn serve(
    mut connected: Connected,
    epoch: Epoch,
    brain: Arc<Brain>,
    asked: Arc<Mutex<Vec<RequestBody>>>,
) {
    if greeting::hear(&mut connected).await.is_err() {
        return;
    }
    greeting::welcome(&connected, "test", epoch, PeerId(1))
        .await
        .expect("a live session");
    while let Ok(Some(frame)) = connected.receiver.recv().await {
        let request: ClientRequest =
            codec::decode_frame(frame.kind, &frame.payload).expect("a request");
        asked.lock().expect("no panic").push(request.body.clone());
        let Some(body) = brain(&request.body) else {
            continue;
        };
        let reply = codec::encode(&ClientReply {
            id: request.id,
            body,
        });
        let _ = connected.sender.send(ClientReply::KIND as u8, &reply).await;
    }
}

/// A page of failed rollouts, one for each index.
pub(crate) fn page(indices: &[u64], next_cursor: u64, complete: bool) -> ReplyBody {
    let mut records = Vec::new();
    for &index in indices {
        let fault = Fault::new(ErrorCode::EnvFailed, format!("rollout {index}"));
        ResultPage::push_record(
            &mut records,
            &ResultRecord::Failed { index, fault }.encode(),
        );
    }
    ReplyBody::Results(ResultPage {
        records: Blob(records),
        next_cursor,
        complete,
    })
}
