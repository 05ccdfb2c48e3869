//! What a client can ask: one method for each request of the conversation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::client::{ReplyBody, RequestBody};
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::Extent;
use volley_protocol::limits::POLL_WAIT_MS_MAX;
use volley_protocol::run::{RunState, RunSummary, StepReport};
use volley_protocol::snapshot::{ClusterSnapshot, JobSummary};
use volley_protocol::{ErrorCode, Fault, JobId, JobSpec, RunId};

use crate::client::Client;
use crate::driver::Answer;
use crate::faults;
use crate::fetch;
use crate::puts::Putter;
use crate::results::ResultStream;

/// What became of a submit or a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Which job.
    pub job: JobId,
    /// It was known already: nothing was added.
    pub existed: bool,
}

/// Steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Reports, oldest first.
    pub reports: Vec<StepReport>,
    /// Where the run stands.
    pub state: RunState,
}

/// Versions of a run and who has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapters {
    /// Versions, oldest first.
    pub entries: Vec<AdapterEntry>,
    /// The learner that has their bytes, when it is connected.
    pub source: Option<SocketAddr>,
}

impl Client {
    /// Makes a job durable. Repeating it under the same id changes nothing.
    ///
    /// # Errors
    /// The coordinator's refusal, or `COORDINATOR_UNREACHABLE`.
    pub async fn submit(&self, spec: JobSpec) -> Result<Submitted, Fault> {
        spec.validate()?;
        accepted(self.ask_patiently(RequestBody::Submit(spec)).await?)
    }

