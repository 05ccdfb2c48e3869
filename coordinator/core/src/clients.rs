//! What clients and monitors ask.

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::client::{ClientRequest, ReplyBody, RequestBody};
use volley_protocol::job::JobKind;
use volley_protocol::limits::POLL_WAIT_MS_MAX;
use volley_protocol::{ErrorCode, Fault, JobId, JobSpec, RunId, SinkRef};

use crate::adapters::Versions;
use crate::config::{POLLS_PER_SESSION_MAX, VERSIONS_PER_REPLY_MAX};
use crate::coordinator::Coordinator;
use crate::effect::{Effect, reply};
use crate::input::SessionId;
use crate::runs::Poll;

/// An answer, and whether it waits for the commit.
pub(crate) type Answer = Result<(ReplyBody, bool), Fault>;

impl Coordinator {
    pub(crate) fn client_asked(
        &mut self,
        session: SessionId,
        request: ClientRequest,
        monitor: bool,
        out: &mut Vec<Effect>,
    ) {
        let ClientRequest { id, body } = request;
        let answer = if monitor && !body.reads_only() {
            Err(Fault::new(ErrorCode::Forbidden, "a monitor may only read"))
        } else {
            self.answer(session, id, body, out)
        };
        match answer {
            Ok(Some((body, after_commit))) => out.push(reply(session, id, body, after_commit)),
            Ok(None) => {} // The shell or a later event answers.
            Err(fault) => out.push(reply(session, id, ReplyBody::Fault(fault), false)),
        }
    }

    fn answer(
        &mut self,
        session: SessionId,
        id: u32,
        body: RequestBody,
        out: &mut Vec<Effect>,
    ) -> Result<Option<(ReplyBody, bool)>, Fault> {
        let read = |body: ReplyBody| Ok(Some((body, false)));
        match body {
            RequestBody::Submit(spec) => self.submit(spec, out).map(Some),
            RequestBody::Put { job, extent } => self.put(job, extent, None, out).map(Some),
            RequestBody::PutPayloads {
                job,
                extent,
                payloads,
            } => self.put(job, extent, Some(payloads), out).map(Some),
            RequestBody::JobCancel(job) => self.cancel(job, out).map(Some),
            RequestBody::AdapterDelete { run, step } => self.delete(run, step, out).map(Some),
            RequestBody::JobList => read(ReplyBody::Jobs(self.job_list())),
            RequestBody::JobShow(job) => {
                let found = self.jobs.get(job).ok_or_else(|| no_job(job))?;
                read(ReplyBody::Jobs(vec![Self::job_summary(found)]))
            }
            RequestBody::Results {
                job,
                cursor,
                wait_ms,
            } => self.query(session, id, (job, cursor, wait_ms), false, out),
            RequestBody::ResultsNear {
                job,
                cursor,
                wait_ms,
            } => self.query(session, id, (job, cursor, wait_ms), true, out),
            RequestBody::Snapshot => read(ReplyBody::Snapshot(Box::new(self.snapshot(self.now)))),
            RequestBody::RunList => read(ReplyBody::Runs(self.run_summaries())),
            RequestBody::RunProgress {
                run,
                after_step,
                wait_ms,
            } => {
                let deadline = self.now.after(wait_ms.min(POLL_WAIT_MS_MAX));
                let poll = Poll {
                    session,
                    id,
                    run,
                    after_step,
                    deadline,
                };
                self.poll(poll)
            }
            RequestBody::DeadLetters(job) => {
                self.jobs.get(job).ok_or_else(|| no_job(job))?;
                let letters = self.dead.of(job).cloned().collect();
                read(ReplyBody::DeadLetters(letters))
            }
            RequestBody::JobRetry {
                job,
                retry,
                indices,
            } => self.retry_dead(job, retry, &indices, out).map(Some),
            RequestBody::AdapterList(run) => {
                let versions = self.registry.of(run).ok_or_else(|| no_run(run))?;
                read(ReplyBody::Adapters {
                    entries: newest(versions),
                    source: self.runs.learner(run).map(|learner| learner.sink),
                })
            }
        }
    }

