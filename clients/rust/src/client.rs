//! The handle: one method for each thing a client can ask.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use volley_link::{Endpoint, LinkRuntime};
use volley_protocol::client::RequestBody;
use volley_protocol::limits::COORDINATOR_ABSENCE_MS_MAX;
use volley_protocol::version::{Hello, PROTOCOL_VERSION};
use volley_protocol::{ErrorCode, Fault, PeerId};
use volley_runtime::conversation;
use volley_runtime::greeting::link_fault;

use crate::address::ClusterAddress;
use crate::contact::Contact;
use crate::driver::{Answer, Call, Driver};
use crate::faults;

/// Calls waiting for the driver, which takes them at once unless it has its fill of open ones.
const CALLS_MAX: usize = 64;

/// A coordinator whose network lives answers within this time, or hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for a goodbye; a coordinator that is gone does not hear it.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// For people, in the coordinator's log: `volley map`.
    pub name: String,
    /// How long [`Client::connect_with`] tries before it gives up.
    pub first_contact: Duration,
    /// How long a request waits for a coordinator that was there and is gone.
    pub absence: Duration,
    /// Read results from the coordinator's files when it is on this machine.
    pub near: bool,
    /// How long a request waits for room where a bound is reached (`QUEUE_FULL`).
    pub full_queue: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: "client".into(),
            first_contact: Duration::from_secs(2),
            absence: Duration::from_millis(COORDINATOR_ABSENCE_MS_MAX),
            near: true,
            full_queue: Duration::from_secs(60),
        }
    }
}

/// A handle to a coordinator; cheap to clone. Its task ends with the last handle.
#[derive(Clone, Debug)]
pub struct Client {
    calls: mpsc::Sender<Call>,
    contact: watch::Receiver<Contact>,
    pub(crate) endpoint: Endpoint,
    pub(crate) hello: Hello,
    pub(crate) near: bool,
    absence: Duration,
    pub(crate) full_queue: Duration,
}

impl Client {
    /// Connects with [`ClientOptions::default`].
    ///
    /// # Errors
    /// See [`Client::connect_with`].
    pub async fn connect(address: ClusterAddress) -> Result<Self, Fault> {
        Self::connect_with(address, ClientOptions::default()).await
    }

    /// Connects and waits for the coordinator's welcome.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE` when nobody answered in time, otherwise the refusal.
    pub async fn connect_with(
        address: ClusterAddress,
        options: ClientOptions,
    ) -> Result<Self, Fault> {
        let addr = address.addr;
        let client = Self::start(address, &options)?;
        let mut contact = client.contact.clone();
        let begun = Instant::now();
        let settled = contact.wait_for(|contact| !matches!(contact, Contact::Away { .. }));
        let outcome = timeout(options.first_contact, settled).await.map(|seen| {
            let seen = seen.expect("the driver lives as long as the handle `client`");
            seen.clone()
        });
        match outcome {
            Ok(Contact::Refused(fault)) => Err(fault),
            Ok(_) => Ok(client),
            Err(_) => {
                let last = match &*client.contact.borrow() {
                    Contact::Away { last, .. } => last.clone(),
                    Contact::Here { .. } | Contact::Refused(_) => None,
                };
                Err(faults::unreachable(addr, begun.elapsed(), last.as_ref()))
            }
        }
    }

    /// Starts dialling and returns at once, for those who want to watch a cluster come and go.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn start(address: ClusterAddress, options: &ClientOptions) -> Result<Self, Fault> {
        let opened = LinkRuntime::start().and_then(|runtime| {
            Endpoint::client(&runtime, &address.identity, conversation::link_config())
        });
        let endpoint = opened.map_err(|error| link_fault(&error))?;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            peer: PeerId(rand::random()),
            name: options.name.clone(),
            pid: std::process::id(),
        };
        let (calls, received) = mpsc::channel(CALLS_MAX);
        let (say, contact) = watch::channel(Contact::Away {
            since: Instant::now(),
            last: None,
        });
        let driver = Driver::new(
            endpoint.clone(),
            address.addr,
            hello.clone(),
            options.absence,
            received,
            say,
        );
        tokio::spawn(driver.run());
        let absence = options.absence;
        Ok(Self {
            calls,
            contact,
            endpoint,
            hello,
            near: options.near
                && conversation::same_host().results
                && address.addr.ip().is_loopback(),
            absence,
            full_queue: options.full_queue,
        })
    }

    /// Whether the coordinator is there; the receiver hears every change.
    #[must_use]
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.clone()
    }

    /// Tells the coordinator that this client leaves, and waits until it could hear it. Other
    /// handles of this client end with it.
    pub async fn close(self) {
        let (done, ended) = oneshot::channel();
        if self.calls.send(Call::Close { done }).await.is_ok() {
            // The driver drops `done` without a word when it is through.
            let _ = timeout(FAREWELL_WAIT, ended).await;
        }
    }

    /// Asks without waiting for the answer.
    pub(crate) async fn begin(&self, body: RequestBody) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        // If the driver has ended, the answer's sender is dropped, and `finish` reports that.
        let body = Box::new(body);
        let _ = self.calls.send(Call::Ask { body, answer }).await;
        answered
    }

    /// Waits for an answer that was begun with `wait_ms` of long poll.
    pub(crate) async fn finish(
        &self,
        answered: &mut oneshot::Receiver<Answer>,
        wait_ms: u64,
    ) -> Answer {
        let limit = self.absence + ANSWER_WAIT + Duration::from_millis(wait_ms);
        match timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Fault::new(ErrorCode::Interrupted, "the client was closed")),
            Err(_) => {
                let message = format!("the coordinator gave no answer in {limit:?}");
                Err(Fault::new(ErrorCode::CoordinatorUnreachable, message))
            }
        }
    }
}
