//! Defects of the protocol that are planted on purpose, to prove that they would be found, and by
//! what. They sit in the simulation's shells: the cores know nothing of them.

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Credit is added up, although a worker names its total.
    AddUpCredit,
    /// The versions of groups are not recorded.
    ForgetPins,
    /// Clients are answered before the commit.
    AnswerEarly,
    /// A commit that failed counts as made.
    IgnoreStoreFailure,
    /// The relay keeps every result of a rollout.
    KeepDuplicates,
    /// Workers that come back do not say what they hold: no lease outlives a restart.
    ForgetHeld,
    /// The relay's word does not always reach the core.
    LoseReceipts,
    /// The relay refuses results of the epoch before, as if they were commands.
    FenceResults,
    /// The relay tells workers `Delivered` before it has synced.
    DeliverEarly,
    /// The learner counts results as synced when it has written them.
    IntakeEarly,
    /// What a learner says that it has settled is not listened to.
    IgnoreReconcile,
    /// Workers that a rollout killed are not counted.
    EndlessRetries,
    /// A job's cancellation is not recorded.
    CancelUnrecorded,
    /// Results of an extent that a crash took back stay in the relay.
    KeepLostExtent,
    /// Clients read results of an extent that a crash may still take back.
    ShowEarly,
    /// The learner's intake takes results that are too old.
    TakeStale,
    /// The groups of the last step record are not read back: they are delivered again.
    ForgetClosedGroups,
    /// A version is published before its step record is synced.
    PublishEarly,
    /// A record that was torn in a crash counts as whole.
    AcceptTorn,
    /// The learner is not told which rollouts are given up.
    LoseFailures,
    /// Versions are deleted while groups play them.
    DeletePinned,
}

/// Every defect, and the invariant that is meant to find it.
pub(crate) const PLANTS: [(Plant, &str); 21] = [
    (Plant::AddUpCredit, "leases_within_credit"),
    (Plant::ForgetPins, "groups_keep_their_version"),
    (Plant::AnswerEarly, "acknowledged_is_durable"),
    (Plant::IgnoreStoreFailure, "acknowledged_is_durable"),
    (Plant::KeepDuplicates, "closed_once"),
    (Plant::ForgetHeld, "held_is_not_leased_again"),
    (Plant::LoseReceipts, "ledgers_agree"),
    (Plant::FenceResults, "delivered_is_kept"),
    (Plant::DeliverEarly, "delivered_is_kept"),
    (Plant::IntakeEarly, "delivered_is_kept"),
    (Plant::IgnoreReconcile, "settled_is_not_leased_again"),
    (Plant::EndlessRetries, "budgets_are_kept"),
    (Plant::CancelUnrecorded, "cancelled_is_not_leased"),
    (Plant::KeepLostExtent, "results_are_of_their_instance"),
    (Plant::ShowEarly, "what_was_read_stays"),
    (Plant::TakeStale, "nothing_stale_is_trained"),
    (Plant::ForgetClosedGroups, "trained_at_most_once"),
    (Plant::PublishEarly, "published_is_durable"),
    (Plant::AcceptTorn, "results_are_of_their_instance"),
    (Plant::LoseFailures, "everything_ends"),
    (Plant::DeletePinned, "nothing_needed_is_deleted"),
];

/// Within so many seeds each of them must be found.
pub(crate) const PLANT_SEEDS: u64 = 50;
