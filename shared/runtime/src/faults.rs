//! The faults of this crate, told alike everywhere: what, where, why, what to do.

use std::io;
use std::path::Path;

use volley_protocol::{ErrorCode, Fault};

/// `IO_FAILED`: `action` on `path` did not work.
pub(crate) fn io(action: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::new(
        ErrorCode::IoFailed,
        format!("cannot {action} {}: {error}", path.display()),
    )
    .with_hint(io_hint(error))
}

/// `STORE_FAILED`: durable state could not be written or read.
pub(crate) fn store(action: &str, path: &Path, reason: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        ErrorCode::StoreFailed,
        format!("cannot {action} {}: {reason}", path.display()),
    )
}

/// What a person can do about an operating-system error; empty when the error says it all.
pub(crate) fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on that file system, then start again"
        }
        io::ErrorKind::PermissionDenied => "check owner and mode of that path",
        io::ErrorKind::ReadOnlyFilesystem => "choose a directory on a writable file system",
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::FileTooLarge => {
            "raise the limit of file sizes (ulimit -f), then start again"
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            "check the disk (the kernel's log says more), then start again"
        }
        _ => "",
    }
}
