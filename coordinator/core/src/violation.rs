//! What a check has to say.

/// A broken invariant: a defect of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant `{invariant}` is broken: {detail}")]
pub struct Violation {
    /// Name of the function that found it.
    pub invariant: &'static str,
    /// What was found.
    pub detail: String,
}

/// Finds nothing, or says what.
pub(crate) fn ensure(
    holds: bool,
    invariant: &'static str,
    detail: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds {
        return Ok(());
    }
    Err(Violation {
        invariant,
        detail: detail(),
    })
}
