//! The intake: results that this learner accepted, synced before anybody is told.
//!
//! ```text
//! intake/<first write>.seg: one record per write
//! write = [u64 number][u32 failed][failed × u64 index][trajectory record]*
//! ```
//!
//! A file is begun with every checkpoint; it can go when a later checkpoint covers its groups, so
//! everything that a replay from the last checkpoint needs is still there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use volley_protocol::Trajectory;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::segment::{Recovery, SEGMENT_START, SegmentReader, SegmentWriter};
use volley_runtime::vital::Vital;

/// Writes waiting for the disk. Each holds one batch of at most 4 MiB.
const PENDING_WRITES_MAX: usize = 64;

/// One write.
#[derive(Debug, Default)]
pub(crate) struct Write {
    pub(crate) number: u64,
    /// Indices of rollouts that failed.
    pub(crate) failed: Vec<u64>,
    /// What was accepted.
    pub(crate) kept: Vec<Arc<Trajectory>>,
}

enum Order {
    Append(Write),
    /// A checkpoint is on the disk: begin a new file, and drop files whose writes are all below.
    Rotate {
        below: u64,
    },
}

/// Hands writes to the intake's thread.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    orders: mpsc::SyncSender<Order>,
}

impl Intake {
    /// Starts the thread. `synced` is told the number of the last synced write; `failed` is called
    /// once, when the disk can no longer be trusted.
    pub(crate) fn start(
        directory: &Path,
        synced: impl Fn(u64) + Send + 'static,
        failed: impl FnOnce(Fault) + Send + 'static,
    ) -> Result<Self, Fault> {
        let (orders, inbox) = mpsc::sync_channel(PENDING_WRITES_MAX);
        let mut files = Files {
            directory: directory.to_owned(),
            current: None,
        };
        thread::Builder::new()
            .name("intake".into())
            .spawn(move || {
                let _vital = Vital("intake");
                if let Err(fault) = files.serve(&inbox, &synced) {
                    failed(fault);
                }
            })
            .map_err(|error| Fault::new(ErrorCode::Internal, format!("intake thread: {error}")))?;
        Ok(Self { orders })
    }

    /// Queues a write; waits while too many are pending.
    pub(crate) fn append(&self, write: Write) {
        self.order(Order::Append(write));
    }

    /// A checkpoint is durable; writes below this number belong to closed groups.
    pub(crate) fn rotate(&self, below: u64) {
        self.order(Order::Rotate { below });
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::debug!("the intake has failed; nothing is accepted any more");
        }
    }
}

struct Files {
    directory: PathBuf,
    current: Option<SegmentWriter>,
}

impl Files {
    fn serve(&mut self, inbox: &mpsc::Receiver<Order>, synced: &impl Fn(u64)) -> Result<(), Fault> {
        while let Ok(first) = inbox.recv() {
            let mut last = None;
            // Whatever queued up while the disk was busy shares the next sync.
            for order in std::iter::once(first).chain(inbox.try_iter().take(PENDING_WRITES_MAX)) {
                match order {
                    Order::Append(write) => {
                        last = Some(write.number);
                        self.append(&write)?;
                    }
                    Order::Rotate { below } => self.rotate(below)?,
                }
            }
            if let Some(writer) = &mut self.current {
                writer.sync()?;
            }
            last.into_iter().for_each(synced);
        }
        Ok(())
    }

    fn append(&mut self, write: &Write) -> Result<(), Fault> {
        let path = self.directory.join(format!("{:012}.seg", write.number));
        let writer = match &mut self.current {
            Some(writer) => writer,
            empty => empty.insert(open(&path)?.0),
        };
        writer.append(&encode(write))?;
        Ok(())
    }

    fn rotate(&mut self, below: u64) -> Result<(), Fault> {
        if let Some(mut writer) = self.current.take() {
            seal(&mut writer)?;
        }
        let files = list(&self.directory)?;
        // A file ends where the next one begins.
        for pair in files.windows(2) {
            if pair[1].0 <= below {
                std::fs::remove_file(&pair[0].1).map_err(|e| disk_fault(&pair[0].1, &e))?;
            }
        }
        Ok(())
    }
}

