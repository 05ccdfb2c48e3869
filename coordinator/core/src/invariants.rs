//! The invariants of DESIGN §4 that the coordinator can see, one named function each. A full scan:
//! for tests and simulation.

use std::collections::BTreeMap;

use volley_protocol::job::JobState;
use volley_protocol::limits::{DEAD_LETTERS_MAX, DEAD_LETTERS_PER_JOB_MAX, OPEN_JOBS_MAX};
use volley_protocol::{AdapterVersion, AttemptId, PolicyRef, RolloutId, WorkerId};

use crate::config::{FINISHED_JOBS_MAX, POLLS_PER_SESSION_MAX, REPORTS_MAX};
use crate::coordinator::Coordinator;
use crate::place::Place;
use crate::queue::Job;
use crate::stats::{HISTORY_MAX, NOTICES_MAX};
use crate::violation::{Violation, ensure};

impl Coordinator {
    /// Checks every invariant by looking at everything.
    ///
    /// # Errors
    /// The first [`Violation`] found.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        for (_, job) in self.jobs.iter() {
            every_rollout_is_in_one_place(job)?;
            groups_keep_their_version(job)?;
            payloads_live_as_long_as_their_rollouts(job)?;
        }
        leases_have_two_sides(self)?;
        leases_stay_within_credit(self)?;
        sums_are_right(self)?;
        everything_has_a_bound(self)?;
        roster_stays_within_max(self)?;
        versions_form_a_chain(self)?;
        nothing_pinned_is_forgotten(self)
    }
}

/// (1, 2) Fresh, open, accepted or failed: exactly one of them, and the counters agree.
fn every_rollout_is_in_one_place(job: &Job) -> Result<(), Violation> {
    let name = "every_rollout_is_in_one_place";
    let id = job.spec.job;
    for index in job.open.keys() {
        let alone = !job.is_closed(*index) && *index < job.total();
        ensure(alone, name, || format!("{id}/{index} is open and closed"))?;
    }
    let twice = job
        .accepted
        .ranges()
        .any(|(start, end)| job.failed.count_in(start, end) > 0);
    ensure(!twice, name, || {
        format!("{id} has rollouts that are accepted and failed")
    })?;
    let counts = (job.accepted.count(), job.failed.count());
    let kept = (job.accepted_count(), job.failed_count());
    ensure(counts == kept, name, || {
        format!("{id}: closed {counts:?}, counted {kept:?}")
    })?;
    let place =
        |wanted: fn(&Place) -> bool| job.open.values().filter(|o| wanted(&o.place)).count() as u64;
    let leased = place(|place| matches!(place, Place::Leased { .. }));
    let failing = place(|place| matches!(place, Place::Failing(_)));
    let ready = place(|place| *place == Place::Ready);
    let counted = (job.leased(), job.failing(), job.ready.len() as u64);
    ensure((leased, failing, ready) == counted, name, || {
        format!(
            "{id}: leased, failing, ready {:?}, counted {counted:?}",
            (leased, failing, ready)
        )
    })?;
    ensure(job.count_fresh() == job.fresh_allowed(), name, || {
        format!(
            "{id}: {} fresh, counted {}",
            job.count_fresh(),
            job.fresh_allowed()
        )
    })?;
    let below = job.cursor().min(job.total());
    let settled = job.accepted.count_in(0, below) + job.failed.count_in(0, below);
    let seen = settled + job.open.range(..below).count() as u64;
    ensure(seen == below, name, || {
        format!("{id}: {} are nowhere below {below}", below - seen)
    })
}

/// A put keeps its payloads exactly as long as one of its rollouts is open.
fn payloads_live_as_long_as_their_rollouts(job: &Job) -> Result<(), Violation> {
    let name = "payloads_live_as_long_as_their_rollouts";
    let id = job.spec.job;
    for (start, end) in job.extents.kept_puts() {
        let closed = job.accepted.count_in(start, end) + job.failed.count_in(start, end);
        ensure(closed < end - start, name, || {
            format!("{id}: the put at {start} is closed and keeps payloads")
        })?;
    }
    // Until its relay has spoken, a restored job may look open where it is not.
    let without = if job.relay_ready {
        job.without_payload()
    } else {
        Vec::new()
    };
    ensure(without.is_empty(), name, || {
        format!(
            "{id}: {} open rollouts have lost their payloads",
            without.len()
        )
    })
}