    /// The relay answers.
    fn query(
        &self,
        session: SessionId,
        id: u32,
        (job, cursor, wait_ms): (JobId, u64, u64),
        near: bool,
        out: &mut Vec<Effect>,
    ) -> Result<Option<(ReplyBody, bool)>, Fault> {
        let found = self.jobs.get(job).ok_or_else(|| no_job(job))?;
        if found.spec.sink != SinkRef::Relay {
            let why = "its results go to a learner, not to clients";
            return Err(Fault::new(ErrorCode::InvalidRequest, why));
        }
        out.push(Effect::ResultsQuery {
            session,
            id,
            job,
            cursor,
            wait_ms: wait_ms.min(POLL_WAIT_MS_MAX),
            near,
        });
        Ok(None)
    }

    fn submit(&mut self, spec: JobSpec, out: &mut Vec<Effect>) -> Answer {
        if spec.sink != SinkRef::Relay || spec.kind == JobKind::Train {
            let why =
                "training jobs, and jobs whose sink is a learner, are the learner's to submit";
            return Err(Fault::new(ErrorCode::Forbidden, why));
        }
        if spec.kind == JobKind::Retry {
            let why = "such jobs are made of dead letters: JobRetry";
            return Err(Fault::new(ErrorCode::InvalidRequest, why));
        }
        let job = spec.job;
        let existed = self.accept_job(spec, out)?;
        Ok((ReplyBody::Accepted { job, existed }, true))
    }

    fn cancel(&mut self, id: JobId, out: &mut Vec<Effect>) -> Answer {
        self.jobs.get(id).ok_or_else(|| no_job(id))?;
        // Ended already: what was asked for is so.
        self.cancel_job(id, out);
        Ok((ReplyBody::Done, true))
    }

    fn delete(&mut self, run: RunId, step: u64, out: &mut Vec<Effect>) -> Answer {
        let versions = self.registry.of(run).ok_or_else(|| no_run(run))?;
        let newest_first = versions.entries().rev();
        let entry = newest_first
            .copied()
            .find(|entry| entry.version.step == step);
        let missing = || {
            Fault::new(
                ErrorCode::NotFound,
                format!("run {run} keeps no step {step}"),
            )
        };
        let version = entry.ok_or_else(missing)?.version;
        let is_head = versions.head().is_some_and(|head| head.version == version);
        if is_head || self.registry.pins().contains_key(&version) {
            let why = if is_head {
                "it is the newest version"
            } else {
                "rollouts play with it"
            };
            return Err(Fault::new(ErrorCode::AdapterPinned, why));
        }
        self.forget_versions(run, &[version], out);
        Ok((ReplyBody::Done, true))
    }

    fn poll(&mut self, poll: Poll) -> Result<Option<(ReplyBody, bool)>, Fault> {
        let run = self
            .runs
            .map
            .get(&poll.run)
            .ok_or_else(|| no_run(poll.run))?;
        if let Some(news) = run.news(poll.after_step) {
            return Ok(Some((news, false)));
        }
        if poll.deadline <= self.now {
            return Ok(Some((run.progress(poll.after_step), false)));
        }
        let open = self
            .runs
            .polls
            .iter()
            .filter(|other| other.session == poll.session)
            .count();
        if open >= POLLS_PER_SESSION_MAX {
            let why = format!("{POLLS_PER_SESSION_MAX} polls of this session wait already");
            return Err(Fault::new(ErrorCode::QueueFull, why));
        }
        self.runs.polls.push(poll);
        Ok(None)
    }
}

/// The newest versions, oldest of them first; as many as a frame holds with ease.
fn newest(versions: &Versions) -> Vec<AdapterEntry> {
    let mut entries: Vec<_> = versions
        .entries()
        .rev()
        .take(VERSIONS_PER_REPLY_MAX)
        .copied()
        .collect();
    entries.reverse();
    entries
}

pub(crate) fn no_job(job: JobId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no job {job}"))
}

fn no_run(run: RunId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no run {run}"))
}