/// Everything that is still there, in the order of the writes. None may be missing in between,
/// but for those that a repair gave up.
pub(crate) fn read_back(directory: &Path) -> Result<Vec<Write>, Fault> {
    let mut writes: Vec<Write> = Vec::new();
    // The next number, unless a repair has made that unknown.
    let mut due: Option<u64> = None;
    for (at, (first, path)) in list(directory)?.into_iter().enumerate() {
        // Opening for writing cuts off a torn tail, so that reading meets whole records only.
        // Further writes go to a new file.
        let (mut writer, recovery) = open(&path)?;
        seal(&mut writer)?;
        drop(writer);
        if at == 0 {
            due = Some(first);
        }
        if recovery.gaps > 0 {
            due = None;
        }
        if due.is_some_and(|due| due != first) {
            return Err(missing(&path, due, first));
        }
        let reader = SegmentReader::open(&path)?;
        for record in reader.records(SEGMENT_START) {
            let write = decode(&record?.payload).map_err(|error| disk_fault(&path, &error))?;
            if due.is_some_and(|due| due != write.number) {
                return Err(missing(&path, due, write.number));
            }
            due = (recovery.gaps == 0).then_some(write.number + 1);
            writes.push(write);
        }
    }
    Ok(writes)
}

/// Says in the file that it is complete.
fn seal(writer: &mut SegmentWriter) -> Result<(), Fault> {
    writer.seal().and_then(|()| writer.sync())?;
    Ok(())
}

fn missing(path: &Path, due: Option<u64>, found: u64) -> Fault {
    let (path, due) = (path.display(), due.unwrap_or_default());
    let message = format!(
        "{path} goes on with write {found}, but write {due} is due: writes that were \
                           acknowledged are missing"
    );
    Fault::new(ErrorCode::StoreFailed, message)
        .with_hint("restore the directory from a copy: a file of it was removed or cut short")
}

fn open(path: &Path) -> Result<(SegmentWriter, Recovery), Fault> {
    let (writer, recovery) = SegmentWriter::open(path)?;
    if recovery.lost_bytes > 0 {
        let (path, bytes) = (path.display(), recovery.lost_bytes);
        tracing::warn!(%path, bytes, "a tail that was never acknowledged was cut off");
    }
    if recovery.gaps > 0 {
        let (path, gaps) = (path.display(), recovery.gaps);
        tracing::warn!(%path, gaps, "a repair gave writes up: what they held is played again");
    }
    Ok((writer, recovery))
}

pub(crate) fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>, Fault> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| disk_fault(directory, &error))? {
        let path = entry.map_err(|error| disk_fault(directory, &error))?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "seg")) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn encode(write: &Write) -> Vec<u8> {
    let mut bytes = write.number.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(write.failed.len() as u32).to_le_bytes());
    write
        .failed
        .iter()
        .for_each(|index| bytes.extend_from_slice(&index.to_le_bytes()));
    write
        .kept
        .iter()
        .for_each(|trajectory| trajectory.encode_into(&mut bytes));
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Write, String> {
    let (number, rest) = bytes
        .split_first_chunk()
        .ok_or("a write without a number")?;
    let (failed, mut rest) = rest.split_first_chunk().ok_or("a write without a count")?;
    let mut write = Write {
        number: u64::from_le_bytes(*number),
        ..Write::default()
    };
    for _ in 0..u32::from_le_bytes(*failed) {
        let (index, tail) = rest
            .split_first_chunk()
            .ok_or("a write with too few indices")?;
        write.failed.push(u64::from_le_bytes(*index));
        rest = tail;
    }
    while !rest.is_empty() {
        let (trajectory, used) = Trajectory::decode(rest).map_err(|error| error.to_string())?;
        write.kept.push(Arc::new(trajectory));
        rest = &rest[used..];
    }
    Ok(write)
}

/// A segment's own fault says what to do about it; the rest is told with its place.
fn disk_fault(path: &Path, error: &impl std::fmt::Display) -> Fault {
    let message = format!("{}: {error}", path.display());
    let fault = Fault::new(ErrorCode::StoreFailed, message);
    let hint = "nothing acknowledged is lost; free the disk and run again with --resume";
    fault.with_hint(hint)
}

#[cfg(test)]
mod tests;
