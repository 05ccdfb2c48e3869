//! What is put into queues: checked, bounded, recorded.

use volley_protocol::client::ReplyBody;
use volley_protocol::codec::Blob;
use volley_protocol::job::{Extent, JobKind, JobState};
use volley_protocol::limits::JOB_ROLLOUTS_MAX;
use volley_protocol::{ErrorCode, Fault, JobId, Payloads};

use crate::clients::{Answer, no_job};
use crate::config::{RETRY_AFTER_MS, RETRY_AFTER_MS_UNKNOWN};
use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::extents::EXTENT_BYTES;
use crate::queue::Job;
use crate::record::Record;

/// Share of what waits that should be done before a client that found the queues full asks again.
const ROOM_SHARE: u64 = 16;

impl Coordinator {
    /// Adds an extent to a queue, with a payload for each of its groups or without.
    pub(crate) fn put(
        &mut self,
        id: JobId,
        extent: Extent,
        payloads: Option<Blob>,
        out: &mut Vec<Effect>,
    ) -> Answer {
        let job = self.jobs.get(id).ok_or_else(|| no_job(id))?;
        let accepted = |existed| Ok((ReplyBody::Accepted { job: id, existed }, true));
        if job.extents.knows(extent.put) {
            return accepted(true);
        }
        check(job, extent)?;
        let groups = extent.rollouts / u64::from(job.spec.group_size);
        let payloads = payloads
            .map(|blob| Payloads::parse(groups, blob))
            .transpose()?;
        if let Some(fault) = self.no_room(id, payloads.as_ref()) {
            let retry_after_ms = self.retry_after_ms();
            let busy = ReplyBody::Busy {
                fault,
                retry_after_ms,
            };
            return Ok((busy, false));
        }
        self.put_extent(id, extent, payloads, out);
        accepted(false)
    }

    /// Adds to a queue, or to a job that was just accepted.
    pub(crate) fn put_extent(
        &mut self,
        id: JobId,
        extent: Extent,
        payloads: Option<Payloads>,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        debug_assert_eq!(job.state, JobState::Open);
        let start = job.extend(extent, payloads.clone());
        let rollouts = job.total();
        let record = if payloads.is_some() {
            Record::Put {
                job: id,
                start,
                extent,
                payloads,
            }
        } else {
            Record::Extended {
                job: id,
                start,
                extent,
            }
        };
        persist(record, out);
        // Queues are the relay's.
        out.push(Effect::RelayGrew { job: id, rollouts });
        self.schedule(id, start, out);
        self.refresh(id);
    }

    /// Why a put has no room now; makes room where it can.
    fn no_room(&mut self, id: JobId, payloads: Option<&Payloads>) -> Option<Fault> {
        let full = |why: String| {
            let hint = "wait until some of it is done, or cancel what is not wanted";
            Some(Fault::new(ErrorCode::QueueFull, why).with_hint(hint))
        };
        let kept = self.jobs.kept();
        let count = payloads.map_or(0, |payloads| payloads.count() as u64);
        let bytes = payloads.map_or(0, |payloads| payloads.size_bytes() as u64);
        let (count_max, bytes_max) = (self.config.payloads_max, self.config.payload_bytes_max);
        if kept.payloads + count > count_max {
            return full(format!(
                "{} payloads wait, {count} more are over the bound of {count_max}",
                kept.payloads
            ));
        }
        if kept.bytes + bytes + EXTENT_BYTES > bytes_max {
            return full(format!(
                "what was put and waits takes {} bytes, {bytes} more are over the bound of {bytes_max}",
                kept.bytes
            ));
        }
        let job = self.jobs.get_mut(id)?;
        if job.extents.is_full() {
            let closed_upto = job.closed_watermark();
            if !job.extents.make_room(closed_upto) {
                return full(format!("queue {id} has too many open extents"));
            }
        }
        None
    }

    /// When there may be room: after [`ROOM_SHARE`] of what waits is done at today's pace.
    fn retry_after_ms(&self) -> u64 {
        let per_s = f64::from(self.stats.settled.per_second(self.now));
        if per_s <= 0.0 {
            return RETRY_AFTER_MS_UNKNOWN;
        }
        let due = (self.jobs.kept().payloads / ROOM_SHARE) as f64;
        let (least, most) = RETRY_AFTER_MS;
        ((due / per_s * 1_000.0) as u64).clamp(least, most)
    }
}

/// May this queue grow by this extent?
fn check(job: &Job, extent: Extent) -> Result<(), Fault> {
    let id = job.spec.job;
    let refuse = |code, why: String| Err(Fault::new(code, why));
    if job.spec.kind != JobKind::Queue {
        let why = format!("job {id} is not a queue");
        return refuse(ErrorCode::InvalidRequest, why);
    }
    if job.state != JobState::Open {
        return refuse(ErrorCode::JobCancelled, format!("queue {id} is closed"));
    }
    let size = job.spec.group_size;
    if extent.rollouts == 0 || !extent.rollouts.is_multiple_of(u64::from(size)) {
        let why = format!(
            "{} rollouts are no whole number of groups of {size}",
            extent.rollouts
        );
        return refuse(ErrorCode::InvalidRequest, why);
    }
    let total = job.total().saturating_add(extent.rollouts);
    let last = extent.first_instance.checked_add(extent.rollouts);
    if total > JOB_ROLLOUTS_MAX || last.is_none() {
        return refuse(ErrorCode::InvalidRequest, "the extent is too large".into());
    }
    Ok(())
}
