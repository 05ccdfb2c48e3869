//! The task that owns the session.
//!
//! ```text
//!            dialled                      session lost
//! reaching ───────────> conversing ─────────────────────> reaching
//!    │ refused for good
//!    └──────────────────> turned away: every call ends with the refusal
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use volley_link::{Backoff, Endpoint, LinkError, Role, close_code};
use volley_protocol::Fault;
use volley_protocol::client::{ClientReply, ClientRequest, ReplyBody, RequestBody};
use volley_protocol::codec::{self, Message as _};
use volley_protocol::version::Hello;
use volley_runtime::conversation::{self, Open as Session};
use volley_runtime::greeting::link_fault;

use crate::contact::Contact;
use crate::faults;

/// Requests without an answer; further ones wait in the channel. A client that follows a job has
/// two, one that follows a hundred jobs two hundred.
const OPEN_REQUESTS_MAX: usize = 256;

/// First wait between dials: a restarted coordinator is back in tens of milliseconds.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);

/// Longest wait between dials.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What becomes of a call.
pub(crate) type Answer = Result<ReplyBody, Fault>;

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Call {
    /// Ask the coordinator.
    Ask {
        body: Box<RequestBody>,
        answer: oneshot::Sender<Answer>,
    },
    /// Say goodbye and end; the sender is dropped when that is done.
    Close { done: oneshot::Sender<()> },
}

/// A request without an answer.
#[derive(Debug)]
struct Open {
    frame: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

/// The driver's state.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) endpoint: Endpoint,
    pub(crate) addr: std::net::SocketAddr,
    pub(crate) hello: Hello,
    /// How long calls wait for a coordinator that is gone.
    pub(crate) absence: Duration,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) contact: watch::Sender<Contact>,
    open: BTreeMap<u32, Open>,
    next_id: u32,
}

/// How a state of the driver ends.
enum Next {
    /// The session is over; dial again.
    Reach,
    /// A session is there.
    Converse(Box<Session>),
    /// Nobody asks any more.
    End(Option<oneshot::Sender<()>>),
    /// The coordinator does not want this client.
    TurnedAway(Fault),
}

