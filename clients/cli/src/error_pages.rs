//! The pages of `docs/errors`, inside the program: `volley explain` works without a network.

use volley_protocol::ErrorCode;

macro_rules! pages {
    ($($variant:ident = $name:literal;)*) => {
        /// The page of a code. A code without a line here does not compile, nor does a line
        /// without its file.
        pub(crate) const fn page(code: ErrorCode) -> &'static str {
            match code {
                $(ErrorCode::$variant => {
                    include_str!(concat!("../../../docs/errors/", $name, ".md"))
                })*
            }
        }

        #[cfg(test)]
        const NAMES: &[(ErrorCode, &str)] = &[$((ErrorCode::$variant, $name),)*];
    };
}

pages! {
    Internal = "INTERNAL";
    InvalidId = "INVALID_ID";
    InvalidName = "INVALID_NAME";
    InvalidRequest = "INVALID_REQUEST";
    ConfigInvalid = "CONFIG_INVALID";
    CoordinatorUnreachable = "COORDINATOR_UNREACHABLE";
    PeerLost = "PEER_LOST";
    PeerUntrusted = "PEER_UNTRUSTED";
    Forbidden = "FORBIDDEN";
    FrameTooLarge = "FRAME_TOO_LARGE";
    DecodeError = "DECODE_ERROR";
    UnsupportedProtocol = "UNSUPPORTED_PROTOCOL";
    AddressInUse = "ADDRESS_IN_USE";
    DataDirLocked = "DATA_DIR_LOCKED";
    StoreFailed = "STORE_FAILED";
    IoFailed = "IO_FAILED";
    NotFound = "NOT_FOUND";
    JobConflict = "JOB_CONFLICT";
    QueueFull = "QUEUE_FULL";
    JobCancelled = "JOB_CANCELLED";
    AttemptsExhausted = "ATTEMPTS_EXHAUSTED";
    WorkerLost = "WORKER_LOST";
    AttemptTimeout = "ATTEMPT_TIMEOUT";
    EnvUnknown = "ENV_UNKNOWN";
    EnvPanic = "ENV_PANIC";
    EnvFailed = "ENV_FAILED";
    RewardInvalid = "REWARD_INVALID";
    ModelNotFound = "MODEL_NOT_FOUND";
    ModelTruncated = "MODEL_TRUNCATED";
    ModelUnsupported = "MODEL_UNSUPPORTED";
    TokenizerInvalid = "TOKENIZER_INVALID";
    AdapterMismatch = "ADAPTER_MISMATCH";
    AdapterNonfinite = "ADAPTER_NONFINITE";
    AdapterUnavailable = "ADAPTER_UNAVAILABLE";
    AdapterPinned = "ADAPTER_PINNED";
    LossNonfinite = "LOSS_NONFINITE";
    NumericsMismatch = "NUMERICS_MISMATCH";
    ContextExceeded = "CONTEXT_EXCEEDED";
    CheckpointInvalid = "CHECKPOINT_INVALID";
    RoleFailed = "ROLE_FAILED";
    Interrupted = "INTERRUPTED";
    RunExists = "RUN_EXISTS";
    RunNotFound = "RUN_NOT_FOUND";
    PoisonRollout = "POISON_ROLLOUT";
    PeerUnreachable = "PEER_UNREACHABLE";
    IdentityInvalid = "IDENTITY_INVALID";
    KeyFileExposed = "KEY_FILE_EXPOSED";
    ScheduleToStartTimeout = "SCHEDULE_TO_START_TIMEOUT";
    ScheduleToCloseTimeout = "SCHEDULE_TO_CLOSE_TIMEOUT";
    HeartbeatTimeout = "HEARTBEAT_TIMEOUT";
    WaitTimeout = "WAIT_TIMEOUT";
    ResultsLost = "RESULTS_LOST";
}

macro_rules! link_pages {
    ($($name:literal)*) => {
        /// Codes of the link, which logs and messages name, with their pages. They do not travel
        /// and have no exit status: a command that ends because of one ends with the code of the
        /// fault that came of it.
        pub(crate) const LINK: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../../docs/errors/", $name, ".md"))),)*
        ];
    };
}

link_pages! {
    "IDENTITY_FILE"
    "IDENTITY_HAND_OVER"
    "ADDRESS_NOT_LOCAL"
    "ADDRESS_DENIED"
    "SOCKET_FAILED"
    "LINK_RUNTIME"
    "HANDSHAKE_TIMEOUT"
    "PEER_REFUSED"
    "IDENTITY_REFUSED"
    "PEER_NO_CERTIFICATE"
    "PEER_WRONG_ROLE"
    "BAD_PREFACE"
    "SESSION_CLOSED"
    "FRAME_TRUNCATED"
    "FIRST_FRAME_TIMEOUT"
    "SEND_QUEUE_FULL"
    "SENDER_FINISHED"
    "BULK_TOO_LARGE"
    "BULK_ABORTED"
    "BULK_STALLED"
}

/// The page of a code's name.
pub(crate) fn find(name: &str) -> Option<&'static str> {
    let of_link = || LINK.iter().find(|(code, _)| *code == name);
    match ErrorCode::from_name(name) {
        Some(code) => Some(page(code)),
        None => of_link().map(|(_, page)| *page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_page() {
        assert_eq!(NAMES.len(), ErrorCode::ALL.len());
        for (name, page) in LINK {
            assert!(page.starts_with(&format!("# {name}\n")));
        }
        for (code, name) in NAMES {
            assert_eq!(code.name(), *name);
            let title = format!("# {name}\n");
            assert!(
                page(*code).starts_with(&title),
                "{name} has the page of another code"
            );
        }
    }
}
