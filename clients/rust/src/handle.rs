//! Jobs as values: start one and take its results, or keep a handle and come back later.
//!
//! A handle is nothing but the job's id and a client: dropping it ends nothing, and another process
//! gets the same one with [`Client::attach`], for as long as the coordinator keeps the job.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use volley_protocol::client::ResultRecord;
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::JobState;
use volley_protocol::snapshot::JobSummary;
use volley_protocol::{ErrorCode, Fault, JobId, JobSpec, Trajectory};

use crate::client::Client;
use crate::results::{OrderedResults, REORDER_BYTES_MAX, ResultStream, size_of_record};

/// First pause between two looks at a job that is waited for.
const LOOK_FIRST: Duration = Duration::from_millis(20);

/// Longest pause between two looks.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Bytes of results that [`JobHandle::get`] gathers; for more there is [`JobHandle::outcomes`].
pub const GET_BYTES_MAX: usize = REORDER_BYTES_MAX;

/// What became of one rollout: its index, and its trajectory or why there is none.
pub type Outcome = (u64, Result<Box<Trajectory>, Fault>);

/// In which order outcomes come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they were settled.
    #[default]
    AsCompleted,
    /// By index. What comes early is held back, up to [`REORDER_BYTES_MAX`] bytes.
    ByIndex,
}

/// Outcomes of a job. A rollout that failed is an item, not the end.
#[derive(Debug)]
pub struct Outcomes(Source);

#[derive(Debug)]
enum Source {
    AsCompleted(Box<ResultStream>),
    ByIndex(Box<OrderedResults>),
}

impl Outcomes {
    /// The outcomes of a stream.
    #[must_use]
    pub fn new(stream: ResultStream, order: Order) -> Self {
        Self(match order {
            Order::AsCompleted => Source::AsCompleted(Box::new(stream)),
            Order::ByIndex => Source::ByIndex(Box::new(OrderedResults::new(stream))),
        })
    }

    /// The next outcome; `None` after the last one. Cancel-safe.
    ///
    /// # Errors
    /// What ends the whole: `NOT_FOUND`, `COORDINATOR_UNREACHABLE`, `QUEUE_FULL` when too much waits
    /// for an earlier index. After an error the same outcome may be asked for again.
    pub async fn next(&mut self) -> Result<Option<Outcome>, Fault> {
        Ok(self.next_record().await?.map(outcome))
    }

    /// The same, as the relay keeps it.
    ///
    /// # Errors
    /// As [`Outcomes::next`].
    pub async fn next_record(&mut self) -> Result<Option<ResultRecord>, Fault> {
        match &mut self.0 {
            Source::AsCompleted(stream) => stream.next().await,
            Source::ByIndex(results) => results.next().await,
        }
    }

    /// Is an outcome at hand, so that the next call will not wait?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Source::AsCompleted(stream) => stream.is_ready(),
            Source::ByIndex(results) => results.is_ready(),
        }
    }
}

/// A job that was started, by this client or another one.
#[derive(Clone, Debug)]
pub struct JobHandle {
    client: Client,
    job: JobId,
    /// Results after which it is done; 0 when all are wanted.
    take: u64,
}

impl Client {
    /// Starts a job and hands out its outcomes.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn map(&self, spec: JobSpec, order: Order) -> Result<Outcomes, Fault> {
        Ok(self.spawn(spec).await?.outcomes(order))
    }

    /// Starts a job; it is durable when this returns, whatever becomes of the client.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn spawn(&self, spec: JobSpec) -> Result<JobHandle, Fault> {
        let take = spec.take.map_or(0, |take| take.results);
        let job = self.submit(spec).await?.job;
        let client = self.clone();
        Ok(JobHandle { client, job, take })
    }

    /// A handle to a job that is known by its id.
    ///
    /// # Errors
    /// `NOT_FOUND` when the coordinator does not know it, or not any more.
    pub async fn attach(&self, job: JobId) -> Result<JobHandle, Fault> {
        let take = self.job(job).await?.take;
        let client = self.clone();
        Ok(JobHandle { client, job, take })
    }
}

