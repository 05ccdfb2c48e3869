//! Threads that a role cannot live without. When one panics, the process ends with a defect's
//! status, so that its supervisor starts it again: a role that only looks alive is worse than one
//! that is dead.

use volley_protocol::ErrorCode;

/// Put at the top of a vital thread; its drop during a panic ends the process.
#[derive(Debug)]
pub struct Vital(pub &'static str);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.0, "a vital thread panicked; the process ends");
            std::process::exit(i32::from(ErrorCode::Internal.exit_status()));
        }
    }
}
