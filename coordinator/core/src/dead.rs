//! Dead letters: rollouts that were given up, with what was the matter. A bounded list for people;
//! what is closed how is the ledger's.

use std::collections::{BTreeMap, VecDeque};

use volley_protocol::client::ReplyBody;
use volley_protocol::codec::Blob;
use volley_protocol::dead::DeadLetter;
use volley_protocol::job::Extent;
use volley_protocol::limits::{
    DEAD_LETTER_TEXT_BYTES_MAX, DEAD_LETTERS_MAX, DEAD_LETTERS_PER_JOB_MAX, NAME_BYTES_MAX,
};
use volley_protocol::payload::PayloadWriter;
use volley_protocol::{ErrorCode, Fault, JobId, JobKind, JobSpec, Payloads, SinkRef};

use crate::coordinator::Coordinator;
use crate::effect::{Effect, persist};
use crate::place::Open;
use crate::record::Record;

/// The newest dead letters of each job.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeadLetters {
    jobs: BTreeMap<JobId, VecDeque<DeadLetter>>,
    total: usize,
}

impl DeadLetters {
    /// Keeps a letter, or its newer state. The oldest of the job goes when it has too many; when
    /// there are too many in all, the oldest of the job that has most.
    pub(crate) fn keep(&mut self, job: JobId, letter: DeadLetter) {
        let letters = self.jobs.entry(job).or_default();
        if let Some(known) = letters.iter_mut().find(|l| l.index == letter.index) {
            *known = letter;
            return;
        }
        letters.push_back(letter);
        self.total += 1;
        if letters.len() > DEAD_LETTERS_PER_JOB_MAX {
            letters.pop_front();
            self.total -= 1;
        }
        if self.total > DEAD_LETTERS_MAX {
            let fullest = self
                .jobs
                .iter_mut()
                .max_by_key(|(_, letters)| letters.len());
            if let Some((_, letters)) = fullest
                && letters.pop_front().is_some()
            {
                self.total -= 1;
            }
        }
        debug_assert!(self.total <= DEAD_LETTERS_MAX);
    }

    /// Letters of a job, oldest first.
    pub(crate) fn of(&self, job: JobId) -> impl Iterator<Item = &DeadLetter> {
        self.jobs.get(&job).into_iter().flatten()
    }

    /// All letters, by job.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (JobId, &DeadLetter)> {
        let jobs = self.jobs.iter();
        jobs.flat_map(|(job, letters)| letters.iter().map(|letter| (*job, letter)))
    }

    /// How many there are in all.
    pub(crate) const fn total(&self) -> usize {
        self.total
    }

    /// How many the job with most of them has.
    pub(crate) fn fullest(&self) -> usize {
        self.jobs.values().map(VecDeque::len).max().unwrap_or(0)
    }

    /// The sink accepted these after all.
    pub(crate) fn revive(&mut self, job: JobId, accepted: &[(u64, u64)]) {
        let Some(letters) = self.jobs.get_mut(&job) else {
            return;
        };
        let before = letters.len();
        let within = |index: u64| {
            let behind = accepted.partition_point(|(start, _)| *start <= index);
            behind > 0 && index < accepted[behind - 1].1
        };
        letters.retain(|letter| !within(letter.index));
        self.total -= before - letters.len();
    }

    /// The job is forgotten.
    pub(crate) fn forget(&mut self, job: JobId) {
        let letters = self.jobs.remove(&job);
        self.total -= letters.map_or(0, |letters| letters.len());
    }
}

impl Coordinator {
    /// A rollout is given up: people can read why.
    pub(crate) fn bury(&mut self, job: JobId, index: u64, fault: &Fault, out: &mut Vec<Effect>) {
        let Some(known) = self.jobs.get(job) else {
            return;
        };
        let open = known.open.get(&index);
        let tally = |count: fn(&Open) -> u32| open.map_or(0, count);
        let letter = DeadLetter {
            index,
            instance: known.extents.instance_of(index),
            fault: fault.clone().cut_to(DEAD_LETTER_TEXT_BYTES_MAX),
            failures: tally(|open| open.failures),
            losses: tally(|open| open.losses),
            returns: tally(|open| open.returns),
            at_ms: self.now.0,
            retried_as: None,
        };
        self.keep_letter(job, letter, out);
    }

