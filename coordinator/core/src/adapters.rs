//! Versions of adapters: which exist, which are pinned, which may go.
//!
//! A version is *kept* from its publication until nobody pins it and retention does not want it;
//! then it is *forgotten*: never played again, its bytes deleted by the learner when it can be told.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::adapter::AdapterEntry;
use volley_protocol::{AdapterVersion, Digest, ErrorCode, Fault, RunId};

/// Lineage, then step: the order in which versions follow each other.
type Place = (u32, u64);

/// Versions of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions {
    kept: BTreeMap<Place, AdapterEntry>,
    /// Not to be used any more, but perhaps still on the learner's disk.
    forgotten: BTreeSet<AdapterVersion>,
}

/// Versions of all runs, and who pins them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    runs: BTreeMap<RunId, Versions>,
    pins: BTreeMap<AdapterVersion, u64>,
}

impl Versions {
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &AdapterEntry> + '_ {
        self.kept.values()
    }

    pub(crate) fn head(&self) -> Option<&AdapterEntry> {
        self.kept.values().next_back()
    }

    pub(crate) fn contains(&self, version: &AdapterVersion) -> bool {
        let found = self.kept.get(&(version.lineage, version.step));
        found.is_some_and(|entry| entry.version == *version)
    }

    pub(crate) const fn forgotten(&self) -> &BTreeSet<AdapterVersion> {
        &self.forgotten
    }

    pub(crate) fn has_digest(&self, digest: &Digest) -> bool {
        self.kept
            .values()
            .any(|entry| entry.version.digest == *digest)
    }

    /// Does `entry` continue the chain? False: it is known already.
    fn accept(&self, entry: &AdapterEntry) -> Result<bool, Fault> {
        let version = entry.version;
        let refuse = |why: String| {
            let text = format!("version {}.{}: {why}", version.lineage, version.step);
            Err(Fault::new(ErrorCode::CheckpointInvalid, text))
        };
        if let Some(known) = self.kept.get(&(version.lineage, version.step)) {
            return if known.version.digest == version.digest {
                Ok(false)
            } else {
                refuse(
                    "it was published with another digest; a recovery that does not reproduce \
                        a digest raises the lineage"
                        .into(),
                )
            };
        }
        let Some(head) = self.head() else {
            return Ok(true);
        };
        if version.lineage < head.version.lineage {
            return refuse(format!(
                "lineage {} has replaced its lineage",
                head.version.lineage
            ));
        }
        if version.lineage == head.version.lineage {
            if version.step < head.version.step {
                return refuse(format!("step {} was published before", head.version.step));
            }
            if entry.parent != head.version.digest {
                return refuse("its parent is not the head of its lineage".into());
            }
        } else if version.step > 0 && !self.has_digest(&entry.parent) {
            return refuse("no kept version is its parent".into());
        }
        Ok(true)
    }
}

impl Registry {
    pub(crate) fn of(&self, run: RunId) -> Option<&Versions> {
        self.runs.get(&run)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RunId, &Versions)> {
        self.runs.iter()
    }

    pub(crate) fn head(&self, run: RunId) -> Option<AdapterVersion> {
        self.of(run)?.head().map(|entry| entry.version)
    }

    pub(crate) fn contains(&self, version: &AdapterVersion) -> bool {
        self.of(version.run)
            .is_some_and(|run| run.contains(version))
    }

    /// Takes a published version; false when it was known.
    ///
    /// # Errors
    /// It does not continue the chain of its lineage.
    pub(crate) fn publish(&mut self, entry: AdapterEntry) -> Result<bool, Fault> {
        let run = self.runs.entry(entry.version.run).or_default();
        if run.forgotten.contains(&entry.version) || !run.accept(&entry)? {
            return Ok(false);
        }
        run.kept
            .insert((entry.version.lineage, entry.version.step), entry);
        Ok(true)
    }

