//! What learners say: runs, versions, admission, verdicts.

use std::collections::BTreeSet;

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::job::{JobKind, JobState};
use volley_protocol::learner::{FromLearner, ReceiptEntry, ToLearner};
use volley_protocol::limits::{BATCH_ENTRIES_MAX, REGISTER_VERSIONS_MAX};
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::{AdapterVersion, ErrorCode, Fault, JobId, JobSpec, RunId, SinkRef};

use crate::config::RUNS_MAX;
use crate::coordinator::Coordinator;
use crate::effect::{Effect, close, persist};
use crate::input::SessionId;
use crate::record::Record;
use crate::runs::{Learner, LearnerSession, Run};

impl Coordinator {
    pub(crate) fn learner_up(&mut self, session: SessionId, pid: u32) {
        let before = self
            .runs
            .sessions
            .insert(session, LearnerSession { pid, run: None });
        debug_assert!(before.is_none(), "session ids are never used twice");
    }

    pub(crate) fn learner_down(&mut self, session: SessionId) {
        let Some(run_id) = self.runs.sessions.remove(&session).and_then(|s| s.run) else {
            return;
        };
        let Some(run) = self.runs.map.get_mut(&run_id) else {
            return;
        };
        if run.learner.as_ref().map(|learner| learner.session) != Some(session) {
            return; // A newer session has replaced it.
        }
        run.learner = None;
        run.lost_at = Some(self.now);
        let name = run.info.name.clone();
        self.refresh_jobs_of(run_id);
        self.notice(format!("the learner of {name} is gone"));
    }

    pub(crate) fn learner_said(
        &mut self,
        session: SessionId,
        message: FromLearner,
        out: &mut Vec<Effect>,
    ) {
        if let FromLearner::Register {
            info,
            sink,
            versions,
            state,
        } = message
        {
            let learner = Learner {
                session,
                pid: self
                    .runs
                    .sessions
                    .get(&session)
                    .map_or(0, |session| session.pid),
                sink,
                since: self.now,
                reconciled: BTreeSet::new(),
                settled_in: false,
            };
            self.register_learner(learner, info, &versions, state.cut(), out);
            return;
        }
        let Some(run) = self.runs.of_session(session) else {
            if self.runs.sessions.contains_key(&session) {
                out.push(close(
                    session,
                    ErrorCode::InvalidRequest,
                    "Register is the first message",
                ));
            }
            return;
        };
        match message {
            FromLearner::Register { .. } => {}
            FromLearner::Submit(spec) => self.learner_submits(session, run, spec, out),
            FromLearner::Reconcile {
                job,
                accepted,
                failed,
            } => {
                if self.is_sink_of(run, job) {
                    let (accepted, failed) =
                        (accepted.into_iter().collect(), failed.into_iter().collect());
                    self.mark_reconciled(run, job);
                    self.reconcile(job, &accepted, &failed, out);
                    let settled = accepted.ranges().chain(failed.ranges()).collect();
                    self.repeat_failures(run, job, &settled, out);
                    self.refresh(job);
                    let state = self.runs.map.get(&run).map(|run| &run.state);
                    if state == Some(&RunState::Finished) {
                        self.end_training(run, out);
                    }
                }
            }
            FromLearner::Admit { job, upto } => self.admit(run, job, upto, out),
            FromLearner::Receipt { seq, entries } => self.receipt(run, seq, &entries, out),
            FromLearner::Published(entry) => self.published(session, run, entry, out),
            FromLearner::Progress(report) => {
                if let Some(run) = self.runs.map.get_mut(&run) {
                    run.report(report.cut());
                }
                self.answer_polls(out);
            }
            FromLearner::State(state) => self.run_state(run, state.cut(), out),
            FromLearner::Collected(digests) => self.registry.collected(run, &digests),
        }
    }

    fn register_learner(
        &mut self,
        learner: Learner,
        info: RunInfo,
        versions: &[AdapterEntry],
        state: RunState,
        out: &mut Vec<Effect>,
    ) {
        let (id, session) = (info.run, learner.session);
        if let Err(fault) = self.may_register(session, &info, versions) {
            out.push(Effect::CloseSession { session, fault });
            return;
        }
        let listed_head = versions
            .iter()
            .map(|entry| (entry.version.lineage, entry.version.step))
            .max();
        let lost = self.registry.head(id);
        let lost = lost.filter(|head| Some((head.lineage, head.step)) > listed_head);
        if let Some(AdapterVersion { lineage, step, .. }) = lost {
            let name = &info.name;
            let message = format!(
                "the learner of {name} has no record of version {lineage}.{step}, which it \
                 published: it goes on from the one before"
            );
            let hint = "check the learner's disk: volley journal verify RUN_DIR";
            self.report(
                Fault::new(ErrorCode::ResultsLost, message).with_hint(hint),
                out,
            );
        }
        let new = match self.registry.listed(id, versions) {
            Ok(new) => new,
            Err(fault) => {
                self.notice(format!("a learner was refused: {fault}"));
                out.push(Effect::CloseSession { session, fault });
                return;
            }
        };
        if self.runs.map.get(&id).map(|run| &run.info) != Some(&info) {
            persist(Record::RunRegistered(info.clone()), out);
        }
        new.into_iter()
            .for_each(|entry| persist(Record::Published(entry), out));
        if let Some(known) = self.runs.sessions.get_mut(&session) {
            known.run = Some(id);
        }
        let run = self
            .runs
            .map
            .entry(id)
            .or_insert_with(|| Run::new(info.clone()));
        run.info = info;
        run.lost_at = None;
        let old = run.learner.replace(learner);
        let name = run.info.name.clone();
        if let Some(old) = old.filter(|old| old.session != session) {
            self.runs.sessions.remove(&old.session);
            let why = "a newer session of the run's learner is open";
            out.push(close(old.session, ErrorCode::PeerLost, why));
        }
        self.run_state(id, state, out);
        let listed: BTreeSet<AdapterVersion> = versions.iter().map(|entry| entry.version).collect();
        self.collect_garbage(id, Some(&listed), out);
        for digests in self.registry.to_collect(id).chunks(BATCH_ENTRIES_MAX) {
            self.say_learner(id, ToLearner::Collect(digests.to_vec()), true, out);
        }
        // Workers that hold results for a former life of this learner hear where it listens now;
        // when nothing is left to lease, nothing else tells them.
        if let Some(head) = self.registry.head(id) {
            self.announce(id, head, out);
        }
        self.refresh_jobs_of(id);
        self.notice(format!("the learner of {name} is here"));
    }

