//! What a child is handed, over a socket that is its standard input.
//!
//! ```text
//! [4 magic "VHO1"][u32 head length] + SCM_RIGHTS(descriptors)
//! [head: JSON {"fds": [name…], "identity_bytes": n}][identity bytes]
//! ```
//!
//! A name `lifeline` marks the read end of a parent's lifeline; all others are the caller's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};
use volley_protocol::{ErrorCode, Fault};

use super::lifeline::Lifelines;
use super::spec::ChildSpec;
use crate::env_vars;

const MAGIC: [u8; 4] = *b"VHO1";
const LIFELINE: &str = "lifeline";

/// Head and identity. A certificate chain with its key has about 3 KiB; the socket's buffer is
/// made large enough for this, so that the sender never waits for the child.
const HANDOFF_BYTES_MAX: usize = 64 << 10;

/// Descriptors of one handoff; the kernel's own bound is 253.
const HANDOFF_FDS_MAX: usize = 16;

/// The bytes are in the socket before the child starts, so that waiting means a defect.
const HANDOFF_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    fds: Vec<String>,
    identity_bytes: Option<usize>,
}

/// What this process was handed by its launcher; empty for a process started by hand.
#[derive(Default)]
pub struct Handoff {
    identity: Option<Vec<u8>>,
    fds: BTreeMap<String, OwnedFd>,
    lifelines: Lifelines,
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff")
            .field("identity", &self.identity.as_ref().map(|_| "<hidden>"))
            .field("fds", &self.fds)
            .field("lifelines", &self.lifelines)
            .finish()
    }
}

impl Handoff {
    /// Takes what the launcher handed over; call it once, first thing in `main`. Afterwards
    /// standard input is `/dev/null`, so that nothing started later can read what came there.
    ///
    /// # Errors
    /// `INTERNAL` when something other than a handoff stands on the socket, `IO_FAILED` when it
    /// cannot be read.
    pub fn take() -> Result<Self, Fault> {
        if !env_vars::VOLLEY_HANDOFF.is_set() {
            return Ok(Self::default());
        }
        let stdin = io::stdin();
        // The variable is inherited by everything below this process; the socket is not.
        if sockopt::socket_type(&stdin).is_err() {
            return Ok(Self::default());
        }
        take_from_stdin(stdin.as_fd()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Fault::new(
                ErrorCode::Internal,
                format!("standard input carries no handoff: {error}"),
            )
            .with_hint("unset VOLLEY_HANDOFF when starting a role by hand"),
            _ => Fault::new(
                ErrorCode::IoFailed,
                format!("cannot read the handoff of the launcher: {error}"),
            ),
        })
    }

    /// The identity bytes; the second call finds nothing.
    pub fn take_identity(&mut self) -> Option<Vec<u8>> {
        self.identity.take()
    }

    /// The descriptor handed over under that name; the second call finds nothing.
    pub fn take_fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.fds.remove(name)
    }

    /// Lifelines of the launchers above: watch them, and hand them on.
    #[must_use]
    pub fn lifelines(&self) -> &Lifelines {
        &self.lifelines
    }
}

/// The child's end of a socket that already holds everything. To be its standard input.
pub(super) fn prepare(spec: &ChildSpec) -> io::Result<OwnedFd> {
    let mut fds: Vec<BorrowedFd<'_>> = spec.lifelines.fds().collect();
    let mut names: Vec<String> = fds.iter().map(|_| LIFELINE.to_owned()).collect();
    for (name, fd) in &spec.fds {
        names.push(name.clone());
        fds.push(fd.as_fd());
    }
    let identity = spec.identity.0.as_deref();
    let head = serde_json::to_vec(&Head {
        fds: names,
        identity_bytes: identity.map(<[u8]>::len),
    })?;
    let mut body = head.clone();
    body.extend_from_slice(identity.unwrap_or_default());
    if body.len() > HANDOFF_BYTES_MAX || fds.len() > HANDOFF_FDS_MAX {
        return Err(io::Error::other(format!(
            "a handoff of {} bytes and {} descriptors is above {HANDOFF_BYTES_MAX} and \
             {HANDOFF_FDS_MAX}",
            body.len(),
            fds.len()
        )));
    }
    // std's sockets are close-on-exec; spawning makes descriptor 0 from a duplicate.
    let (mut ours, theirs) = UnixStream::pair()?;
    // Doubled: the kernel counts its own bookkeeping against the buffer.
    sockopt::set_socket_send_buffer_size(&ours, 2 * HANDOFF_BYTES_MAX)?;
    ours.set_nonblocking(true)?;
    send_start(&ours, head.len(), &fds)?;
    ours.write_all(&body)?;
    Ok(theirs.into())
}

