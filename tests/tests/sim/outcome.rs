//! What a run amounted to.

/// Sums of what happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Of its trace; not added up.
    pub(crate) hash: u64,
    /// Of its trace's text, where lines are kept; not added up.
    pub(crate) text_hash: u64,
    pub(crate) events: u64,
    pub(crate) simulated_ms: u64,
    /// Most workers at one time; the largest of all runs.
    pub(crate) workers_peak: u64,
    /// Results that the relay keeps.
    pub(crate) settled: u64,
    /// Records that clients have read.
    pub(crate) read: u64,
    pub(crate) steps: u64,
    pub(crate) retries: u64,
    pub(crate) coordinator_crashes: u64,
    pub(crate) learner_crashes: u64,
    pub(crate) client_crashes: u64,
    pub(crate) worker_deaths: u64,
    pub(crate) power_cuts: u64,
    pub(crate) disk_faults: u64,
    /// Writes that a crash tore, in part or as a whole.
    pub(crate) torn_tails: u64,
    pub(crate) stalls: u64,
    pub(crate) partitions: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) clock_jumps: u64,
    pub(crate) cancelled: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.simulated_ms += other.simulated_ms;
        self.workers_peak = self.workers_peak.max(other.workers_peak);
        self.settled += other.settled;
        self.read += other.read;
        self.steps += other.steps;
        self.retries += other.retries;
        self.coordinator_crashes += other.coordinator_crashes;
        self.learner_crashes += other.learner_crashes;
        self.client_crashes += other.client_crashes;
        self.worker_deaths += other.worker_deaths;
        self.power_cuts += other.power_cuts;
        self.disk_faults += other.disk_faults;
        self.torn_tails += other.torn_tails;
        self.stalls += other.stalls;
        self.partitions += other.partitions;
        self.sessions_lost += other.sessions_lost;
        self.clock_jumps += other.clock_jumps;
        self.cancelled += other.cancelled;
    }

    /// Did everything go wrong at least once that can?
    pub(crate) fn kinds_of_trouble(&self) -> [u64; 11] {
        [
            self.coordinator_crashes,
            self.learner_crashes,
            self.client_crashes,
            self.worker_deaths,
            self.power_cuts,
            self.disk_faults,
            self.torn_tails,
            self.stalls,
            self.partitions,
            self.sessions_lost,
            self.clock_jumps,
        ]
    }
}
