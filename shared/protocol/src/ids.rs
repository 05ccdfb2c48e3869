//! Identities. Each is a newtype, so that a job cannot be handed over as a run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{ErrorCode, Fault};

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $width:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $width, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:0", $width, "x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Fault;

            fn from_str(text: &str) -> Result<Self, Fault> {
                <$inner>::from_str_radix(text, 16).map(Self).map_err(|_| {
                    Fault::new(
                        ErrorCode::InvalidId,
                        format!(concat!("`{}` is not a ", stringify!($name), ": hexadecimal digits are due"), text),
                    )
                })
            }
        }
    };
}

hex_id!(
    /// A set of rollouts. The client chooses it, so that a repeated submit is the same job.
    JobId, u128, "32"
);
hex_id!(
    /// One adapter lineage on one base model, with its optimiser state.
    RunId, u128, "32"
);
hex_id!(
    /// One process, for the whole of its life: a reconnect keeps it, a restart changes it.
    PeerId, u64, "16"
);

/// A worker process (its [`PeerId`]).
pub type WorkerId = PeerId;

/// Rises by one with every start of the coordinator. Fences commands, never results.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// Number of a group inside its job: rollouts of one scenario that are compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupIndex(pub u64);

/// One episode to be executed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RolloutId {
    /// The job it belongs to.
    pub job: JobId,
    /// Its place in the job, from 0.
    pub index: u64,
}

/// One try of a rollout; unique over coordinator restarts because of its epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// What is tried.
    pub rollout: RolloutId,
    /// Epoch of the coordinator that gave the lease.
    pub epoch: Epoch,
    /// 1 for the first try in that epoch.
    pub number: u32,
}

impl fmt::Debug for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight digits tell jobs apart for a reader; messages carry all of them.
        write!(f, "{:08x}/{}", self.job.0 >> 96, self.index)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}.{}", self.rollout, self.epoch.0, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        let job = JobId(0xabc);
        assert_eq!(job.to_string().len(), 32);
        assert_eq!(job.to_string().parse::<JobId>().ok(), Some(job));
        let fault = "xyz".parse::<JobId>().unwrap_err();
        assert_eq!(fault.code, ErrorCode::InvalidId);
    }
}