impl Driver {
    pub(crate) fn new(
        endpoint: Endpoint,
        addr: std::net::SocketAddr,
        hello: Hello,
        absence: Duration,
        calls: mpsc::Receiver<Call>,
        contact: watch::Sender<Contact>,
    ) -> Self {
        Self {
            endpoint,
            addr,
            hello,
            absence,
            calls,
            contact,
            open: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Runs until the last handle is gone.
    pub(crate) async fn run(mut self) {
        let mut next = Next::Reach;
        loop {
            next = match next {
                Next::Reach => self.reach().await,
                Next::Converse(connected) => self.converse(*connected).await,
                Next::TurnedAway(fault) => self.turn_away(fault).await,
                Next::End(done) => {
                    self.endpoint.close(close_code::NORMAL, "done").await;
                    drop(done);
                    return;
                }
            };
        }
    }

    /// Dials until there is a session.
    async fn reach(&mut self) -> Next {
        let since = Instant::now();
        self.contact
            .send_replace(Contact::Away { since, last: None });
        self.open.retain(|_, open| !open.answer.is_closed());
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
        let mut wait = Duration::ZERO;
        let mut last: Option<Fault> = None;
        loop {
            let (endpoint, hello, addr) = (self.endpoint.clone(), self.hello.clone(), self.addr);
            let attempt = async move {
                sleep(wait).await;
                conversation::dial(&endpoint, addr, Role::Coordinator, &hello).await
            };
            let mut attempt = std::pin::pin!(attempt);
            let outcome = loop {
                let patience = self.absence.saturating_sub(since.elapsed());
                tokio::select! {
                    outcome = &mut attempt => break outcome,
                    () = sleep(patience), if !self.open.is_empty() => {
                        self.fail_all(&faults::unreachable(addr, since.elapsed(), last.as_ref()));
                    }
                    call = self.calls.recv(), if self.open.len() < OPEN_REQUESTS_MAX => {
                        if let Err(end) = self.accept(call) {
                            return end;
                        }
                    }
                }
            };
            match outcome {
                Ok(connected) => {
                    let (cluster, epoch) =
                        (connected.greeted.cluster.clone(), connected.greeted.epoch);
                    tracing::debug!(%cluster, epoch = epoch.0, "connected");
                    self.contact.send_replace(Contact::Here { cluster, epoch });
                    return Next::Converse(Box::new(connected));
                }
                Err(fault) if faults::is_final(&fault) => return Next::TurnedAway(fault),
                Err(fault) => {
                    last = Some(fault);
                    let last = last.clone();
                    self.contact.send_replace(Contact::Away { since, last });
                    wait = backoff.next_delay(rand::random());
                }
            }
        }
    }

    /// Sends what is open, then what comes, and hands out answers until the session is over.
    async fn converse(&mut self, mut connected: Session) -> Next {
        let kind = ClientRequest::KIND as u8;
        for open in self.open.values() {
            if connected.sender.send(kind, &open.frame).await.is_err() {
                return Next::Reach;
            }
        }
        loop {
            tokio::select! {
                frame = connected.receiver.recv() => match frame {
                    Ok(Some(frame)) => self.hand_out(frame.kind, &frame.payload),
                    Ok(None) => return Next::Reach,
                    Err(error) => {
                        tracing::debug!(%error, "session lost");
                        return Next::Reach;
                    }
                },
                call = self.calls.recv(), if self.open.len() < OPEN_REQUESTS_MAX => {
                    let id = match self.accept(call) {
                        Ok(id) => id,
                        Err(end) => return end,
                    };
                    let Some(open) = self.open.get(&id) else { continue };
                    match connected.sender.send(kind, &open.frame).await {
                        Ok(()) => {}
                        Err(error @ LinkError::FrameTooLarge { .. }) => {
                            self.answer(id, Err(link_fault(&error)));
                        }
                        Err(_) => return Next::Reach,
                    }
                }
            }
        }
    }

    /// Ends every call with the refusal.
    async fn turn_away(&mut self, fault: Fault) -> Next {
        self.contact.send_replace(Contact::Refused(fault.clone()));
        loop {
            self.fail_all(&fault);
            let call = self.calls.recv().await;
            if let Err(end) = self.accept(call) {
                return end;
            }
        }
    }

    /// Keeps a call until it is answered; tells its number.
    fn accept(&mut self, call: Option<Call>) -> Result<u32, Next> {
        match call {
            None => Err(Next::End(None)),
            Some(Call::Close { done }) => Err(Next::End(Some(done))),
            Some(Call::Ask { body, answer }) => {
                let id = self.free_id();
                let frame = codec::encode(&ClientRequest { id, body: *body });
                self.open.insert(id, Open { frame, answer });
                Ok(id)
            }
        }
    }

    fn free_id(&mut self) -> u32 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if !self.open.contains_key(&self.next_id) {
                return self.next_id;
            }
        }
    }

    fn hand_out(&mut self, kind: u8, payload: &[u8]) {
        match codec::decode_frame::<ClientReply>(kind, payload) {
            Ok(ClientReply {
                id,
                body: ReplyBody::Fault(fault),
            }) => self.answer(id, Err(fault)),
            Ok(ClientReply { id, body }) => self.answer(id, Ok(body)),
            // Nobody can tell whose answer it is, and asking again would bring it again.
            Err(error) => self.fail_all(&faults::decode(&error)),
        }
    }

    /// An answer without a question belongs to a request that was repeated: drop it.
    fn answer(&mut self, id: u32, answer: Answer) {
        if let Some(open) = self.open.remove(&id) {
            // An error means that the caller has gone; nobody wants the answer.
            let _ = open.answer.send(answer);
        }
    }

    fn fail_all(&mut self, fault: &Fault) {
        for open in std::mem::take(&mut self.open).into_values() {
            let _ = open.answer.send(Err(fault.clone()));
        }
    }
}