/// (1) A lease is known to its job and to its worker, or to neither.
fn leases_have_two_sides(all: &Coordinator) -> Result<(), Violation> {
    let name = "leases_have_two_sides";
    let mut of_jobs: BTreeMap<AttemptId, WorkerId> = BTreeMap::new();
    for (id, job) in all.jobs.iter() {
        for (index, open) in &job.open {
            if let Place::Leased { worker, attempt } = open.place {
                let rollout = RolloutId {
                    job: *id,
                    index: *index,
                };
                ensure(attempt.rollout == rollout, name, || {
                    format!("{attempt:?} for {rollout:?}")
                })?;
                of_jobs.insert(attempt, worker);
            }
        }
    }
    let mut of_workers = BTreeMap::new();
    for (id, worker) in all.roster.iter() {
        of_workers.extend(worker.leases.keys().map(|attempt| (*attempt, *id)));
    }
    ensure(of_jobs == of_workers, name, || {
        let only_job = of_jobs
            .iter()
            .find(|pair| of_workers.get(pair.0) != Some(pair.1));
        let only_worker = of_workers
            .iter()
            .find(|pair| of_jobs.get(pair.0) != Some(pair.1));
        format!("only the job knows {only_job:?}, only the worker {only_worker:?}")
    })
}

/// (3) No worker was given more leases in its session than it allowed.
fn leases_stay_within_credit(all: &Coordinator) -> Result<(), Violation> {
    for (id, worker) in all.roster.iter() {
        ensure(
            worker.granted <= worker.credit_total,
            "leases_stay_within_credit",
            || {
                format!(
                    "{id}: {} given, {} allowed",
                    worker.granted, worker.credit_total
                )
            },
        )?;
    }
    Ok(())
}

/// (4) A group that was leased has one version, until its last member is closed.
fn groups_keep_their_version(job: &Job) -> Result<(), Violation> {
    let name = "groups_keep_their_version";
    let id = job.spec.job;
    if !matches!(job.spec.policy, PolicyRef::Latest(_)) {
        return ensure(job.pins.is_empty(), name, || {
            format!("{id} pins without reason")
        });
    }
    for (index, open) in &job.open {
        let leased = matches!(open.place, Place::Leased { .. });
        let pinned = job.pins.contains_key(&job.spec.group_of(*index));
        ensure(!leased || pinned, name, || {
            format!("{id}/{index} is leased without a version")
        })?;
    }
    for group in job.pins.keys() {
        ensure(!job.group_is_closed(*group), name, || {
            format!("{id}: closed {group:?} pins")
        })?;
    }
    Ok(())
}

/// Sums over jobs are what adding up gives.
fn sums_are_right(all: &Coordinator) -> Result<(), Violation> {
    let name = "sums_are_right";
    let (mut sum, mut payloads, mut bytes) = (0, 0, 0);
    for (id, job) in all.jobs.iter() {
        let takeable = if all.gate(job).is_ok() {
            job.takeable()
        } else {
            0
        };
        ensure(takeable == job.dispatchable_shown, name, || {
            format!(
                "{id}: {takeable} dispatchable, shown {}",
                job.dispatchable_shown
            )
        })?;
        let listed = all.jobs.is_candidate(job);
        ensure(listed == (takeable > 0), name, || {
            format!("{id} is listed wrongly")
        })?;
        sum += takeable;
        let kept = job.extents.kept();
        ensure(kept == job.kept_shown, name, || {
            format!("{id}: keeps {kept:?}, shown {:?}", job.kept_shown)
        })?;
        payloads += kept.payloads;
        bytes += kept.bytes;
    }
    let kept = all.jobs.kept();
    ensure(
        (payloads, bytes) == (kept.payloads, kept.bytes),
        name,
        || format!("{payloads} payloads of {bytes} bytes, counted {kept:?}"),
    )?;
    ensure(sum == all.jobs.dispatchable(), name, || {
        format!("{sum} dispatchable, {} counted", all.jobs.dispatchable())
    })?;
    ensure(all.dead.iter().count() == all.dead.total(), name, || {
        "dead letters are counted wrongly".into()
    })?;
    for (id, worker) in all.roster.iter() {
        let listed = all.roster.hungry().contains(id);
        ensure(listed == (worker.credit_left() > 0), name, || {
            format!("{id} is listed wrongly")
        })?;
    }
    for (session, id) in all.roster.sessions() {
        let own = all.roster.get(*id).and_then(|worker| worker.session);
        ensure(own == Some(*session), name, || {
            format!("{session:?} is not {id}'s")
        })?;
    }
    Ok(())
}

