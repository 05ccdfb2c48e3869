//! Versions on their way: published, announced, collected.

use std::collections::BTreeSet;

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::learner::ToLearner;
use volley_protocol::limits::BATCH_ENTRIES_MAX;
use volley_protocol::worker::ToWorker;
use volley_protocol::{AdapterVersion, Digest, ErrorCode, Fault, RunId};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::input::SessionId;
use crate::record::Record;

impl Coordinator {
    pub(crate) fn published(
        &mut self,
        session: SessionId,
        run: RunId,
        entry: AdapterEntry,
        out: &mut Vec<Effect>,
    ) {
        let result = if entry.version.run == run {
            self.registry.publish(entry)
        } else {
            Err(Fault::new(
                ErrorCode::Forbidden,
                "the version is another run's",
            ))
        };
        match result {
            Ok(false) => {}
            Ok(true) => {
                persist(Record::Published(entry), out);
                self.announce(run, entry.version, out);
                self.refresh_jobs_of(run);
                self.collect_garbage(run, None, out);
            }
            Err(fault) => {
                self.notice(format!("a version was refused: {fault}"));
                out.push(Effect::CloseSession { session, fault });
            }
        }
    }

    /// Tells the run's workers of a version, and where its learner listens.
    pub(crate) fn announce(&self, run: RunId, version: AdapterVersion, out: &mut Vec<Effect>) {
        let Some(source) = self.runs.learner(run).map(|learner| learner.sink) else {
            return;
        };
        let base = self.runs.map.get(&run).map(|run| run.info.base);
        let message = ToWorker::Announce { version, source };
        self.say_workers(&message, |worker| Some(worker.base) == base, out);
    }

    /// Forgets versions that nobody needs, and has their bytes deleted everywhere.
    pub(crate) fn collect_garbage(
        &mut self,
        run: RunId,
        listed: Option<&BTreeSet<AdapterVersion>>,
        out: &mut Vec<Effect>,
    ) {
        let Some(retain) = self.runs.map.get(&run).map(|run| run.info.retain_versions) else {
            return;
        };
        let goes = self.registry.collectable(run, retain, listed);
        self.forget_versions(run, &goes, out);
    }

    /// Versions go: recorded first, so that no later life pins what was deleted.
    pub(crate) fn forget_versions(
        &mut self,
        run: RunId,
        goes: &[AdapterVersion],
        out: &mut Vec<Effect>,
    ) {
        let mut digests: Vec<Digest> = Vec::new();
        for version in goes {
            persist(Record::AdapterForgotten { version: *version }, out);
            if self.registry.forget(*version) {
                digests.push(version.digest);
            }
        }
        for digests in digests.chunks(BATCH_ENTRIES_MAX) {
            self.say_learner(run, ToLearner::Collect(digests.to_vec()), true, out);
            let has_one = |live: &BTreeSet<Digest>| digests.iter().any(|d| live.contains(d));
            let message = ToWorker::Retire(digests.to_vec());
            self.say_workers(&message, |worker| has_one(&worker.live), out);
        }
        for (_, worker) in self.roster.iter_mut() {
            worker.live.retain(|digest| !digests.contains(digest));
        }
    }
}