    fn keep_letter(&mut self, job: JobId, letter: DeadLetter, out: &mut Vec<Effect>) {
        self.dead.keep(job, letter.clone());
        let letter = Box::new(letter);
        persist(Record::DeadLetter { job, letter }, out);
    }

    /// Makes a job of dead letters of another one.
    ///
    /// # Errors
    /// There is no such job, its results are a learner's, a rollout is no dead letter, or the new
    /// job is refused.
    pub(crate) fn retry_dead(
        &mut self,
        id: JobId,
        retry: JobId,
        indices: &[u64],
        out: &mut Vec<Effect>,
    ) -> Result<(ReplyBody, bool), Fault> {
        let accepted = |existed| {
            Ok((
                ReplyBody::Accepted {
                    job: retry,
                    existed,
                },
                true,
            ))
        };
        if let Some(known) = self.jobs.get(retry) {
            if known.spec.kind == JobKind::Retry {
                return accepted(true);
            }
            let why = format!("job {retry} is another one");
            return Err(Fault::new(ErrorCode::JobConflict, why));
        }
        let spec = self.retry_spec(id, retry)?;
        let letters = self.chosen(id, indices)?;
        let payloads = self.payloads_of(id, &letters)?;
        self.accept_job(spec, out)?;
        match payloads {
            Some(payloads) => {
                for (put, (letter, payloads)) in letters.iter().zip(payloads).enumerate() {
                    let extent = Extent {
                        put: put as u128,
                        first_instance: letter.instance,
                        rollouts: 1,
                    };
                    self.put_extent(retry, extent, Some(payloads), out);
                }
            }
            None => {
                for (put, extent) in extents_of(&letters).into_iter().enumerate() {
                    let put = put as u128;
                    self.put_extent(retry, Extent { put, ..extent }, None, out);
                }
            }
        }
        for letter in letters {
            let retried_as = Some(retry);
            self.keep_letter(
                id,
                DeadLetter {
                    retried_as,
                    ..letter
                },
                out,
            );
        }
        accepted(false)
    }

    fn retry_spec(&self, id: JobId, retry: JobId) -> Result<JobSpec, Fault> {
        let missing = || Fault::new(ErrorCode::NotFound, format!("there is no job {id}"));
        let spec = &self.jobs.get(id).ok_or_else(missing)?.spec;
        if spec.sink != SinkRef::Relay {
            let why = "what became of its rollouts is the learner's to decide";
            return Err(Fault::new(ErrorCode::InvalidRequest, why));
        }
        let mut name = format!("retry of {}", spec.name);
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        Ok(JobSpec {
            job: retry,
            name,
            kind: JobKind::Retry,
            first_instance: 0,
            rollouts: 0,
            // Single members are tried anew; there is nothing to compare them with.
            group_size: 1,
            take: None,
            ..spec.clone()
        })
    }

    /// What the rollouts of these letters are played with; `None` when nothing was put with them.
    ///
    /// # Errors
    /// A payload is deleted: everything of its put is closed.
    fn payloads_of(
        &self,
        id: JobId,
        letters: &[DeadLetter],
    ) -> Result<Option<Vec<Payloads>>, Fault> {
        let Some(job) = self.jobs.get(id) else {
            return Ok(None);
        };
        let mut payloads = Vec::with_capacity(letters.len());
        for letter in letters {
            let Some(payload) = job.extents.payload_of(letter.index) else {
                let index = letter.index;
                let why = format!("the payload of rollout {index} of job {id} is deleted");
                return Err(Fault::new(ErrorCode::InvalidRequest, why).with_hint("put it again"));
            };
            let mut writer = PayloadWriter::default();
            let fits = writer.push(&payload.0);
            debug_assert!(fits, "it came in a put");
            payloads.push(Payloads::parse(1, writer.take())?);
        }
        let any = letters
            .iter()
            .any(|letter| job.extents.payload_of(letter.index) != Some(Blob::default()));
        Ok(any.then_some(payloads))
    }

