//! What follows when an attempt ends without a result.

use volley_protocol::learner::{ToLearner, Verdict};
use volley_protocol::{AttemptId, Fault, JobId, RolloutId, SinkRef};

use crate::coordinator::Coordinator;
use crate::effect::Effect;
use crate::place::Place;
use crate::retry::{self, Ending, Next, Tally};

/// Longest text of a failure that summaries show, in characters: a thousand summaries fit a frame.
pub(crate) const SUMMARY_TEXT_MAX: usize = 160;

impl Coordinator {
    /// The lease of this attempt is gone; its rollout waits, or is given up.
    pub(crate) fn attempt_ended(
        &mut self,
        attempt: AttemptId,
        ending: Ending,
        out: &mut Vec<Effect>,
    ) {
        let RolloutId { job: id, index } = attempt.rollout;
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let Some(open) = job.open.get_mut(&index) else {
            return;
        };
        let held = matches!(&open.place, Place::Leased { attempt: held, .. } if *held == attempt);
        debug_assert!(held, "only the leased attempt ends");
        if !held {
            return;
        }
        match &ending {
            Ending::Lost { fault } => {
                open.losses += 1;
                job.last_failure = Some((fault.code, summary(&fault.message)));
            }
            Ending::Returned { .. } => open.returns += 1,
            Ending::Failed { fault, .. } => {
                open.failures += 1;
                if attempt.epoch == self.epoch {
                    open.dead_upto = open.dead_upto.max(attempt.number);
                }
                job.last_failure = Some((fault.code, summary(&fault.message)));
            }
        }
        let tally = Tally {
            losses: open.losses,
            failures: open.failures,
            returns: open.returns,
        };
        match retry::next(&job.spec.retry, attempt, tally, &ending) {
            Next::Again { wait_ms: 0 } => {
                open.ready_at = self.now;
                job.move_to(index, Place::Ready);
            }
            Next::Again { wait_ms } => {
                let until = self.now.after(wait_ms);
                job.move_to(index, Place::Backoff { until });
                self.jobs.wait(until, attempt.rollout);
            }
            Next::GiveUp(fault) => self.give_up(id, vec![(index, fault)], out),
        }
        self.refresh(id);
    }

    /// No further attempts of these open rollouts, none of which is leased to a worker that was not
    /// told. The relay records it at once; a learner is told until it has settled it.
    pub(crate) fn give_up(
        &mut self,
        id: JobId,
        rollouts: Vec<(u64, Fault)>,
        out: &mut Vec<Effect>,
    ) {
        let mut settled = Vec::new();
        for (index, fault) in rollouts {
            self.bury(id, index, &fault, out);
            let Some(job) = self.jobs.get_mut(id) else {
                return;
            };
            job.last_failure = Some((fault.code, summary(&fault.message)));
            let rollout = RolloutId { job: id, index };
            match job.spec.sink {
                SinkRef::Relay => {
                    // Ended as a lease ends, so that settling finds nothing to revoke.
                    job.move_to(index, Place::Ready);
                    out.push(Effect::RelayFailed { rollout, fault });
                    settled.push((rollout, Verdict::Failed));
                }
                SinkRef::Learner(run) => {
                    job.move_to(index, Place::Failing(Box::new(fault.clone())));
                    self.say_learner(run, ToLearner::RolloutFailed { rollout, fault }, false, out);
                }
            }
        }
        self.settle(&settled, out);
    }
}

/// A text short enough for a list.
pub(crate) fn summary(text: &str) -> String {
    text.chars().take(SUMMARY_TEXT_MAX).collect()
}