impl JobHandle {
    /// Id of the job, for [`Client::attach`].
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// Where it stands.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn status(&self) -> Result<JobSummary, Fault> {
        self.client.job(self.job).await
    }

    /// Asks for its end: what is open is closed, results that were accepted stay.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn cancel(&self) -> Result<(), Fault> {
        self.client.cancel(self.job).await
    }

    /// Its outcomes, from the first one.
    #[must_use]
    pub fn outcomes(&self, order: Order) -> Outcomes {
        let stream = self.client.results(self.job).first(self.take);
        Outcomes::new(stream, order)
    }

    /// Waits until it has ended; tells where it stands then.
    ///
    /// # Errors
    /// `WAIT_TIMEOUT` when it has not ended in time, `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn wait(&self, patience: Option<Duration>) -> Result<JobSummary, Fault> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut pause = LOOK_FIRST;
        loop {
            let summary = self.status().await?;
            if summary.state != JobState::Open {
                return Ok(summary);
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                return Err(self.not_in_time(patience));
            }
            let next = now + pause;
            sleep_until(until.map_or(next, |until| until.min(next))).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    /// All outcomes by index, when the job has ended.
    ///
    /// # Errors
    /// `WAIT_TIMEOUT` when it has not ended in time (it goes on), `QUEUE_FULL` when its results take
    /// more than [`GET_BYTES_MAX`], and as [`Outcomes::next`].
    pub async fn get(&self, patience: Option<Duration>) -> Result<Vec<Outcome>, Fault> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut outcomes = self.outcomes(Order::AsCompleted);
        let mut gathered = Vec::new();
        let mut bytes = 0;
        loop {
            let next = outcomes.next_record();
            let record = match until {
                None => next.await?,
                Some(until) => match timeout_at(until, next).await {
                    Ok(record) => record?,
                    Err(_) => return Err(self.not_in_time(patience)),
                },
            };
            let Some(record) = record else {
                break;
            };
            bytes += size_of_record(&record);
            if bytes > GET_BYTES_MAX {
                let why = format!("results of more than {} MiB", GET_BYTES_MAX >> 20);
                return Err(Fault::new(ErrorCode::QueueFull, why)
                    .with_hint("take them one by one: outcomes()"));
            }
            gathered.push(outcome(record));
        }
        gathered.sort_unstable_by_key(|(index, _)| *index);
        Ok(gathered)
    }

    /// Rollouts of it that were given up: the newest of them, oldest first.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `COORDINATOR_UNREACHABLE`.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Fault> {
        self.client.dead_letters(self.job).await
    }

    /// Tries dead letters anew, in a job of their own; all that were not yet, when `indices` is
    /// empty.
    ///
    /// # Errors
    /// `NOT_FOUND` when there are none, `INVALID_REQUEST` when the results are a learner's.
    pub async fn retry(&self, indices: Vec<u64>) -> Result<Self, Fault> {
        let retry = JobId(rand::random());
        let job = self.client.retry(self.job, retry, indices).await?.job;
        let client = self.client.clone();
        Ok(Self {
            client,
            job,
            take: 0,
        })
    }

    fn not_in_time(&self, patience: Option<Duration>) -> Fault {
        let job = self.job;
        let patience = patience.unwrap_or_default();
        let message = format!("job {job} has not ended within {patience:?}; it goes on");
        Fault::new(ErrorCode::WaitTimeout, message)
            .with_hint(format!("volley job results {job} shows what is there"))
    }
}

fn outcome(record: ResultRecord) -> Outcome {
    let index = record.index();
    match record {
        ResultRecord::Finished(trajectory) => (index, Ok(trajectory)),
        ResultRecord::Failed { fault, .. } => (index, Err(fault)),
    }
}
