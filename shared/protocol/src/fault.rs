//! Errors that a user can meet. Each has a code, an exit status and a page in `docs/errors/`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::MESSAGE_BYTES_MAX;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $exit:literal;)*) => {
        /// Why something did not happen. Append only: the number on the wire is the position.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name users see and search for.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Exit status of a command that ends with this error (DESIGN: command line).
            #[must_use]
            pub const fn exit_status(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }
        }
    };
}

error_codes! {
    /// A defect of Volley itself.
    Internal = "INTERNAL", 70;
    /// Text that should be an id is not one.
    InvalidId = "INVALID_ID", 2;
    /// A name has characters outside `[a-z0-9._-]` or a bad length.
    InvalidName = "INVALID_NAME", 2;
    /// A command line or request field has a value that makes no sense.
    InvalidRequest = "INVALID_REQUEST", 2;
    /// A configuration or recipe file cannot be used.
    ConfigInvalid = "CONFIG_INVALID", 78;
    /// Nobody answers at the coordinator's address.
    CoordinatorUnreachable = "COORDINATOR_UNREACHABLE", 69;
    /// A session ended and did not come back in time.
    PeerLost = "PEER_LOST", 69;
    /// The peer showed no certificate, or one of another cluster.
    PeerUntrusted = "PEER_UNTRUSTED", 77;
    /// The role in the certificate may not send this message.
    Forbidden = "FORBIDDEN", 77;
    /// A frame announces more bytes than allowed.
    FrameTooLarge = "FRAME_TOO_LARGE", 70;
    /// Bytes that are no message of this protocol.
    DecodeError = "DECODE_ERROR", 70;
    /// The peers speak different protocol versions.
    UnsupportedProtocol = "UNSUPPORTED_PROTOCOL", 70;
    /// Another process listens on that address.
    AddressInUse = "ADDRESS_IN_USE", 75;
    /// Another coordinator works in that data directory.
    DataDirLocked = "DATA_DIR_LOCKED", 75;
    /// The store could not be written or read.
    StoreFailed = "STORE_FAILED", 74;
    /// A file could not be read or written.
    IoFailed = "IO_FAILED", 74;
    /// No job, run, worker or adapter of that name.
    NotFound = "NOT_FOUND", 1;
    /// The same job id was submitted with another specification.
    JobConflict = "JOB_CONFLICT", 1;
    /// A bound on queued work is reached.
    QueueFull = "QUEUE_FULL", 75;
    /// The job was cancelled.
    JobCancelled = "JOB_CANCELLED", 1;
    /// A rollout used up its attempts.
    AttemptsExhausted = "ATTEMPTS_EXHAUSTED", 1;
    /// A worker died or was lost during the attempt.
    WorkerLost = "WORKER_LOST", 1;
    /// The attempt took longer than `start_to_close`.
    AttemptTimeout = "ATTEMPT_TIMEOUT", 1;
    /// There is no environment of that name.
    EnvUnknown = "ENV_UNKNOWN", 2;
    /// The environment's code panicked.
    EnvPanic = "ENV_PANIC", 1;
    /// The environment reported an error.
    EnvFailed = "ENV_FAILED", 1;
    /// The reward is missing, not a number, or infinite.
    RewardInvalid = "REWARD_INVALID", 1;
    /// No model at that path, or a file of it is missing.
    ModelNotFound = "MODEL_NOT_FOUND", 78;
    /// A model file is shorter than its header says, or its header is damaged.
    ModelTruncated = "MODEL_TRUNCATED", 78;
    /// The model needs mathematics that is not built.
    ModelUnsupported = "MODEL_UNSUPPORTED", 78;
    /// The tokenizer or chat template cannot be used.
    TokenizerInvalid = "TOKENIZER_INVALID", 78;
    /// An adapter's tensors do not fit the base model.
    AdapterMismatch = "ADAPTER_MISMATCH", 78;
    /// An adapter or update has values that are not finite; it was not published.
    AdapterNonfinite = "ADAPTER_NONFINITE", 1;
    /// The adapter's bytes are not to be had from its source.
    AdapterUnavailable = "ADAPTER_UNAVAILABLE", 1;
    /// The adapter is in use.
    AdapterPinned = "ADAPTER_PINNED", 75;
    /// The loss is not finite; the step was abandoned and the last version stays live.
    LossNonfinite = "LOSS_NONFINITE", 1;
    /// Sampler and learner disagree on a log-probability of the same version.
    NumericsMismatch = "NUMERICS_MISMATCH", 70;
    /// The conversation is longer than the model's context.
    ContextExceeded = "CONTEXT_EXCEEDED", 1;
    /// A checkpoint is missing or damaged.
    CheckpointInvalid = "CHECKPOINT_INVALID", 1;
    /// A role process kept dying.
    RoleFailed = "ROLE_FAILED", 1;
    /// The command was interrupted.
    Interrupted = "INTERRUPTED", 130;
    /// The run directory already holds a run.
    RunExists = "RUN_EXISTS", 75;
    /// No run directory to resume from.
    RunNotFound = "RUN_NOT_FOUND", 78;
    /// A rollout killed several workers and is not tried again.
    PoisonRollout = "POISON_ROLLOUT", 1;
    /// Nobody answers at a peer's address, or it turned the session down.
    PeerUnreachable = "PEER_UNREACHABLE", 69;
    /// An identity file is damaged, expired or of another cluster.
    IdentityInvalid = "IDENTITY_INVALID", 77;
    /// A key file can be read by others.
    KeyFileExposed = "KEY_FILE_EXPOSED", 77;
    /// No worker took the rollout within `schedule_to_start`.
    ScheduleToStartTimeout = "SCHEDULE_TO_START_TIMEOUT", 1;
    /// The rollout was not closed within `schedule_to_close`.
    ScheduleToCloseTimeout = "SCHEDULE_TO_CLOSE_TIMEOUT", 1;
    /// The attempt's worker did not renew it within `heartbeat`.
    HeartbeatTimeout = "HEARTBEAT_TIMEOUT", 1;
    /// What was waited for did not happen in time; it goes on.
    WaitTimeout = "WAIT_TIMEOUT", 75;
    /// Something that was acknowledged is gone from the disk of the process that kept it.
    ResultsLost = "RESULTS_LOST", 74;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ErrorCode {
    /// The code of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

/// An error as it is told to a peer or a user: what happened, where and why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable code.
    pub code: ErrorCode,
    /// What happened, where, why.
    pub message: String,
    /// What to do next; empty when there is nothing to say beyond the code's page.
    pub hint: String,
}

impl Fault {
    /// A fault without a hint.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// The same fault, with what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same fault with texts of at most `max` bytes each: what a peer wrote may be long, and
    /// has to fit wherever it is passed on.
    #[must_use]
    pub fn cut_to(mut self, max: usize) -> Self {
        for text in [&mut self.message, &mut self.hint] {
            text.truncate(text.floor_char_boundary(max));
        }
        self
    }

    /// The same fault within [`MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn cut(self) -> Self {
        self.cut_to(MESSAGE_BYTES_MAX)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, "; {}", self.hint)
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let fault = Fault::new(ErrorCode::Internal, "é".repeat(MESSAGE_BYTES_MAX)).with_hint("a");
        let cut = fault.clone().cut();
        assert_eq!(cut.message.len(), MESSAGE_BYTES_MAX);
        assert_eq!((cut.cut_to(3).message.as_str(), &*fault.hint), ("é", "a"));
    }

    #[test]
    fn names_are_unique_and_found_again() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name()), Some(*code));
        }
        assert_eq!(ErrorCode::from_name("NO_SUCH_CODE"), None);
    }
}