    /// Takes what a learner lists when it connects: it may begin anywhere in a chain and have
    /// gaps. Gives back what is new, or refuses what contradicts the record.
    pub(crate) fn listed(
        &mut self,
        run: RunId,
        entries: &[AdapterEntry],
    ) -> Result<Vec<AdapterEntry>, Fault> {
        let versions = self.runs.entry(run).or_default();
        let is_new = |entry: &&AdapterEntry| {
            !versions.forgotten.contains(&entry.version) && !versions.contains(&entry.version)
        };
        let new: Vec<_> = entries.iter().filter(is_new).copied().collect();
        let clash = new.iter().find(|e| {
            versions
                .kept
                .contains_key(&(e.version.lineage, e.version.step))
        });
        if let Some(entry) = clash {
            return versions.accept(entry).map(|_| Vec::new());
        }
        for entry in &new {
            versions
                .kept
                .insert((entry.version.lineage, entry.version.step), *entry);
        }
        let listed: BTreeSet<_> = entries.iter().map(|entry| entry.version).collect();
        versions
            .forgotten
            .retain(|version| listed.contains(version));
        Ok(new)
    }

    /// One more user of a version.
    pub(crate) fn pin(&mut self, version: AdapterVersion) {
        *self.pins.entry(version).or_default() += 1;
    }