fn send_start(socket: &UnixStream, head_len: usize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut start = [0; 8];
    start[..4].copy_from_slice(&MAGIC);
    start[4..].copy_from_slice(
        &u32::try_from(head_len)
            .map_err(io::Error::other)?
            .to_le_bytes(),
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOFF_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&start)],
        &mut control,
        SendFlags::empty(),
    )?;
    if sent == start.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn take_from_stdin(stdin: BorrowedFd<'_>) -> io::Result<Handoff> {
    let socket = UnixStream::from(stdin.try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    socket.set_read_timeout(Some(HANDOFF_WAIT))?;
    receive(socket)
}

fn receive(mut socket: UnixStream) -> io::Result<Handoff> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let (start, received) = receive_start(&socket)?;
    if start[..4] != MAGIC {
        return Err(invalid("it does not begin with VHO1".into()));
    }
    let head_len = u32::from_le_bytes([start[4], start[5], start[6], start[7]]) as usize;
    if head_len > HANDOFF_BYTES_MAX {
        return Err(invalid(format!("its head has {head_len} bytes")));
    }
    let mut head = vec![0; head_len];
    socket.read_exact(&mut head)?;
    let head: Head = serde_json::from_slice(&head).map_err(|error| invalid(error.to_string()))?;
    if head.fds.len() != received.len() || head.identity_bytes > Some(HANDOFF_BYTES_MAX) {
        let message = format!(
            "{} names for {} descriptors",
            head.fds.len(),
            received.len()
        );
        return Err(invalid(message));
    }
    let mut handoff = Handoff::default();
    for (name, fd) in head.fds.into_iter().zip(received) {
        if name == LIFELINE {
            handoff.lifelines.push(fd);
        } else {
            handoff.fds.insert(name, fd);
        }
    }
    if let Some(bytes) = head.identity_bytes {
        let mut identity = vec![0; bytes];
        socket.read_exact(&mut identity)?;
        handoff.identity = Some(identity);
    }
    Ok(handoff)
}

fn receive_start(socket: &UnixStream) -> io::Result<([u8; 8], Vec<OwnedFd>)> {
    let mut start = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOFF_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut start)];
    let got = recvmsg(socket, &mut iov, &mut control, receive_flags())?.bytes;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    #[cfg(not(target_os = "linux"))]
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    if got == start.len() {
        Ok((start, fds))
    } else {
        let message = format!("{got} bytes instead of a start");
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

#[cfg(target_os = "linux")]
const fn receive_flags() -> RecvFlags {
    RecvFlags::CMSG_CLOEXEC
}

#[cfg(not(target_os = "linux"))]
const fn receive_flags() -> RecvFlags {
    RecvFlags::empty()
}

#[cfg(test)]
mod tests {
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    fn spec() -> ChildSpec {
        ChildSpec::program("true", "t", Vec::<String>::new())
    }

    #[test]
    fn everything_arrives_under_its_name_and_leaks_nowhere() {
        let (read, write) = io::pipe().expect("pipe");
        let spec = spec()
            .identity(vec![7; 3000])
            .lifelines(Lifelines::own().expect("lifeline"))
            .fd("door", write.into());
        let socket = UnixStream::from(prepare(&spec).expect("prepare"));
        drop(spec);
        let mut handoff = receive(socket).expect("receive");
        assert_eq!(handoff.take_identity(), Some(vec![7; 3000]));
        assert_eq!(handoff.take_identity(), None);
        assert!(!handoff.lifelines().is_empty());
        let door = handoff.take_fd("door").expect("door");
        assert!(
            fcntl_getfd(&door)
                .expect("flags")
                .contains(FdFlags::CLOEXEC)
        );
        assert_eq!(rustix::io::write(&door, b"hi").expect("write"), 2);
        let mut heard = [0; 2];
        assert_eq!(rustix::io::read(&read, &mut heard).expect("read"), 2);
        assert!(format!("{handoff:?}").contains("lifelines"));
    }

    #[test]
    fn the_largest_handoff_needs_no_reader_and_a_larger_one_is_refused() {
        let room = HANDOFF_BYTES_MAX - 64;
        let socket = prepare(&spec().identity(vec![1; room])).expect("fits");
        let handoff = receive(UnixStream::from(socket)).expect("receive");
        assert_eq!(handoff.identity.map(|bytes| bytes.len()), Some(room));
        assert!(prepare(&spec().identity(vec![1; HANDOFF_BYTES_MAX])).is_err());
    }

    #[test]
    fn noise_is_an_error() {
        for noise in [
            &b"GET / HT"[..],
            b"VHO1\xff\xff\xff\xff",
            b"VHO1\x02\0\0\0{}",
            b"VH",
        ] {
            let (mut ours, theirs) = UnixStream::pair().expect("pair");
            ours.write_all(noise).expect("write");
            drop(ours);
            assert!(receive(theirs).is_err(), "{noise:?}");
        }
    }
}
