//! Faults that this crate tells, and which of them waiting does not heal.

use std::net::SocketAddr;
use std::time::Duration;

use volley_protocol::codec::CodecError;
use volley_protocol::{ErrorCode, Fault};

/// Would another dial end the same way? Certificates and versions do not get better by waiting.
pub(crate) fn is_final(fault: &Fault) -> bool {
    matches!(
        fault.code,
        ErrorCode::PeerUntrusted
            | ErrorCode::IdentityInvalid
            | ErrorCode::KeyFileExposed
            | ErrorCode::UnsupportedProtocol
            | ErrorCode::InvalidName
            | ErrorCode::Forbidden
            | ErrorCode::DecodeError
    )
}

/// The coordinator is not there, and was not for `waited`.
pub(crate) fn unreachable(addr: SocketAddr, waited: Duration, last: Option<&Fault>) -> Fault {
    let detail = last.map_or_else(|| "no answer".to_owned(), |fault| fault.message.clone());
    let seconds = waited.as_secs_f32();
    let message = format!("no coordinator at {addr} (tried for {seconds:.0} s): {detail}");
    Fault::new(ErrorCode::CoordinatorUnreachable, message)
        .with_hint("start one: volley up; or name another: --addr HOST:PORT")
}

/// What arrived is no message of this protocol.
pub(crate) fn decode(error: &CodecError) -> Fault {
    Fault::new(ErrorCode::DecodeError, error.to_string())
        .with_hint("client and coordinator are of different versions: install the same one")
}

/// An answer to another question than was asked.
pub(crate) fn unexpected(what: &str) -> Fault {
    let message = format!("the coordinator's answer is no {what}");
    Fault::new(ErrorCode::DecodeError, message)
}