/// (6) Every list has a bound.
fn everything_has_a_bound(all: &Coordinator) -> Result<(), Violation> {
    let mut polls: BTreeMap<_, usize> = BTreeMap::new();
    for poll in &all.runs.polls {
        *polls.entry(poll.session).or_default() += 1;
    }
    let reports = all.runs.map.values().map(crate::runs::Run::reports_len);
    let bounded = [
        ("open jobs", all.jobs.open_count(), OPEN_JOBS_MAX),
        (
            "jobs",
            all.jobs.iter().count(),
            OPEN_JOBS_MAX + FINISHED_JOBS_MAX,
        ),
        ("notices", all.stats.notices.len(), NOTICES_MAX),
        ("history", all.stats.history.len(), HISTORY_MAX),
        (
            "polls",
            polls.into_values().max().unwrap_or(0),
            POLLS_PER_SESSION_MAX,
        ),
        ("reports", reports.max().unwrap_or(0), REPORTS_MAX),
        ("dead letters", all.dead.total(), DEAD_LETTERS_MAX),
        (
            "dead letters of a job",
            all.dead.fullest(),
            DEAD_LETTERS_PER_JOB_MAX,
        ),
    ];
    for (what, got, max) in bounded {
        ensure(got <= max, "everything_has_a_bound", || {
            format!("{got} {what}, at most {max}")
        })?;
    }
    Ok(())
}

/// (7) The autoscaler's own workers are never more than allowed; nobody who drains has leases.
fn roster_stays_within_max(all: &Coordinator) -> Result<(), Violation> {
    let name = "roster_stays_within_max";
    let max = all.config.scaling.max_workers as usize;
    // Workers of an earlier life come back unasked; they are drained, not counted here.
    let own = |provision: u64| provision >> 32 == all.epoch.0;
    let managed = all
        .roster
        .iter()
        .filter(|(_, worker)| own(worker.provision))
        .count();
    let starting = all.roster.starting.len();
    ensure(managed + starting <= max, name, || {
        format!("{managed} here, {starting} starting, {max} allowed")
    })?;
    for (id, worker) in all.roster.iter() {
        let leaves = worker.state == volley_protocol::snapshot::WorkerState::Draining;
        ensure(!leaves || worker.leases.is_empty(), name, || {
            format!("{id} drains with leases")
        })?;
    }
    Ok(())
}

/// (8) Within a lineage each version's parent is the one before it.
fn versions_form_a_chain(all: &Coordinator) -> Result<(), Violation> {
    for (run, versions) in all.registry.iter() {
        let entries: Vec<_> = versions.entries().collect();
        for pair in entries.windows(2) {
            let (one, next) = (pair[0].version, pair[1]);
            let follows = one.lineage == next.version.lineage && one.step + 1 == next.version.step;
            let linked = next.parent == one.digest;
            ensure(!follows || linked, "versions_form_a_chain", || {
                format!("run {run}: {:?} does not follow {one:?}", next.version)
            })?;
        }
    }
    Ok(())
}

/// (10) Who pins is counted right, and what is pinned is not forgotten.
fn nothing_pinned_is_forgotten(all: &Coordinator) -> Result<(), Violation> {
    let name = "nothing_pinned_is_forgotten";
    let mut pins: BTreeMap<AdapterVersion, u64> = BTreeMap::new();
    for (_, job) in all
        .jobs
        .iter()
        .filter(|(_, job)| job.state == JobState::Open)
    {
        let own = match job.spec.policy {
            PolicyRef::Version(version) => Some(version),
            _ => None,
        };
        for version in job.pins.values().copied().chain(own) {
            *pins.entry(version).or_default() += 1;
        }
    }
    ensure(pins == *all.registry.pins(), name, || {
        format!("pinned {pins:?}, counted {:?}", all.registry.pins())
    })?;
    for version in pins.keys() {
        let run = all.registry.of(version.run);
        let forgotten = run.is_some_and(|run| run.forgotten().contains(version));
        ensure(!forgotten, name, || {
            format!("{version:?} is pinned and forgotten")
        })?;
    }
    Ok(())
}