    /// Adds to an open queue. Repeating it with the same `extent.put` adds nothing.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn put(&self, job: JobId, extent: Extent) -> Result<Submitted, Fault> {
        accepted(self.ask_patiently(RequestBody::Put { job, extent }).await?)
    }

    /// Puts many payloads into an open queue; the queue's groups have `group_size` rollouts.
    #[must_use]
    pub fn putter(&self, job: JobId, group_size: u32) -> Putter {
        Putter::new(self.clone(), job, group_size)
    }

    /// All jobs.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE`.
    pub async fn jobs(&self) -> Result<Vec<JobSummary>, Fault> {
        match self.ask(RequestBody::JobList).await? {
            ReplyBody::Jobs(jobs) => Ok(jobs),
            _ => Err(faults::unexpected("list of jobs")),
        }
    }

    /// One job.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn job(&self, job: JobId) -> Result<JobSummary, Fault> {
        let ReplyBody::Jobs(jobs) = self.ask(RequestBody::JobShow(job)).await? else {
            return Err(faults::unexpected("job"));
        };
        let found = jobs.into_iter().find(|summary| summary.job == job);
        found.ok_or_else(|| Fault::new(ErrorCode::NotFound, format!("there is no job {job}")))
    }

    /// Closes what is open of a job as failed.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn cancel(&self, job: JobId) -> Result<(), Fault> {
        self.done(RequestBody::JobCancel(job)).await
    }

    /// Rollouts of a job that were given up: the newest of them, oldest first.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn dead_letters(&self, job: JobId) -> Result<Vec<DeadLetter>, Fault> {
        match self.ask(RequestBody::DeadLetters(job)).await? {
            ReplyBody::DeadLetters(letters) => Ok(letters),
            _ => Err(faults::unexpected("list of dead letters")),
        }
    }

    /// Tries dead letters of a job anew, as the job `retry`; all that were not yet, when `indices`
    /// is empty. Repeating it under the same id adds nothing.
    ///
    /// # Errors
    /// `NOT_FOUND` when there are none, `INVALID_REQUEST` when the results are a learner's.
    pub async fn retry(
        &self,
        job: JobId,
        retry: JobId,
        indices: Vec<u64>,
    ) -> Result<Submitted, Fault> {
        let body = RequestBody::JobRetry {
            job,
            retry,
            indices,
        };
        accepted(self.ask(body).await?)
    }

    /// Results of a job from its beginning, in the order in which they were settled.
    #[must_use]
    pub fn results(&self, job: JobId) -> ResultStream {
        ResultStream::new(self.clone(), job, POLL_WAIT_MS_MAX)
    }

    /// Results of a job that are there now: the stream ends where it would have to wait.
    #[must_use]
    pub fn results_so_far(&self, job: JobId) -> ResultStream {
        ResultStream::new(self.clone(), job, 0)
    }

    /// The cluster at this moment.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE`.
    pub async fn snapshot(&self) -> Result<ClusterSnapshot, Fault> {
        match self.ask(RequestBody::Snapshot).await? {
            ReplyBody::Snapshot(snapshot) => Ok(*snapshot),
            _ => Err(faults::unexpected("snapshot")),
        }
    }

    /// All runs.
    ///
    /// # Errors
    /// `COORDINATOR_UNREACHABLE`.
    pub async fn runs(&self) -> Result<Vec<RunSummary>, Fault> {
        match self.ask(RequestBody::RunList).await? {
            ReplyBody::Runs(runs) => Ok(runs),
            _ => Err(faults::unexpected("list of runs")),
        }
    }

    /// Steps of a run after `after_step`; waits up to `wait` while there is none and it trains.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn run_progress(
        &self,
        run: RunId,
        after_step: u64,
        wait: Duration,
    ) -> Result<Progress, Fault> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let body = RequestBody::RunProgress {
            run,
            after_step,
            wait_ms: wait_ms.min(POLL_WAIT_MS_MAX),
        };
        match self.ask(body).await? {
            ReplyBody::Progress { reports, state } => Ok(Progress { reports, state }),
            _ => Err(faults::unexpected("progress of a run")),
        }
    }

    /// Versions of a run.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn adapters(&self, run: RunId) -> Result<Adapters, Fault> {
        match self.ask(RequestBody::AdapterList(run)).await? {
            ReplyBody::Adapters { entries, source } => Ok(Adapters { entries, source }),
            _ => Err(faults::unexpected("list of adapters")),
        }
    }

    /// The bytes of a version, from the learner at `source`; checked against its digest.
    ///
    /// # Errors
    /// `ADAPTER_UNAVAILABLE` when the learner has it no more or what came is something else.
    pub async fn adapter_bytes(
        &self,
        entry: &AdapterEntry,
        source: SocketAddr,
    ) -> Result<Vec<u8>, Fault> {
        fetch::adapter(&self.endpoint, &self.hello, entry, source).await
    }

    /// Forgets a version and deletes its bytes.
    ///
    /// # Errors
    /// `NOT_FOUND`, `ADAPTER_PINNED`, or `COORDINATOR_UNREACHABLE`.
    pub async fn adapter_delete(&self, run: RunId, step: u64) -> Result<(), Fault> {
        self.done(RequestBody::AdapterDelete { run, step }).await
    }

    async fn ask_patiently(&self, body: RequestBody) -> Answer {
        let answer = self.ask(body.clone()).await?;
        self.be_patient(body, answer).await
    }

    /// While the answer is that a bound is reached, asks again as long as patience lasts.
    pub(crate) async fn be_patient(&self, body: RequestBody, first: ReplyBody) -> Answer {
        let begun = Instant::now();
        let mut answer = first;
        while let ReplyBody::Busy {
            fault,
            retry_after_ms,
        } = answer
        {
            // Clients that were refused together should not come back together.
            let jitter = 1.0 + rand::random::<f64>() / 4.0;
            let wait = Duration::from_millis(retry_after_ms).mul_f64(jitter);
            if begun.elapsed() + wait > self.full_queue {
                return Err(fault);
            }
            tracing::debug!(%fault, ?wait, "asking again");
            sleep(wait).await;
            answer = self.ask(body.clone()).await?;
        }
        Ok(answer)
    }

    async fn ask(&self, body: RequestBody) -> Answer {
        let wait_ms = match &body {
            RequestBody::RunProgress { wait_ms, .. }
            | RequestBody::Results { wait_ms, .. }
            | RequestBody::ResultsNear { wait_ms, .. } => *wait_ms,
            _ => 0,
        };
        let mut answered = self.begin(body).await;
        self.finish(&mut answered, wait_ms).await
    }

    async fn done(&self, body: RequestBody) -> Result<(), Fault> {
        match self.ask(body).await? {
            ReplyBody::Done => Ok(()),
            _ => Err(faults::unexpected("confirmation")),
        }
    }
}

pub(crate) fn accepted(reply: ReplyBody) -> Result<Submitted, Fault> {
    match reply {
        ReplyBody::Accepted { job, existed } => Ok(Submitted { job, existed }),
        _ => Err(faults::unexpected("receipt of a job")),
    }
}
