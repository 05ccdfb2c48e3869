//! Training runs: what is known of them, who works on them, who waits for news.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use volley_protocol::client::ReplyBody;
use volley_protocol::run::{RunInfo, RunState, RunSummary, StepReport};
use volley_protocol::{JobId, RunId};

use crate::config::{REPORTS_MAX, REPORTS_PER_REPLY_MAX, REWARD_HISTORY_MAX};
use crate::coordinator::Coordinator;
use crate::effect::{Effect, reply};
use crate::fit;
use crate::input::{Millis, SessionId};
use crate::sinks::SETTLE_IN_MS;

/// The learner that works on a run.
#[derive(Clone, Debug)]
pub(crate) struct Learner {
    pub(crate) session: SessionId,
    pub(crate) pid: u32,
    pub(crate) sink: SocketAddr,
    pub(crate) since: Millis,
    /// Jobs for which it has told, in this session, what is settled or admitted.
    pub(crate) reconciled: BTreeSet<JobId>,
    /// It was given time enough to tell: what it did not mention has nothing settled.
    pub(crate) settled_in: bool,
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) info: RunInfo,
    pub(crate) state: RunState,
    pub(crate) learner: Option<Learner>,
    pub(crate) lost_at: Option<Millis>,
    reports: VecDeque<StepReport>,
    reward_history: VecDeque<f32>,
}

/// A learner's session, from its opening.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LearnerSession {
    pub(crate) pid: u32,
    /// Known after `Register`.
    pub(crate) run: Option<RunId>,
}

/// A client that waits for news of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poll {
    pub(crate) session: SessionId,
    pub(crate) id: u32,
    pub(crate) run: RunId,
    pub(crate) after_step: u64,
    pub(crate) deadline: Millis,
}

/// All runs.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    pub(crate) map: BTreeMap<RunId, Run>,
    pub(crate) sessions: BTreeMap<SessionId, LearnerSession>,
    pub(crate) polls: Vec<Poll>,
}

impl Run {
    pub(crate) const fn new(info: RunInfo) -> Self {
        Self {
            info,
            state: RunState::Training,
            learner: None,
            lost_at: None,
            reports: VecDeque::new(),
            reward_history: VecDeque::new(),
        }
    }

    /// Takes a report. A step that is made again after a recovery replaces its first report.
    pub(crate) fn report(&mut self, report: StepReport) {
        while self
            .reports
            .back()
            .is_some_and(|last| last.step >= report.step)
        {
            self.reports.pop_back();
            self.reward_history.pop_back();
        }
        self.reward_history.push_back(report.reward_mean as f32);
        self.reports.push_back(report);
        if self.reports.len() > REPORTS_MAX {
            self.reports.pop_front();
        }
        if self.reward_history.len() > REWARD_HISTORY_MAX {
            self.reward_history.pop_front();
        }
        debug_assert!(self.reward_history.len() <= self.reports.len().max(REWARD_HISTORY_MAX));
    }

    pub(crate) fn last_report(&self) -> Option<&StepReport> {
        self.reports.back()
    }

    pub(crate) fn reports_len(&self) -> usize {
        self.reports.len()
    }

    /// The answer to a poll, when there is one before its deadline.
    pub(crate) fn news(&self, after_step: u64) -> Option<ReplyBody> {
        let has_new = self
            .reports
            .back()
            .is_some_and(|last| last.step > after_step);
        (has_new || self.state != RunState::Training).then(|| self.progress(after_step))
    }

    /// Reports after a step, oldest first.
    pub(crate) fn progress(&self, after_step: u64) -> ReplyBody {
        let first = self
            .reports
            .partition_point(|report| report.step <= after_step);
        let new = self.reports.iter().skip(first).take(REPORTS_PER_REPLY_MAX);
        ReplyBody::Progress {
            reports: fit::reports(new),
            state: self.state.clone(),
        }
    }

    pub(crate) fn summary(&self, step: u64) -> RunSummary {
        RunSummary {
            info: self.info.clone(),
            state: self.state.clone(),
            connected: self.learner.is_some(),
            step,
            last: self.last_report().cloned(),
            reward_history: self.reward_history.iter().copied().collect(),
        }
    }
}

impl Runs {
    /// The learner of a run, when it is connected.
    pub(crate) fn learner(&self, run: RunId) -> Option<&Learner> {
        self.map.get(&run)?.learner.as_ref()
    }

    /// The run that a session registered.
    pub(crate) fn of_session(&self, session: SessionId) -> Option<RunId> {
        self.sessions.get(&session)?.run
    }

    /// Takes out the polls that can be answered: by news, or because their time is over.
    pub(crate) fn answerable(&mut self, now: Millis) -> Vec<(Poll, ReplyBody)> {
        let mut answers = Vec::new();
        let runs = &self.map;
        self.polls.retain(|poll| {
            let Some(run) = runs.get(&poll.run) else {
                return false;
            };
            let answer = run.news(poll.after_step);
            let answer =
                answer.or_else(|| (poll.deadline <= now).then(|| run.progress(poll.after_step)));
            let keep = answer.is_none();
            answers.extend(answer.map(|body| (*poll, body)));
            keep
        });
        answers
    }
}

impl Coordinator {
    /// Learners that had time to say what they settled.
    pub(crate) fn settle_learners_in(&mut self) {
        let now = self.now;
        let mut settled = Vec::new();
        for (id, run) in &mut self.runs.map {
            if let Some(learner) = &mut run.learner
                && !learner.settled_in
                && now.since(learner.since) >= SETTLE_IN_MS
            {
                learner.settled_in = true;
                settled.push(*id);
            }
        }
        settled
            .into_iter()
            .for_each(|run| self.refresh_jobs_of(run));
    }

    /// Answers polls that have news, or no time left.
    pub(crate) fn answer_polls(&mut self, out: &mut Vec<Effect>) {
        for (poll, body) in self.runs.answerable(self.now) {
            out.push(reply(poll.session, poll.id, body, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volley_protocol::Digest;

    fn run() -> Run {
        Run::new(RunInfo {
            run: RunId(1),
            name: "r".into(),
            environment: "echo".into(),
            base: Digest::default(),
            steps_total: 3,
            rank: 8,
            retain_versions: 2,
        })
    }

    fn report(step: u64, reward_mean: f64) -> StepReport {
        StepReport {
            step,
            reward_mean,
            ..StepReport::default()
        }
    }

    #[test]
    fn a_step_made_again_replaces_its_report() {
        let mut run = run();
        for step in 1..=4 {
            run.report(report(step, 0.0));
        }
        run.report(report(3, 1.0));
        let ReplyBody::Progress { reports, .. } = run.progress(1) else {
            panic!("progress");
        };
        assert_eq!(reports.iter().map(|r| r.step).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(run.summary(3).reward_history, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn reports_are_bounded() {
        let mut run = run();
        for step in 1..=REPORTS_MAX as u64 + 5 {
            run.report(report(step, 0.0));
        }
        assert_eq!(run.reports_len(), REPORTS_MAX);
        assert_eq!(run.summary(1).reward_history.len(), REWARD_HISTORY_MAX);
        assert!(run.news(REPORTS_MAX as u64 + 5).is_none());
        assert!(run.news(0).is_some());
    }
}