    fn may_register(
        &self,
        session: SessionId,
        info: &RunInfo,
        versions: &[AdapterEntry],
    ) -> Result<(), Fault> {
        info.validate()?;
        let run = info.run;
        let refuse = |why: &str| Err(Fault::new(ErrorCode::InvalidRequest, why));
        match self.runs.sessions.get(&session).map(|session| session.run) {
            None => return refuse("the session is closed"),
            Some(Some(other)) if other != run => return refuse("a session has one run"),
            Some(_) => {}
        }
        if versions.iter().any(|entry| entry.version.run != run) {
            return refuse("a version of another run is listed");
        }
        if versions.len() > REGISTER_VERSIONS_MAX {
            return refuse("too many versions are listed");
        }
        if self.runs.map.len() >= RUNS_MAX && !self.runs.map.contains_key(&run) {
            return refuse("too many runs are known");
        }
        Ok(())
    }

    fn learner_submits(
        &mut self,
        session: SessionId,
        run: RunId,
        spec: JobSpec,
        out: &mut Vec<Effect>,
    ) {
        let job = spec.job;
        let result = if spec.sink == SinkRef::Learner(run) {
            self.accept_job(spec, out).map(|_| ())
        } else {
            let why = "a learner submits jobs that it is the sink of";
            Err(Fault::new(ErrorCode::Forbidden, why))
        };
        let cancelled = self
            .jobs
            .get(job)
            .is_some_and(|job| job.state == JobState::Cancelled);
        let refused = match result {
            Ok(()) if cancelled => Some(crate::sinks::cancelled()),
            Ok(()) => None,
            Err(fault) => Some(fault),
        };
        out.push(Effect::ToLearner {
            session,
            message: ToLearner::Submitted { job, refused },
            after_commit: true,
        });
    }

    fn is_sink_of(&self, run: RunId, job: JobId) -> bool {
        self.jobs
            .get(job)
            .is_some_and(|job| job.spec.sink == SinkRef::Learner(run))
    }

    fn mark_reconciled(&mut self, run: RunId, job: JobId) {
        let run = self.runs.map.get_mut(&run);
        if let Some(learner) = run.and_then(|run| run.learner.as_mut()) {
            learner.reconciled.insert(job);
        }
    }

    fn admit(&mut self, run: RunId, id: JobId, upto: u64, out: &mut Vec<Effect>) {
        if !self.is_sink_of(run, id) {
            return;
        }
        self.mark_reconciled(run, id);
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let before = job.admitted();
        if job.admit(upto) {
            persist(Record::Admitted { job: id, upto }, out);
            self.schedule(id, before, out);
        }
        self.refresh(id);
    }

    fn receipt(&mut self, run: RunId, seq: u64, entries: &[ReceiptEntry], out: &mut Vec<Effect>) {
        let own = entries
            .iter()
            .filter(|entry| self.is_sink_of(run, entry.rollout.job));
        let own: Vec<_> = own.map(|entry| (entry.rollout, entry.verdict)).collect();
        self.settle(&own, out);
        self.say_learner(run, ToLearner::ReceiptAck { upto: seq }, true, out);
    }

    fn run_state(&mut self, id: RunId, state: RunState, out: &mut Vec<Effect>) {
        let Some(run) = self.runs.map.get_mut(&id) else {
            return;
        };
        if run.state != state {
            run.state = state.clone();
            persist(
                Record::RunState {
                    run: id,
                    state: state.clone(),
                },
                out,
            );
        }
        if state == RunState::Finished {
            self.end_training(id, out);
        }
        self.answer_polls(out);
    }

    /// The last step is made: what was leased ahead of it is wanted by nobody.
    fn end_training(&mut self, run: RunId, out: &mut Vec<Effect>) {
        let open = self.jobs.iter().filter(|(_, job)| {
            let trains = job.spec.kind == JobKind::Train && job.state == JobState::Open;
            trains && job.spec.sink == SinkRef::Learner(run)
        });
        let open: Vec<JobId> = open.map(|(job, _)| *job).collect();
        for job in open {
            self.close_open_rollouts(job, JobState::Done, out);
        }
    }
}
