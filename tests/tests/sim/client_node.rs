//! A client that submits, puts, cancels and reads, and repeats what was not answered.

use std::collections::BTreeMap;

use volley_protocol::client::{ClientReply, ClientRequest, ReplyBody, RequestBody};
use volley_protocol::job::{Extent, JobKind};
use volley_protocol::{ErrorCode, JobId, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef};
use volley_testkit::Rng;

use crate::learner_node::{RUN, environment};
use crate::world::{Node, REDIAL_MS, Wire, World};

/// Requests that wait this long in an open session are repeated.
const REPEAT_MS: u64 = 3_000;

/// The client, which does not crash: its user would start it again.
#[derive(Debug)]
pub(crate) struct ClientNode {
    /// When, what: ascending.
    plan: Vec<(u64, RequestBody)>,
    /// Asked, not answered: request id → what, and when it was sent last.
    open: BTreeMap<u32, (RequestBody, Option<u64>)>,
    last_id: u32,
    session: Option<u64>,
    dialled_ms: Option<u64>,
}

impl ClientNode {
    pub(crate) fn new(rng: &mut Rng, until_ms: u64) -> Self {
        let mut plan = Vec::new();
        for number in 0..rng.between(2, 6) {
            let at = rng.below(until_ms);
            let job = JobId((u128::from(rng.next_u64()) << 64) | u128::from(number));
            let queue = rng.chance(400);
            plan.push((at, RequestBody::Submit(spec(rng, job, queue))));
            if queue {
                for put in 0..rng.between(1, 5) {
                    let extent = Extent {
                        put: u128::from(put),
                        first_instance: rng.below(1_000),
                        rollouts: 4 * rng.between(1, 12),
                    };
                    plan.push((at + rng.below(120_000), RequestBody::Put { job, extent }));
                }
            }
            if rng.chance(200) {
                plan.push((at + rng.below(60_000), RequestBody::JobCancel(job)));
            }
        }
        for _ in 0..10 {
            let at = rng.below(until_ms);
            let run = RUN;
            plan.push((
                at,
                RequestBody::RunProgress {
                    run,
                    after_step: rng.below(5),
                    wait_ms: 20_000,
                },
            ));
            plan.push((at + 500, RequestBody::Snapshot));
        }
        plan.sort_by_key(|(at, _)| *at);
        Self {
            plan,
            open: BTreeMap::new(),
            last_id: 0,
            session: None,
            dialled_ms: None,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.plan.is_empty() && self.open.is_empty()
    }
}

fn spec(rng: &mut Rng, job: JobId, queue: bool) -> JobSpec {
    let group_size = [1, 1, 2, 4][rng.below(4) as usize];
    JobSpec {
        job,
        name: if queue { "queue".into() } else { "map".into() },
        kind: if queue { JobKind::Queue } else { JobKind::Map },
        env: environment(if rng.chance(200) { "poison" } else { "echo" }),
        first_instance: 0,
        rollouts: 4 * rng.below(40),
        group_size,
        policy: if rng.chance(300) {
            PolicyRef::Latest(RUN)
        } else {
            PolicyRef::Base
        },
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 7_200_000,
        take: None,
        priority: 0,
    }
}

impl World {
    pub(crate) fn tick_client(&mut self) -> bool {
        let now = self.schedule.now_ms();
        let node = &mut self.client;
        while node.plan.first().is_some_and(|(at, _)| *at <= now) {
            let (_, body) = node.plan.remove(0);
            node.last_id += 1;
            node.open.insert(node.last_id, (body, None));
        }
        let Some(session) = node.session else {
            let due = node.dialled_ms.is_none_or(|at| now > at + REDIAL_MS);
            if due && !node.open.is_empty() {
                node.dialled_ms = Some(now);
                self.dial(Node::Client, Node::Coordinator);
            }
            return true;
        };
        let due = |sent: Option<u64>| sent.is_none_or(|at| now > at + REPEAT_MS);
        let mut ask = Vec::new();
        for (id, (body, sent)) in &mut node.open {
            let long_poll = matches!(body, RequestBody::RunProgress { .. }) && sent.is_some();
            if due(*sent) && !long_poll {
                *sent = Some(now);
                ask.push(ClientRequest {
                    id: *id,
                    body: body.clone(),
                });
            }
        }
        for request in ask {
            self.send(session, Node::Client, Wire::Request(Box::new(request)));
        }
        true
    }

    pub(crate) fn client_opened(&mut self, session: u64) {
        self.client.session = Some(session);
        self.client.dialled_ms = None;
        self.client
            .open
            .values_mut()
            .for_each(|(_, sent)| *sent = None);
    }

    pub(crate) fn client_closed(&mut self, session: u64) {
        if self.client.session == Some(session) {
            self.client.session = None;
        }
    }

    pub(crate) fn client_hears(&mut self, _session: u64, message: Wire) {
        let Wire::Reply(reply) = message else {
            panic!("a client heard {message:?}");
        };
        let ClientReply { id, body } = *reply;
        let Some((asked, _)) = self.client.open.get(&id).cloned() else {
            return; // Asked twice, answered twice.
        };
        match (&asked, &body) {
            (RequestBody::Submit(spec), ReplyBody::Accepted { job, .. }) => {
                assert_eq!(*job, spec.job);
                self.ledger.acknowledge(*job, spec.rollouts);
            }
            (RequestBody::Put { job, extent }, ReplyBody::Accepted { .. }) => {
                self.ledger.acknowledge(*job, extent.rollouts);
            }
            // The job's submit, or the run's learner, is still on its way; or a crash took the
            // job back before it was acknowledged.
            (_, ReplyBody::Fault(fault)) if fault.code == ErrorCode::NotFound => return,
            (_, ReplyBody::Fault(fault)) if fault.code == ErrorCode::JobCancelled => {}
            (_, ReplyBody::Fault(fault)) => panic!("{asked:?} was answered {fault}"),
            _ => {}
        }
        self.client.open.remove(&id);
    }
}
