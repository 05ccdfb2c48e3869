//! Adapters that the core asked for, until their bytes are here.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use volley_protocol::{AdapterVersion, Digest};
use volley_runtime::host_adapters::Turn;

use crate::core::SessionId;

#[derive(Debug)]
struct Asked {
    version: AdapterVersion,
    source: SocketAddr,
    session: SessionId,
    /// Others of this host wait for what this process fetches.
    turn: Option<Turn>,
}

/// Those that were asked for, by digest. As many as the core has on their way.
#[derive(Debug, Default)]
pub(crate) struct Fetching(BTreeMap<Digest, Asked>);

impl Fetching {
    /// The core asks, perhaps again in a new session.
    pub(crate) fn begin(
        &mut self,
        version: AdapterVersion,
        source: SocketAddr,
        session: SessionId,
    ) {
        let asked = Asked {
            version,
            source,
            session,
            turn: None,
        };
        self.0.insert(version.digest, asked);
    }

    /// This host does not have it. Tells the source that is to be asked, unless the core has asked
    /// in another session since, or the bytes have come.
    pub(crate) fn absent(
        &mut self,
        digest: Digest,
        session: SessionId,
        turn: Option<Turn>,
    ) -> Option<SocketAddr> {
        let asked = self.0.get_mut(&digest).filter(|a| a.session == session)?;
        asked.turn = turn;
        Some(asked.source)
    }

    /// The bytes are here, or will not come. Tells the version, and whether others wait for it.
    pub(crate) fn end(&mut self, digest: Digest) -> Option<(AdapterVersion, Option<Turn>)> {
        let asked = self.0.remove(&digest)?;
        Some((asked.version, asked.turn))
    }

    /// What was asked for in this session does not come in it: another process may try.
    pub(crate) fn session_over(&mut self, session: SessionId) {
        for asked in self.0.values_mut().filter(|a| a.session == session) {
            asked.turn = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use volley_protocol::RunId;
    use volley_runtime::host_adapters::{HostAdapters, Looked};

    use super::*;

    fn turn(host: &HostAdapters, digest: Digest) -> Option<Turn> {
        match host.look(digest, |_| Some(())).expect("usable") {
            Looked::Yours(turn) => Some(turn),
            Looked::Here(()) | Looked::Busy => None,
        }
    }

    #[test]
    fn a_turn_is_held_until_the_bytes_come_or_the_session_is_over() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let host = HostAdapters::at(root.path().join("adapters"));
        let digest = Digest::of(b"an adapter");
        let version = AdapterVersion {
            run: RunId(1),
            lineage: 0,
            step: 1,
            digest,
        };
        let source: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let (first, second) = (SessionId(1), SessionId(2));
        let mut fetching = Fetching::default();

        fetching.begin(version, source, first);
        let mine = turn(&host, digest);
        assert_eq!(fetching.absent(digest, first, mine), Some(source));
        assert!(turn(&host, digest).is_none(), "it is held");
        fetching.session_over(second);
        assert!(turn(&host, digest).is_none(), "it is still held");
        fetching.session_over(first);
        assert!(turn(&host, digest).is_some());

        fetching.begin(version, source, second);
        let late = turn(&host, digest);
        assert_eq!(fetching.absent(digest, first, late), None);
        let mine = turn(&host, digest);
        assert!(mine.is_some(), "who comes too late holds nothing");
        assert_eq!(fetching.absent(digest, second, mine), Some(source));
        let (ended, held) = fetching.end(digest).expect("it was asked for");
        assert!(ended == version && held.is_some());
        assert!(fetching.end(digest).is_none());
        drop(held);
        assert!(turn(&host, digest).is_some());
    }
}
