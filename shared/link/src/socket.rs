//! UDP sockets: buffers that hold a burst, typed bind errors, and a quick look whether anyone
//! listens at all.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Once,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LinkError;

/// How long a port that answers nothing is probed; a refusal arrives within a round trip.
const PROBE_WAIT: Duration = Duration::from_secs(1);

static SMALL_BUFFER_WARNING: Once = Once::new();

/// A socket bound to `addr`, with `buffer_bytes` in each direction if the system grants them.
pub(crate) fn bind(addr: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket, LinkError> {
    open(addr, buffer_bytes).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => LinkError::AddressInUse { addr },
        ErrorKind::AddrNotAvailable => LinkError::AddressNotLocal { addr },
        ErrorKind::PermissionDenied => LinkError::AddressDenied { addr },
        _ => LinkError::Socket { addr, source },
    })
}

/// A socket for dialling, able to reach both address families where the machine is.
pub(crate) fn bind_for_dialling(buffer_bytes: usize) -> Result<UdpSocket, LinkError> {
    bind((Ipv6Addr::UNSPECIFIED, 0).into(), buffer_bytes)
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into(), buffer_bytes))
}

fn open(addr: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.ip().is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Linux caps silently, macOS refuses; both are told from what was granted.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    let granted = usable(socket.recv_buffer_size()?).min(usable(socket.send_buffer_size()?));
    if granted < buffer_bytes {
        SMALL_BUFFER_WARNING.call_once(|| {
            tracing::warn!(
                granted,
                wanted = buffer_bytes,
                "UDP buffers are small and bulk transfers will lose packets; \
                 raise net.core.rmem_max and net.core.wmem_max"
            );
        });
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Linux reports twice what it grants, for its own bookkeeping.
fn usable(reported: usize) -> usize {
    if cfg!(target_os = "linux") {
        reported / 2
    } else {
        reported
    }
}

/// Resolves as soon as `addr` is known to have no listener; never if one may be there. QUIC itself
/// ignores the system's "port unreachable", and would leave a mistyped address to the deadline.
pub(crate) async fn nobody_listens(addr: SocketAddr) {
    if let Err(error) = probe(addr).await
        && error.kind() == ErrorKind::ConnectionRefused
    {
        return;
    }
    std::future::pending().await
}

async fn probe(addr: SocketAddr) -> io::Result<()> {
    let local: SocketAddr = if addr.is_ipv6() {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let socket = tokio::net::UdpSocket::bind(local).await?;
    socket.connect(addr).await?;
    // One zero byte is no QUIC packet: a listener drops it without an answer.
    socket.send(&[0]).await?;
    let mut answer = [0u8; 1];
    tokio::time::timeout(PROBE_WAIT, socket.recv(&mut answer)).await??;
    Ok(())
}
