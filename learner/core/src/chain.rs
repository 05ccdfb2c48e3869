//! The versions of the run: one chain by parent digest.

use volley_protocol::adapter::{AdapterEntry, AdapterVersion};
use volley_protocol::limits::REGISTER_VERSIONS_MAX;
use volley_protocol::{Digest, ErrorCode, Fault, RunId};

/// Every version whose bytes are on the disk, oldest first. Never empty.
#[derive(Debug)]
pub(crate) struct Chain {
    entries: Vec<AdapterEntry>,
    head: AdapterEntry,
}

impl Chain {
    /// The chain as it was found on the disk.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID` when it is empty, of another run, or no chain.
    pub(crate) fn restored(run: RunId, entries: Vec<AdapterEntry>) -> Result<Self, Fault> {
        let invalid = |what: String| Err(Fault::new(ErrorCode::CheckpointInvalid, what));
        let Some(head) = entries.last().copied() else {
            return invalid("there is no adapter to train".into());
        };
        if let Some(other) = entries.iter().find(|e| e.version.run != run) {
            return invalid(format!("{:?} is of another run", other.version));
        }
        if let Some(pair) = entries.windows(2).find(|pair| !follows(&pair[0], &pair[1])) {
            let (child, parent) = (pair[1].version, pair[0].version);
            return invalid(format!("{child:?} does not follow {parent:?}"));
        }
        Ok(Self { entries, head })
    }

    pub(crate) const fn head(&self) -> &AdapterEntry {
        &self.head
    }

    /// The newest versions, oldest first.
    pub(crate) fn newest(&self) -> Vec<AdapterEntry> {
        let from = self.entries.len().saturating_sub(REGISTER_VERSIONS_MAX);
        self.entries[from..].to_vec()
    }

    pub(crate) fn contains(&self, version: &AdapterVersion) -> bool {
        // The newest are asked for most.
        self.entries.iter().rev().any(|e| e.version == *version)
    }

    /// Adds the version that a step made of the head.
    pub(crate) fn push(&mut self, entry: AdapterEntry) {
        assert_eq!(entry.version.step, self.head.version.step + 1, "one step");
        assert_eq!(entry.parent, self.head.version.digest, "of the head");
        assert!(follows(&self.head, &entry), "one chain");
        self.entries.push(entry);
        self.head = entry;
    }

    /// Takes out what may be deleted: never the head, nor what has its bytes. Gives what was
    /// there, and what is not (any more).
    pub(crate) fn collect(&mut self, digests: &[Digest]) -> (Vec<Digest>, Vec<Digest>) {
        let head = self.head.version.digest;
        let gone = digests.iter().copied().filter(|digest| *digest != head);
        let gone: Vec<_> = gone.collect();
        let here = |digest: &Digest| self.entries.iter().any(|e| e.version.digest == *digest);
        let deleted = gone.iter().copied().filter(here).collect();
        self.entries.retain(|e| !gone.contains(&e.version.digest));
        debug_assert_eq!(self.entries.last(), Some(&self.head));
        (deleted, gone)
    }

    /// Versions form one chain by parent digest.
    pub(crate) fn check(&self) {
        assert_eq!(
            self.entries.last(),
            Some(&self.head),
            "the head is the last"
        );
        let mut pairs = self.entries.windows(2);
        assert!(pairs.all(|pair| follows(&pair[0], &pair[1])), "one chain");
    }
}

/// May `child` stand behind `parent`? Collected versions leave gaps; neighbours name each other.
fn follows(parent: &AdapterEntry, child: &AdapterEntry) -> bool {
    let (old, new) = (&parent.version, &child.version);
    let neighbours = new.step == old.step + 1;
    new.run == old.run
        && new.lineage >= old.lineage
        && new.step > old.step
        && (!neighbours || child.parent == old.digest || new.lineage > old.lineage)
}
