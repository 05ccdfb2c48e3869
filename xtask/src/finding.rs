//! What a rule has to say.

use std::fmt;

/// A broken rule at a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path from the workspace's root.
    pub(crate) path: String,
    /// Line, counted from one.
    pub(crate) line: usize,
    /// Name of the rule.
    pub(crate) rule: &'static str,
    /// What is wrong, and why it matters.
    pub(crate) why: String,
}

impl Finding {
    /// A finding.
    pub(crate) fn new(path: &str, line: usize, rule: &'static str, why: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            rule,
            why: why.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            rule,
            why,
        } = self;
        write!(f, "{path}:{line}: {rule}: {why}")
    }
}
