//! What packets pass through, and which clusters answer here.

use std::net::UdpSocket;

use volley_link::limits::SOCKET_BUFFER_BYTES;
use volley_runtime::cluster_file::ClusterFile;

use super::{Finding, kernel_file};
use crate::text;

pub(super) fn udp_buffer() -> Finding {
    const NAME: &str = "udp buffer";
    if let Err(error) = UdpSocket::bind("127.0.0.1:0") {
        return Finding::bad(
            NAME,
            format!("no UDP socket: {error}"),
            "allow UDP sockets in this sandbox: everything between processes is QUIC",
        );
    }
    let Some(max) = kernel_file("/proc/sys/net/core/rmem_max").and_then(|text| text.parse().ok())
    else {
        return Finding::ok(NAME, "unknown");
    };
    let wanted = SOCKET_BUFFER_BYTES as u64;
    if max >= wanted {
        return Finding::ok(NAME, format!("{} allowed", text::bytes(max)));
    }
    Finding::warn(
        NAME,
        format!(
            "{} allowed: bursts of trajectories lose packets",
            text::bytes(max)
        ),
        format!("sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}"),
    )
}

pub(super) fn clusters() -> Finding {
    const NAME: &str = "clusters";
    let known = ClusterFile::known();
    let living: Vec<String> = known
        .iter()
        .filter(|file| file.is_alive())
        .map(|file| format!("{} at {} (pid {})", file.cluster, file.address, file.pid))
        .collect();
    if living.is_empty() {
        return Finding::ok(NAME, "none runs here; start one: volley up");
    }
    Finding::ok(NAME, text::line(&living.join(", "), 400))
}
