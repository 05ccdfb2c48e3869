//! A client that submits, puts, cancels and reads, and repeats what was not answered. When it is
//! started again it begins its script anew: what was done already must be answered as done.

use std::collections::BTreeMap;

use volley_protocol::client::{ClientReply, ClientRequest, ReplyBody, RequestBody};
use volley_protocol::job::{Extent, JobKind};
use volley_protocol::{ErrorCode, JobId, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef};
use volley_testkit::Rng;

use crate::events::{Event, Node, Page, Wire};
use crate::learner_node::{RUN, environment};
use crate::topology::Topology;
use crate::world::{REDIAL_MS, World};

/// Requests that wait this long in an open session are repeated.
const REPEAT_MS: u64 = 3_000;
/// Between two questions for results when there was nothing new.
const READ_MS: u64 = 700;

/// How far the results of a job are read.
#[derive(Debug, Default)]
struct Reader {
    cursor: u64,
    /// Number of the question that waits for its answer, and when it was asked.
    asked: Option<(u32, u64)>,
    not_before_ms: u64,
    is_queue: bool,
    over: bool,
}

/// The client's process, and the script of its user.
#[derive(Debug)]
pub(crate) struct ClientNode {
    /// When, what: ascending.
    plan: Vec<(u64, RequestBody)>,
    /// What of the plan comes next.
    next: usize,
    /// Asked, not answered: request id → what, and when it was sent last.
    open: BTreeMap<u32, (RequestBody, Option<u64>)>,
    readers: BTreeMap<JobId, Reader>,
    last_id: u32,
    session: Option<u64>,
    dialled_ms: Option<u64>,
    up: bool,
}