    /// Letters of a job: these, or all that were not tried anew; by index.
    fn chosen(&self, id: JobId, indices: &[u64]) -> Result<Vec<DeadLetter>, Fault> {
        let mut chosen = Vec::new();
        if indices.is_empty() {
            // All that can be: a payload may be deleted by now.
            let extents = self.jobs.get(id).map(|job| &job.extents);
            let playable = |letter: &&DeadLetter| {
                letter.retried_as.is_none()
                    && extents.is_none_or(|extents| extents.payload_of(letter.index).is_some())
            };
            chosen.extend(self.dead.of(id).filter(playable).cloned());
        }
        for index in indices {
            let found = self.dead.of(id).find(|letter| letter.index == *index);
            let missing = || {
                let why = format!("rollout {index} of job {id} is none of its dead letters");
                Fault::new(ErrorCode::NotFound, why)
                    .with_hint("`volley job dead JOB` lists those that are kept")
            };
            chosen.push(found.ok_or_else(missing)?.clone());
        }
        chosen.sort_by_key(|letter| letter.index);
        chosen.dedup_by_key(|letter| letter.index);
        if chosen.is_empty() {
            let why = format!("job {id} has no dead letter that was not tried anew");
            return Err(Fault::new(ErrorCode::NotFound, why));
        }
        Ok(chosen)
    }
}

/// Instances that follow each other are one extent.
fn extents_of(letters: &[DeadLetter]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for letter in letters {
        match extents.last_mut() {
            Some(last)
                if last.first_instance.checked_add(last.rollouts) == Some(letter.instance) =>
            {
                last.rollouts += 1;
            }
            _ => extents.push(Extent {
                put: 0,
                first_instance: letter.instance,
                rollouts: 1,
            }),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(index: u64) -> DeadLetter {
        DeadLetter {
            index,
            instance: index + 100,
            fault: Fault::new(ErrorCode::EnvFailed, "x"),
            failures: 1,
            losses: 0,
            returns: 0,
            at_ms: 1,
            retried_as: None,
        }
    }

    #[test]
    fn a_job_keeps_its_newest_letters_and_one_of_each_rollout() {
        let mut dead = DeadLetters::default();
        let most = DEAD_LETTERS_PER_JOB_MAX as u64;
        (0..=most).for_each(|index| dead.keep(JobId(1), letter(index)));
        dead.keep(JobId(1), letter(most));
        let kept: Vec<u64> = dead.of(JobId(1)).map(|l| l.index).collect();
        assert!(kept.iter().copied().eq(1..=most));
        assert_eq!(dead.total(), DEAD_LETTERS_PER_JOB_MAX);
    }

    #[test]
    fn whoever_has_most_loses_its_oldest_when_there_are_too_many() {
        let mut dead = DeadLetters::default();
        let jobs = (DEAD_LETTERS_MAX / DEAD_LETTERS_PER_JOB_MAX) as u128;
        for job in 0..jobs {
            let most = DEAD_LETTERS_PER_JOB_MAX as u64;
            (0..most).for_each(|index| dead.keep(JobId(job), letter(index)));
        }
        dead.keep(JobId(jobs), letter(0));
        assert_eq!(dead.total(), DEAD_LETTERS_MAX);
        assert_eq!(dead.of(JobId(jobs)).count(), 1, "the newcomer is kept");
        assert_eq!(dead.iter().count(), DEAD_LETTERS_MAX);
        dead.forget(JobId(0));
        assert!(dead.total() < DEAD_LETTERS_MAX && dead.of(JobId(0)).next().is_none());
    }

    #[test]
    fn what_was_accepted_after_all_is_no_dead_letter() {
        let mut dead = DeadLetters::default();
        [0, 3, 4, 9]
            .into_iter()
            .for_each(|index| dead.keep(JobId(1), letter(index)));
        dead.revive(JobId(1), &[(1, 2), (3, 5)]);
        let kept: Vec<u64> = dead.of(JobId(1)).map(|l| l.index).collect();
        assert_eq!((kept, dead.total()), (vec![0, 9], 2));
    }

    #[test]
    fn instances_in_a_row_are_one_extent() {
        let extents = extents_of(&[letter(0), letter(1), letter(5)]);
        let pairs: Vec<_> = extents
            .iter()
            .map(|e| (e.first_instance, e.rollouts))
            .collect();
        assert_eq!(pairs, [(100, 2), (105, 1)]);
    }
}
