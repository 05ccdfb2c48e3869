//! QUIC between processes: endpoints, identities, sessions, framed streams