impl ClientNode {
    pub(crate) fn new(rng: &mut Rng, topology: &Topology, until_ms: u64) -> Self {
        let mut plan = Vec::new();
        for number in 0..rng.between(2, 6) {
            let at = rng.below(until_ms);
            let job = JobId((u128::from(rng.next_u64()) << 64) | u128::from(number));
            let queue = rng.chance(500);
            plan.push((
                at,
                RequestBody::Submit(spec(rng, job, queue, topology.work(40))),
            ));
            if queue {
                for put in 1..=rng.between(1, 12) {
                    let extent = Extent {
                        put: u128::from(put),
                        first_instance: rng.below(1_000),
                        rollouts: 4 * rng.between(1, topology.work(6)),
                    };
                    plan.push((at + rng.below(300_000), RequestBody::Put { job, extent }));
                }
            }
            if rng.chance(250) {
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
            next: 0,
            open: BTreeMap::new(),
            readers: BTreeMap::new(),
            last_id: 0,
            session: None,
            dialled_ms: None,
            up: true,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// Does its script go on later?
    pub(crate) fn has_plans(&self) -> bool {
        self.next < self.plan.len()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.up
            && !self.has_plans()
            && self.open.is_empty()
            && self.readers.values().all(|reader| reader.over)
    }

    /// Has it asked for a job's end?
    fn cancels(&self, job: JobId) -> bool {
        let asked = self.plan.iter().take(self.next);
        asked
            .into_iter()
            .any(|(_, body)| *body == RequestBody::JobCancel(job))
    }

    fn take_up_the_plan(&mut self, now: u64) {
        while let Some((_, body)) = self.plan.get(self.next).filter(|(at, _)| *at <= now) {
            self.last_id += 1;
            self.open.insert(self.last_id, (body.clone(), None));
            self.next += 1;
        }
    }

    /// What is to be asked, or asked again, now.
    fn due(&mut self, now: u64) -> Vec<ClientRequest> {
        let late = |sent: Option<u64>| sent.is_none_or(|at| now > at + REPEAT_MS);
        let mut ask = Vec::new();
        for (id, (body, sent)) in &mut self.open {
            let long_poll = matches!(body, RequestBody::RunProgress { .. }) && sent.is_some();
            if late(*sent) && !long_poll {
                *sent = Some(now);
                let body = body.clone();
                ask.push(ClientRequest { id: *id, body });
            }
        }
        for (job, reader) in &mut self.readers {
            let asked_at = reader.asked.map(|(_, at)| at);
            if reader.over || !late(asked_at) || now < reader.not_before_ms {
                continue;
            }
            self.last_id += 1;
            reader.asked = Some((self.last_id, now));
            let body = RequestBody::Results {
                job: *job,
                cursor: reader.cursor,
                wait_ms: 0,
            };
            let id = self.last_id;
            ask.push(ClientRequest { id, body });
        }
        ask
    }
}

fn spec(rng: &mut Rng, job: JobId, queue: bool, groups_max: u64) -> JobSpec {
    let group_size = [1, 1, 2, 4][rng.below(4) as usize];
    let empty = queue && rng.chance(500);
    let rollouts = if empty { 0 } else { 4 * rng.below(groups_max) };
    JobSpec {
        job,
        name: if queue { "queue".into() } else { "map".into() },
        kind: if queue { JobKind::Queue } else { JobKind::Map },
        env: environment(if rng.chance(200) { "poison" } else { "echo" }),
        first_instance: rng.below(1_000),
        rollouts,
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
        priority: rng.between(0, 2) as i8 - 1,
    }
}

impl World {
    pub(crate) fn crash_client(&mut self) {
        if !std::mem::replace(&mut self.client.up, false) {
            return;
        }
        self.outcome.client_crashes += 1;
        self.is_gone(Node::Client);
        let node = &mut self.client;
        (node.session, node.dialled_ms, node.next) = (None, None, 0);
        node.open.clear();
        node.readers.clear();
        self.ledger.client_restarts();
        let pause_ms = self.rng.between(100, 10_000);
        self.schedule.after(pause_ms, Event::Restart(Node::Client));
    }

    pub(crate) fn start_client(&mut self) {
        self.client.up = true;
        self.net.start(Node::Client);
        self.note(&[51], &"the client starts");
        let life = self.outcome.client_crashes;
        self.schedule.after(1, Event::Tick(Node::Client, life));
    }

    pub(crate) fn tick_client(&mut self, life: u64) -> bool {
        let now = self.schedule.now_ms();
        if !self.client.up || life != self.outcome.client_crashes {
            return false;
        }
        self.client.take_up_the_plan(now);
        let node = &mut self.client;
        let Some(session) = node.session else {
            let due = node.dialled_ms.is_none_or(|at| now > at + REDIAL_MS);
            if due && !node.is_done() {
                node.dialled_ms = Some(now);
                self.dial(Node::Client, Node::Coordinator);
            }
            return true;
        };
        for request in self.client.due(now) {
            self.send(session, Node::Client, Wire::Request(Box::new(request)));
        }
        true
    }

    pub(crate) fn client_opened(&mut self, session: u64) {
        let node = &mut self.client;
        (node.session, node.dialled_ms) = (Some(session), None);
        node.open.values_mut().for_each(|(_, sent)| *sent = None);
        let readers = node.readers.values_mut();
        readers.for_each(|reader| reader.asked = None);
    }

    pub(crate) fn client_closed(&mut self, session: u64) {
        if self.client.session == Some(session) {
            self.client.session = None;
        }
    }

    pub(crate) fn client_hears(&mut self, message: Wire) {
        match message {
            Wire::Page(page) => self.client_reads(*page),
            Wire::Reply(reply) => self.client_is_answered(*reply),
            other => panic!("a client heard {other:?}"),
        }
    }

    fn client_is_answered(&mut self, reply: ClientReply) {
        let ClientReply { id, body } = reply;
        let Some((asked, _)) = self.client.open.get(&id).cloned() else {
            self.results_are_refused(id, &body);
            return; // Or asked twice, answered twice.
        };
        match (&asked, &body) {
            (RequestBody::Submit(spec), ReplyBody::Accepted { job, .. }) => {
                assert_eq!(*job, spec.job);
                self.ledger.acknowledge(*job, 0, spec.rollouts);
                let is_queue = spec.kind == JobKind::Queue;
                let reader = self.client.readers.entry(*job).or_default();
                reader.is_queue = is_queue;
            }
            (RequestBody::Put { job, extent }, ReplyBody::Accepted { .. }) => {
                self.ledger.acknowledge(*job, extent.put, extent.rollouts);
                if let Some(reader) = self.client.readers.get_mut(job) {
                    reader.over = false;
                }
            }
            (RequestBody::JobCancel(job), ReplyBody::Done) => {
                self.ledger.cancel(*job);
                self.outcome.cancelled += 1;
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

    /// The job is not known any more: its time is over.
    fn results_are_refused(&mut self, id: u32, body: &ReplyBody) {
        let asked = |reader: &&mut Reader| reader.asked.is_some_and(|(asked, _)| asked == id);
        if let ReplyBody::Fault(fault) = body
            && let Some(reader) = self.client.readers.values_mut().find(asked)
        {
            assert_eq!(fault.code, ErrorCode::NotFound, "results: {fault}");
            reader.over = true;
        }
    }

    fn client_reads(&mut self, page: Page) {
        let now = self.schedule.now_ms();
        let Page { id, job, .. } = page;
        let Some(reader) = self.client.readers.get_mut(&job) else {
            return; // An answer to an earlier life.
        };
        if reader.asked.take_if(|(asked, _)| *asked == id).is_none() {
            return;
        }
        reader.cursor = page.next_cursor;
        if page.records.is_empty() {
            reader.not_before_ms = now + READ_MS;
        }
        self.outcome.read += page.records.len() as u64;
        for kept in &page.records {
            self.ledger.read_once(job, kept.index);
        }
        let (read, all) = (self.ledger.read_count(job), self.ledger.acknowledged(job));
        reader.over = page.complete || (reader.is_queue && read >= all);
        // Rollouts of a cancelled job may have no record at all.
        if page.complete && !self.client.cancels(job) {
            assert!(
                read >= all,
                "everything_is_read: {read} of {all} results of job {job}"
            );
        }
    }
}
