//! Group commit: one thread writes what the core decided and then lets go what had to wait for it.
//!
//! While one transaction is synced the next ones queue up, and all of them go into the following
//! transaction. So the price of a sync is shared by everything that happened meanwhile, and the
//! core never waits for the disk.

use std::sync::mpsc;
use std::thread;

use volley_protocol::{Fault, JobId};
use volley_runtime::store::{Batch, Store};
use volley_runtime::vital::Vital;

use crate::outbound::{Outbound, Outgoing};

/// Transactions waiting for the disk. Each holds the outcome of one input; with this many behind
/// a disk, blocking the core is the right back-pressure.
const PENDING_COMMITS_MAX: usize = 4096;

/// Records in one transaction: keeps the wait of the first one bounded.
const RECORDS_PER_COMMIT_MAX: usize = 8192;

/// Bytes of payloads in one transaction, for the same reason: about a tenth of a second of a disk.
/// One commit may overshoot by its own put, which is below a frame.
const PAYLOAD_BYTES_PER_COMMIT_MAX: usize = 16 << 20;

/// What one input made durable, and what may be said afterwards.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub(crate) batch: Batch,
    pub(crate) after: Vec<Outgoing>,
    /// Relay jobs and their rollouts, for the relay to know when they are synced.
    pub(crate) grown: Vec<(JobId, u64)>,
    /// Replace the whole log by these records instead of appending them.
    pub(crate) compaction: bool,
}

impl Commit {
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.after.is_empty() && self.grown.is_empty()
    }
}

impl Commit {
    fn payload_bytes(&self) -> usize {
        let payloads = self.batch.payloads.iter();
        payloads.map(|(_, payloads)| payloads.size_bytes()).sum()
    }
}

/// Hands commits to the committing thread.
#[derive(Clone, Debug)]
pub(crate) struct Committer {
    queue: mpsc::SyncSender<Commit>,
}

impl Committer {
    /// Starts the thread. `durable` is told how many rollouts of a job are synced; `on_failure` is called once, when the store can no longer be trusted;
    /// nothing is acknowledged after that.
    pub(crate) fn start(
        mut store: Box<dyn Store>,
        outbound: Outbound,
        durable: impl Fn(JobId, u64) + Send + 'static,
        on_failure: impl FnOnce(Fault) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, commits) = mpsc::sync_channel(PENDING_COMMITS_MAX);
        thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                let _vital = Vital("committer");
                if let Err(fault) = commit_all(&mut *store, &commits, &Said { outbound, durable }) {
                    on_failure(fault);
                }
            })?;
        Ok(Self { queue })
    }

    /// Queues a commit; waits while too many are pending.
    pub(crate) fn submit(&self, commit: Commit) {
        if self.queue.send(commit).is_err() {
            tracing::debug!("the store has failed; nothing is acknowledged any more");
        }
    }
}

/// Who is told what is synced.
struct Said<D> {
    outbound: Outbound,
    durable: D,
}

fn commit_all(
    store: &mut dyn Store,
    commits: &mpsc::Receiver<Commit>,
    said: &Said<impl Fn(JobId, u64)>,
) -> Result<(), Fault> {
    while let Ok(mut group) = commits.recv() {
        let mut payload_bytes = group.payload_bytes();
        while !group.compaction
            && group.batch.records.len() < RECORDS_PER_COMMIT_MAX
            && payload_bytes < PAYLOAD_BYTES_PER_COMMIT_MAX
        {
            let Ok(next) = commits.try_recv() else { break };
            if next.compaction {
                write(store, &group, said)?;
                group = next;
            } else {
                payload_bytes += next.payload_bytes();
                group.batch.extend(next.batch);
                group.after.extend(next.after);
                group.grown.extend(next.grown);
            }
        }
        write(store, &group, said)?;
    }
    Ok(())
}

fn write(
    store: &mut dyn Store,
    group: &Commit,
    said: &Said<impl Fn(JobId, u64)>,
) -> Result<(), Fault> {
    if group.compaction {
        store.replace(&group.batch.records)?;
    } else {
        store.commit(&group.batch)?;
    }
    group
        .after
        .iter()
        .for_each(|outgoing| said.outbound.send(outgoing));
    for (job, rollouts) in &group.grown {
        (said.durable)(*job, *rollouts);
    }
    Ok(())
}
