//! Every bound of the link, with the reason for its number, and the knobs an operator may turn.

use std::time::Duration;

use crate::reset_key::ResetKey;

/// Largest payload of one control frame. Whatever is larger belongs on a bulk stream: a 16 KiB
/// message on the control stream already makes its neighbours wait.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// Bytes in front of every control payload: `[u32 length, little endian][u8 kind]`.
pub const FRAME_HEADER_BYTES: usize = 5;

/// Largest single write to the control stream. Measured: beyond 64 KiB larger writes gain nothing.
pub const CONTROL_WRITE_BYTES_MAX: usize = 64 << 10;

/// Senders wait once this many bytes are queued; one frame may overshoot, so that a large frame
/// cannot starve among small ones. Four maximal frames.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 4 << 20;

/// Batches of decoded frames waiting for a slow reader, before QUIC flow control takes over.
pub const CONTROL_RECEIVE_BATCHES_MAX: usize = 16;

/// Network chunks decoded into one batch: about 45 KiB at the usual 1,452-byte datagram.
pub const CONTROL_RECEIVE_CHUNKS_MAX: usize = 32;

/// Bidirectional streams a dialler may open: the control stream, nothing else.
pub const CONTROL_STREAMS_MAX: u32 = 1;

/// Unfinished bulk streams a peer may have; `open_bulk` waits beyond. Objects are batches, so 256
/// of them keep a long path busy.
pub const BULK_STREAMS_MAX: u32 = 256;

/// Unread bulk bytes of one peer held in memory, over all its streams. Sixteen megabytes fill
/// 1 Gbit/s at 120 ms; quinn's own default is unlimited.
pub const RECEIVE_WINDOW_BYTES: u32 = 16 << 20;

/// Kernel socket buffer. Measured: the 208 KiB default loses packets, 1 MiB loses none, 4 MiB is
/// no faster and doubles control latency.
pub const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Connections that wait for their handshake; more are turned away. quinn's default is 65,536.
pub const INCOMING_MAX: usize = 1024;

/// Above this many pending handshakes a new peer must first prove its address (QUIC Retry).
pub const INCOMING_BEFORE_RETRY: usize = 64;

/// Open connections of one listener: ten times the largest cluster we test.
pub const CONNECTIONS_MAX: usize = 4096;

/// Accepted sessions waiting for [`crate::Listener::accept`].
pub const ACCEPT_BACKLOG_MAX: usize = 64;

/// Refused peers logged per second; the rest is only counted, or a scanner would fill the disk.
pub const REFUSALS_LOGGED_PER_SECOND: u64 = 16;

/// Text kept of the reason a peer gives for closing; it comes from outside.
pub const CLOSE_REASON_CHARS_MAX: usize = 256;

/// A sender's last bytes may take this long to be acknowledged after its handle is gone.
pub const LINGER: Duration = Duration::from_secs(5);

/// What an endpoint can be told. `LinkConfig::default()` is what measurements settled.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Silence after which a peer counts as lost.
    pub idle_timeout: Duration,
    /// How often an idle connection shows that it lives; well below `idle_timeout`.
    pub keep_alive: Duration,
    /// From the first packet to a verified peer.
    pub handshake_timeout: Duration,
    /// From a verified peer to its first control frame (acceptor only).
    pub first_frame_timeout: Duration,
    /// Silence on one bulk stream, while it is being read, after which it counts as stalled.
    pub bulk_stall_timeout: Duration,
    /// Requested size of both kernel socket buffers.
    pub socket_buffer_bytes: usize,
    /// See [`RECEIVE_WINDOW_BYTES`].
    pub receive_window_bytes: u32,
    /// See [`BULK_STREAMS_MAX`].
    pub bulk_streams_max: u32,
    /// See [`INCOMING_MAX`].
    pub incoming_max: usize,
    /// See [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// Bulk objects for a process of the same user on this machine go by Unix sockets.
    pub local_bulk: bool,
    /// Kept across restarts, it lets a restarted process tell old peers at once that their
    /// connections are gone. `None` draws a fresh one.
    pub reset_key: Option<ResetKey>,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            first_frame_timeout: Duration::from_secs(5),
            bulk_stall_timeout: Duration::from_secs(30),
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
            receive_window_bytes: RECEIVE_WINDOW_BYTES,
            bulk_streams_max: BULK_STREAMS_MAX,
            incoming_max: INCOMING_MAX,
            connections_max: CONNECTIONS_MAX,
            local_bulk: true,
            reset_key: None,
        }
    }
}