    /// One user less.
    pub(crate) fn unpin(&mut self, version: AdapterVersion) {
        let count = self.pins.get_mut(&version);
        debug_assert!(count.is_some(), "every unpin follows its pin");
        if let Some(count) = count {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&version);
            }
        }
    }

    pub(crate) const fn pins(&self) -> &BTreeMap<AdapterVersion, u64> {
        &self.pins
    }

    /// Kept versions that neither retention, nor a pin, nor being the head protects.
    /// With `listed`, also those that the learner has not got any more.
    pub(crate) fn collectable(
        &self,
        run: RunId,
        retain: u32,
        listed: Option<&BTreeSet<AdapterVersion>>,
    ) -> Vec<AdapterVersion> {
        let Some(versions) = self.of(run) else {
            return Vec::new();
        };
        let old = versions.kept.len().saturating_sub(retain.max(1) as usize);
        let in_age_order = versions.kept.values().enumerate();
        let goes = in_age_order.filter(|(age, entry)| {
            let gone = listed.is_some_and(|listed| !listed.contains(&entry.version));
            (*age < old || gone) && !self.pins.contains_key(&entry.version)
        });
        goes.map(|(_, entry)| entry.version).collect()
    }

    /// Forgets a version. True when its digest is not the name of another kept one: equal bytes
    /// (a step without gradient) must outlive the first of their names.
    pub(crate) fn forget(&mut self, version: AdapterVersion) -> bool {
        debug_assert!(!self.pins.contains_key(&version), "pinned versions stay");
        let Some(versions) = self.runs.get_mut(&version.run) else {
            return false;
        };
        if versions.contains(&version) {
            versions.kept.remove(&(version.lineage, version.step));
            versions.forgotten.insert(version);
        }
        !versions.has_digest(&version.digest)
    }

    /// Replays a `Published` record.
    pub(crate) fn replay(&mut self, run: RunId, entry: AdapterEntry) {
        let versions = self.runs.entry(run).or_default();
        let place = (entry.version.lineage, entry.version.step);
        versions.kept.insert(place, entry);
        debug_assert_eq!(entry.version.run, run);
    }

    /// Replays an `AdapterForgotten` record.
    pub(crate) fn forget_unchecked(&mut self, version: AdapterVersion) {
        let versions = self.runs.entry(version.run).or_default();
        if versions.contains(&version) {
            versions.kept.remove(&(version.lineage, version.step));
        }
        versions.forgotten.insert(version);
    }

    /// The learner has deleted these bytes.
    pub(crate) fn collected(&mut self, run: RunId, digests: &[Digest]) {
        if let Some(versions) = self.runs.get_mut(&run) {
            versions
                .forgotten
                .retain(|version| !digests.contains(&version.digest));
        }
    }

    /// Digests that the learner should delete, and has not said it did.
    pub(crate) fn to_collect(&self, run: RunId) -> Vec<Digest> {
        let Some(versions) = self.of(run) else {
            return Vec::new();
        };
        let digests: BTreeSet<_> = versions.forgotten.iter().map(|v| v.digest).collect();
        digests
            .into_iter()
            .filter(|digest| !versions.has_digest(digest))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId(1);

    fn entry(lineage: u32, step: u64, name: &str, parent: &str) -> AdapterEntry {
        let digest = |text: &str| match text {
            "" => Digest::default(),
            text => Digest::of(text.as_bytes()),
        };
        AdapterEntry {
            version: AdapterVersion {
                run: RUN,
                lineage,
                step,
                digest: digest(name),
            },
            parent: digest(parent),
            bytes: 1,
        }
    }

    #[test]
    fn a_chain_is_a_chain() {
        let mut registry = Registry::default();
        assert_eq!(registry.publish(entry(0, 0, "a", "")), Ok(true));
        assert_eq!(registry.publish(entry(0, 1, "b", "a")), Ok(true));
        assert_eq!(registry.publish(entry(0, 1, "b", "a")), Ok(false));
        assert!(
            registry.publish(entry(0, 1, "x", "a")).is_err(),
            "two names for one step"
        );
        assert!(registry.publish(entry(0, 2, "c", "a")).is_err(), "a fork");
        assert_eq!(registry.publish(entry(1, 1, "x", "a")), Ok(true));
        assert!(
            registry.publish(entry(0, 2, "c", "b")).is_err(),
            "an abandoned lineage"
        );
        assert_eq!(
            registry.head(RUN).map(|v| (v.lineage, v.step)),
            Some((1, 1))
        );
    }

    #[test]
    fn pins_and_retention_protect() {
        let mut registry = Registry::default();
        let names = ["a", "b", "c", "d"];
        for (step, name) in names.iter().enumerate() {
            let parent = step.checked_sub(1).map_or("", |before| names[before]);
            registry
                .publish(entry(0, step as u64, name, parent))
                .expect("a chain");
        }
        let b = entry(0, 1, "b", "a").version;
        registry.pin(b);
        let steps = |registry: &Registry| -> Vec<u64> {
            registry
                .collectable(RUN, 1, None)
                .iter()
                .map(|v| v.step)
                .collect()
        };
        assert_eq!(steps(&registry), [0, 2]);
        registry.unpin(b);
        assert_eq!(steps(&registry), [0, 1, 2]);
        assert!(registry.forget(b));
        assert!(!registry.contains(&b));
        assert_eq!(registry.to_collect(RUN), [b.digest]);
        assert_eq!(
            registry.publish(entry(0, 1, "b", "a")),
            Ok(false),
            "forgotten stays forgotten"
        );
        registry.collected(RUN, &[b.digest]);
        assert!(registry.to_collect(RUN).is_empty());
    }

    #[test]
    fn equal_bytes_outlive_their_first_name() {
        let mut registry = Registry::default();
        registry.publish(entry(0, 0, "a", "")).expect("first");
        registry
            .publish(entry(0, 1, "a", "a"))
            .expect("a step without gradient");
        assert!(!registry.forget(entry(0, 0, "a", "").version));
        assert!(registry.to_collect(RUN).is_empty());
    }

    #[test]
    fn a_list_may_have_gaps_but_no_contradictions() {
        let mut registry = Registry::default();
        let list = [entry(0, 3, "d", "c"), entry(0, 9, "j", "i")];
        assert_eq!(registry.listed(RUN, &list).map(|new| new.len()), Ok(2));
        assert_eq!(registry.listed(RUN, &list).map(|new| new.len()), Ok(0));
        assert!(registry.listed(RUN, &[entry(0, 9, "z", "i")]).is_err());
    }
}
